"""Ray's environment, equal in all pods of a cluster, and how the template of the head switches it.

`servepipe up` takes the same from that template, so it asks here as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from servepipe.api.removals import unmarked
from servepipe.runtime.flags import CHANNEL, serve_environment
from servepipe_operator.engine.state import Json
from servepipe_operator.objects.merge import merge_template

__all__ = ["HEAD_CONTAINER", "MAX_INLINE_BYTES", "cluster_environment", "environment_of", "switches"]

#: The container of Ray on the head.
HEAD_CONTAINER = "ray-head"

#: Answers up to this size are part of the message that brings them.
MAX_INLINE_BYTES = 1 << 20


def cluster_environment() -> dict[str, str]:
    """What Ray and Serve must find in the environment of every pod, equal on all of them."""
    return {
        # The image says what Serve's controller may call: it need not have the operator's servepipe.
        **serve_environment(callback=False),
        # KubeRay sets these for a RayService only: Serve's controller must not wait long for a head that is lost.
        "RAY_SERVE_KV_TIMEOUT_S": "5",
        "RAY_gcs_server_request_timeout_seconds": "5",
        "RAY_timeout_ms_task_wait_for_death_info": "0",
        # Ray drains a node itself when it gets SIGTERM, but tells Serve that it ends in 30 s: as long as replicas may
        # take for their last requests by default, so Serve stops them before others run. Workers have a hook instead.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # What a replica tells Serve's next controller, when a head was lost, must come with its answer. It has 110 kB,
        # as Serve pickles its router by value, and by default what has more than 100 stays in the pod's object store
        # until the new head fetches it. The pod does not know that head before it has found the GCS again, and the
        # second try is after 10 s, the third after 30: then Serve has stopped the replica.
        "RAY_max_direct_call_object_size": str(MAX_INLINE_BYTES),
    }


def environment_of(head: Mapping[str, Any]) -> dict[str, str]:
    """Ray's environment in a head's pod or template. Workers must have the same: what the user's template changes, and
    what the head that lives was made with, which may be another operator's.
    """
    return {name: one["value"] for name, one in _variables(head).items() if "value" in one}


def switches(template: Mapping[str, Any]) -> dict[str, Json]:
    """What a raw template of the head says about Ray's environment: the variables as they stand there, by name.

    One without ``value`` and ``valueFrom`` takes that variable out.

    Args:
        template: ``spec.cluster.head.template``.
    """
    bare = {"spec": {"containers": [{"name": HEAD_CONTAINER}]}}
    return _variables(merge_template(bare, unmarked(template)))


def _variables(head: Mapping[str, Any]) -> dict[str, Json]:
    """Those of the first container that count for all pods: Serve's flags, and what servepipe sets or reads."""
    names = {*cluster_environment(), CHANNEL}
    match head:
        case {"spec": {"containers": [{"env": list(env)}, *_]}}:
            # What is no variable is for the API server to name.
            variables = [one for one in env if isinstance(one, Mapping)]
        case _:
            variables = []
    return {
        name: dict(one)
        for one in variables
        if isinstance(name := one.get("name"), str) and (name in names or name.startswith("RAY_SERVE_"))
    }
