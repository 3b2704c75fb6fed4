"""`servepipe scale`, `suspend`, `pause`, `resume` and `delete` for a pipeline in a cluster.

They write as a field manager of their own, so that the next `servepipe apply` keeps what they set.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import difflib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from servepipe import api
from servepipe.errors import ServePipeError
from servepipe_operator.adapters.kube_errors import Conflict, Forbidden, NotFound
from servepipe_operator.adapters.kube_resource import PIPELINES, RAYCLUSTERS
from servepipe_operator.cluster.changes import plain
from servepipe_operator.cluster.connection import (
    SILENCE_S,
    SILENT,
    ClusterError,
    Connection,
    connect_as,
    in_words,
    run,
    unanswered,
)
from servepipe_operator.cluster.merging import OPS_MANAGER
from servepipe_operator.engine.state import Json

__all__ = ["delete", "pause", "resume", "scale", "scaling", "suspend", "switching"]

INGRESS = "ingress"
ATTEMPTS = 4
POLL_S = 0.5


def scale(arguments: argparse.Namespace) -> int:
    """`servepipe scale NODE=N ...`: all of them at once, or none."""
    sizes = dict(arguments.sizes)

    async def work() -> int:
        async with connect_as(OPS_MANAGER, arguments) as connection:
            live = await connection.get(arguments.pipeline)
            name = live["metadata"]["name"]
            print(f"{name} in {connection.place()}", flush=True)
            await _patched(connection, name, lambda live: scaling(live, sizes))
            for node, replicas in sizes.items():
                print(f"{node} scaled to {replicas}", flush=True)
            _tell_paused(live)
            return 0

    return run(work())


def suspend(arguments: argparse.Namespace) -> int:
    """`servepipe suspend NAME`."""
    return _switch(arguments, {"suspend": True}, "suspended")


def pause(arguments: argparse.Namespace) -> int:
    """`servepipe pause NAME`."""
    return _switch(arguments, {"paused": True}, "paused")


def resume(arguments: argparse.Namespace) -> int:
    """`servepipe resume NAME`: neither suspended nor paused."""
    return _switch(arguments, {"suspend": False, "paused": False}, "resumed")


def delete(arguments: argparse.Namespace) -> int:
    """`servepipe delete NAME`: everything that belongs to the pipeline goes with it."""

    async def work() -> int:
        async with connect_as(OPS_MANAGER, arguments) as connection:
            live = await connection.get(arguments.pipeline)
            name, uid = live["metadata"]["name"], live["metadata"]["uid"]
            print(f"{name} in {connection.place()}", flush=True)
            clusters = emptied_later(live)
            with in_words(connection), contextlib.suppress(NotFound):
                # In the foreground the object goes last, after all that it owns; but KubeRay's Job would go with
                # its RayCluster, before it has emptied the Redis.
                propagation = "Foreground" if arguments.wait and not clusters else "Background"
                await connection.kube.delete(PIPELINES, connection.namespace, name, uid=uid, propagation=propagation)
            if arguments.wait:
                await _until_gone(connection, name, uid, clusters, arguments.timeout)
            print(f"{name} {'is gone' if arguments.wait else 'is being deleted'}", flush=True)
            return 0

    return run(work())


def scaling(live: Mapping[str, Any], sizes: Mapping[str, int]) -> list[Json]:
    """The JSON patch that gives nodes (or ``ingress``) these numbers of replicas.

    Raises:
        ServePipeError: There is no such node, or it cannot have replicas of its own.
    """
    spec = live["spec"]
    wanted, patch = plain(live), list[Json]()
    wanted["spec"] = {**spec, "nodes": dict(spec["nodes"])}
    for name, replicas in sizes.items():
        if name != INGRESS and name not in spec["nodes"]:
            close = difflib.get_close_matches(name, [*spec["nodes"], INGRESS], n=1)
            raise ServePipeError(
                f"There is no node {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
                fix=f"The nodes are: {', '.join(sorted(spec['nodes']))}; and {INGRESS}.",
            )
        if name == INGRESS and replicas == 0:
            raise ServePipeError("The ingress needs at least one replica", fix="To free all pods: `servepipe suspend`.")
        part = spec.get(INGRESS) if name == INGRESS else spec["nodes"][name]
        path = f"/spec/{INGRESS}" if name == INGRESS else f"/spec/nodes/{name}"
        if part is None:
            patch.append({"op": "add", "path": path, "value": {"replicas": replicas}})
        else:
            if "autoscaling" in part:
                patch.append({"op": "remove", "path": f"{path}/autoscaling"})
            patch.append({"op": "add", "path": f"{path}/replicas", "value": replicas})
        changed = {key: value for key, value in (part or {}).items() if key != "autoscaling"} | {"replicas": replicas}
        (wanted["spec"] if name == INGRESS else wanted["spec"]["nodes"])[name] = changed
    _check(live, wanted)
    return patch


def _check(live: Mapping[str, Any], wanted: Json) -> None:
    """Refuse in the words of the SDK's own checks, which say more than the API server.

    An object with fields that this version does not know is the API server's to judge.
    """
    try:
        before = set(map(str, api.problems(api.validate(plain(live)))))
    except api.InvalidResourceError:
        return
    if found := [one for one in api.problems(api.validate(wanted)) if str(one) not in before]:
        raise api.InvalidResourceError(found)


def switching(live: Mapping[str, Any], switches: Mapping[str, bool]) -> list[Json]:
    """The JSON patch after which fields of the spec are true, or not there; [] where they are so."""
    spec, patch = live["spec"], list[Json]()
    for field, on in switches.items():
        if on and not spec.get(field):
            patch.append({"op": "add", "path": f"/spec/{field}", "value": True})
        elif not on and field in spec:
            patch.append({"op": "remove", "path": f"/spec/{field}"})
    return patch


def _switch(arguments: argparse.Namespace, switches: Mapping[str, bool], done: str) -> int:
    async def work() -> int:
        async with connect_as(OPS_MANAGER, arguments) as connection:
            live = await connection.get(arguments.pipeline)
            name = live["metadata"]["name"]
            print(f"{name} in {connection.place()}", flush=True)
            changed = await _patched(connection, name, lambda live: switching(live, switches))
            print(f"{name} {done}" if changed else f"{name} was {done} already", flush=True)
            if "paused" not in switches:
                _tell_paused(live)
            return 0

    return run(work())


async def _one_left(connection: Connection, clusters: Sequence[str]) -> Json | None:
    """One of these RayClusters that is there still, as far as the user may see them."""
    for name in clusters:
        with in_words(connection), contextlib.suppress(NotFound, Forbidden):
            found: Json = await connection.kube.get(RAYCLUSTERS, connection.namespace, name)
            return found
    return None


def _tell_paused(live: Mapping[str, Any]) -> None:
    if live["spec"].get("paused"):
        name = live["metadata"]["name"]
        print(f"{name} is paused: nothing of this happens until `servepipe resume {name}`", flush=True)


async def _patched(connection: Connection, name: str, patch_for: Callable[[Json], list[Json]]) -> bool:
    """Patch the object as it is now, and again where somebody else was faster. False: there was nothing to change."""
    for attempts_left in reversed(range(ATTEMPTS)):
        live = await connection.get(name)
        patch = patch_for(live)
        if not patch:
            return False
        test = {"op": "test", "path": "/metadata/resourceVersion", "value": live["metadata"]["resourceVersion"]}
        with in_words(connection):
            try:
                await connection.kube.json_patch(PIPELINES, connection.namespace, name, [test, *patch])
                return True
            except Conflict:
                if not attempts_left:
                    raise
    raise AssertionError("unreachable")


def emptied_later(live: Mapping[str, Any]) -> list[str]:
    """The RayClusters that go after the pipeline, when KubeRay has emptied their Redis."""
    if (live["spec"].get("cluster") or {}).get("gcsFaultTolerance") is None:
        return []
    return [one["name"] for one in (live.get("status") or {}).get("clusters") or []]


async def _until_gone(connection: Connection, name: str, uid: str, clusters: Sequence[str], timeout_s: float) -> None:
    held, heard, told = "nothing", time.monotonic(), False
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    live = await connection.find(name)
                    if live is None or live["metadata"]["uid"] != uid:
                        live = await _one_left(connection, clusters)
                except ClusterError as error:
                    if not unanswered(error):
                        raise
                    if not told:
                        print(error.what, file=sys.stderr, flush=True)
                    told = True
                else:
                    if live is None:
                        return
                    held = ", ".join(live["metadata"].get("finalizers") or ()) or "nothing"
                    heard, told = time.monotonic(), False
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        silence_s = time.monotonic() - heard
        why = f"{SILENT} (for {silence_s:.0f} s)" if silence_s >= SILENCE_S else f"what holds it: {held}"
        raise ClusterError(
            f"{name} is not gone after {timeout_s:.0f} s; {why}",
            where=connection.place(),
            fix="It goes on being deleted. Look at what still belongs to it.",
        ) from None
