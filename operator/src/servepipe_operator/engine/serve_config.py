"""Builders of what is sent to Serve. Pure: the same decisions always give the same configuration.

Some settings look needless and are not; each was paid for with an outage or a restart in measurements:

- ``autoscaling_config`` always, minimum = maximum for a fixed number: going between it and ``num_replicas`` restarts
  every replica. A maximum of 0 is refused, so "off" is 0 to 1 and nobody calls it.
- ``max_surge_percent: 100``: else old replicas stop before new ones start. ``rolling_update_percentage: 1.0``: a
  table reaches all replicas of the ingress at once.
- ``route_prefix: null`` for nodes: left out it means ``/``, and two applications cannot have one.
- ``http_options`` and ``grpc_options`` count only when Serve starts, so they are in every configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from servepipe.api.quantity import parse_quantity
from servepipe_operator.engine.goal import IngressGoal, Live, Scale
from servepipe_operator.engine.names import INGRESS, INGRESS_DEPLOYMENT, NODE_DEPLOYMENT, application
from servepipe_operator.engine.revisions import digest
from servepipe_operator.engine.state import Environment, Json

__all__ = [
    "actor_options",
    "bounds",
    "demand",
    "holder_config",
    "ingress_application",
    "inline_entry",
    "node_application",
    "same",
    "serve_config",
]

#: Serve's own limit is the last resort behind the ingress's, and cannot be raised later: leave room for that.
_PROXY_TIMEOUT_FLOOR_S = 300
_PROXY_TIMEOUT_MARGIN_S = 10

_GRPC_SERVICER = "servepipe.runtime.grpc_service.add_servicer"


def serve_config(applications: Iterable[Json], ingress: IngressGoal, environment: Environment) -> Json:
    """The whole configuration for one PUT: Serve deletes every application that is not in it."""
    timeout_s = max(ingress.request_timeout_s, _PROXY_TIMEOUT_FLOOR_S) + _PROXY_TIMEOUT_MARGIN_S
    config: Json = {
        "proxy_location": "EveryNode",
        "http_options": {"request_timeout_s": timeout_s, **environment.http},
        "applications": sorted(applications, key=lambda one: str(one["name"])),
    }
    if environment.grpc:
        config["grpc_options"] = {
            "grpc_servicer_functions": [_GRPC_SERVICER],
            "request_timeout_s": timeout_s,
            **environment.grpc,
        }
    return config


def node_application(
    pipeline: str,
    node: str,
    revision: str,
    identity: Json,
    attempt: int,
    live: Live,
    autoscaling: Json,
    table: Json,
    environment: Environment,
    pinned: Mapping[str, int],
) -> Json:
    """One revision of a node with replicas of its own."""
    code = identity.get("code")
    return {
        "name": application(node, revision),
        "route_prefix": None,
        "import_path": "servepipe.runtime.app:node",
        "args": {
            "pipeline": pipeline,
            "node": node,
            "revision": revision,
            "import": identity["import"],
            "args": identity.get("args", []),
            "kwargs": identity.get("kwargs", {}),
            "code": code,
            "path": environment.code_paths.get(code) if code else None,
            "blocking": identity.get("blocking"),
            "attempt": attempt,
        },
        "deployments": [
            {
                "name": NODE_DEPLOYMENT,
                "autoscaling_config": autoscaling,
                "max_ongoing_requests": live.max_ongoing_requests,
                "max_queued_requests": live.max_queued_requests,
                "user_config": {
                    **table,
                    "userConfig": live.user_config,
                    "maxOngoingRequests": live.max_ongoing_requests,
                },
                "graceful_shutdown_timeout_s": live.drain_s,
                "health_check_period_s": live.health_period_s,
                "health_check_timeout_s": live.health_timeout_s,
                "logging_config": {"enable_access_log": live.access_log},
                "ray_actor_options": actor_options(identity, environment, pinned),
                "max_surge_percent": 100,
                "rolling_update_percentage": 1.0,
            }
        ],
    }


def ingress_application(
    pipeline: str,
    revision: str,
    identity: Json,
    attempt: int,
    goal: IngressGoal,
    table: Json,
    environment: Environment,
    pinned: Mapping[str, int],
) -> Json:
    """The ingress: ``args`` are its identity, ``user_config`` is the graph and the weights."""
    paths = [environment.code_paths[code] for code in identity["codes"] if code in environment.code_paths]
    args = {
        "pipeline": pipeline,
        "revision": revision,
        "paths": paths,
        "codes": identity["codes"],
        "preprocessor": identity.get("preprocessor"),
        "preprocessorCode": identity.get("preprocessorCode"),
        "postprocessor": identity.get("postprocessor"),
        "postprocessorCode": identity.get("postprocessorCode"),
        "attempt": attempt,
    }
    content = {
        "pipeline": pipeline,
        **table,
        "requestTimeoutSeconds": goal.request_timeout_s,
        "maxBodyBytes": goal.max_body_bytes,
    }
    return {
        "name": INGRESS,
        "route_prefix": goal.route,
        "import_path": "servepipe.runtime.app:ingress",
        "args": args,
        "deployments": [
            {
                "name": INGRESS_DEPLOYMENT,
                "autoscaling_config": bounds(goal.scale),
                "max_ongoing_requests": goal.max_ongoing_requests,
                # The process is part of the id: an old one never acknowledges the table of a new one.
                "user_config": {"table": digest([args, content], 16), **content},
                "graceful_shutdown_timeout_s": goal.request_timeout_s,
                "logging_config": {"enable_access_log": goal.access_log},
                "ray_actor_options": actor_options(identity, environment, pinned),
                "max_surge_percent": 100,
                "rolling_update_percentage": 1.0,
            }
        ],
    }


def bounds(scale: Scale) -> Json:
    """Serve's ``autoscaling_config``."""
    if scale.off:
        # Serve lowers a target only after these delays, also when nobody calls.
        return {
            "min_replicas": 0,
            "max_replicas": 1,
            "downscale_delay_s": 1,
            "look_back_period_s": 2,
            "metrics_interval_s": 1,
        }
    return {
        "min_replicas": scale.low,
        "max_replicas": scale.high,
        "target_ongoing_requests": scale.target_ongoing_requests,
        "upscale_delay_s": scale.upscale_delay_s,
        "downscale_delay_s": scale.downscale_delay_s,
    }


def holder_config(routes: Mapping[str, list[Json]], once: Sequence[str] = ()) -> Json:
    """The part of a node's ``user_config`` that routes the handles it holds.

    Args:
        once: Those of the nodes that are not idempotent.
    """
    if not once:
        return {"table": digest(routes, 16), "routes": dict(routes)}
    return {"table": digest([routes, once], 16), "routes": dict(routes), "notIdempotent": [*once]}


def inline_entry(identity: Json, live: Live) -> Json:
    """What the ingress needs to build a revision in its own process."""
    return {
        "import": identity["import"],
        "args": identity.get("args", []),
        "kwargs": identity.get("kwargs", {}),
        "code": identity.get("code"),
        "blocking": identity.get("blocking"),
        "userConfig": live.user_config,
        "maxOngoingRequests": live.max_ongoing_requests,
    }


def actor_options(identity: Json, environment: Environment, pinned: Mapping[str, int] = MappingProxyType({})) -> Json:
    """Ray's options of one replica.

    Args:
        pinned: Custom resources that only its slot has.
    """
    resources = identity.get("resources", {})
    options: Json = {"num_cpus": _number(resources.get("cpu", "1"))}
    if "memory" in resources:
        options["memory"] = int(parse_quantity(resources["memory"]))
    if "gpu" in resources and not environment.gpus_ignored:
        options["num_gpus"] = _number(resources["gpu"])
    if custom := {name: _number(value) for name, value in resources.get("custom", {}).items()} | dict(pinned):
        options["resources"] = custom
    if "runtimeEnv" in identity:
        options["runtime_env"] = identity["runtimeEnv"]
    return options


def demand(identity: Json, environment: Environment) -> dict[str, float]:
    """What one replica takes of Ray's resources, by their names."""
    options = actor_options(identity, environment)
    named = {"CPU": options["num_cpus"], "GPU": options.get("num_gpus", 0), "memory": options.get("memory", 0)}
    return {name: amount for name, amount in {**named, **options.get("resources", {})}.items() if amount}


def same(wanted: Any, found: Any) -> bool:
    """Whether Serve has what was sent: it writes some integers as floats, and may add nulls."""
    if wanted == found:
        return True
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return all(same(wanted.get(key), found.get(key)) for key in wanted.keys() | found.keys())
    if isinstance(wanted, list) and isinstance(found, list):
        return len(wanted) == len(found) and all(map(same, wanted, found))
    return False


def _number(quantity: str) -> float:
    value = float(parse_quantity(quantity))
    return int(value) if value.is_integer() else value
