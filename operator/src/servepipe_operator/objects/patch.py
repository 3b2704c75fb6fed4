"""The JSON patch that makes a live RayCluster what its slots ask for.

Worker groups are one atomic list, in which the autoscaler writes ``replicas`` and ``scaleStrategy``: any apply would
set those back. So a patch names single fields, and tests that they still are where they were read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from servepipe_operator.engine.pools import Slot
from servepipe_operator.engine.state import Json
from servepipe_operator.objects.environment import environment_of
from servepipe_operator.objects.names import Owner, labels
from servepipe_operator.objects.raycluster import slot_of, worker_group

__all__ = ["label_patch", "patch"]


def patch(
    live: Mapping[str, Any],
    owner: Owner,
    slots: Sequence[Slot],
    runtime_image: str,
    suspend: bool,
    pods: Mapping[str, int],
) -> list[Json]:
    """The operations, or none where nothing of ours differs.

    Args:
        slots: From `assign`. A slot that has a wish but is in use after all is left alone.
        pods: How many pods there are, by group.
    """
    groups = live["spec"].get("workerGroupSpecs") or []
    environment = environment_of(live["spec"]["headGroupSpec"]["template"])
    by_name = {slot.name: slot for slot in slots}
    operations = _metadata(live, owner)
    if bool(live["spec"].get("suspend")) != suspend:
        operations.append({"op": "add", "path": "/spec/suspend", "value": suspend})
    for index, group in enumerate(groups):
        slot = by_name.pop(group["groupName"], None)
        if slot is not None:
            idle = not group.get("replicas") and not pods.get(slot.name)
            operations += _group(index, group, slot, owner, runtime_image, environment, idle)
    new = [
        worker_group(owner, slot, slot.wish, runtime_image, environment)
        for slot in by_name.values()
        if slot.wish is not None
    ]
    if new and not groups:
        operations.append({"op": "add", "path": "/spec/workerGroupSpecs", "value": new})
    else:
        operations += [{"op": "add", "path": "/spec/workerGroupSpecs/-", "value": group} for group in new]
    if not operations:
        return []
    tests = [_test("/metadata/resourceVersion", live["metadata"]["resourceVersion"])]
    tests += [_test(f"/spec/workerGroupSpecs/{at}/groupName", group["groupName"]) for at, group in enumerate(groups)]
    return tests + operations


def label_patch(live: Mapping[str, Any], owner: Owner) -> list[Json]:
    """The operations that give a RayCluster its labels back, by which it is found; none where it has them."""
    operations = _metadata(live, owner)
    return [_test("/metadata/resourceVersion", live["metadata"]["resourceVersion"]), *operations] if operations else []


def _test(path: str, value: str) -> Json:
    return {"op": "test", "path": path, "value": value}


def _metadata(live: Mapping[str, Any], owner: Owner) -> list[Json]:
    found = live["metadata"].get("labels")
    wanted = labels(owner)
    if found is None:
        return [{"op": "add", "path": "/metadata/labels", "value": wanted}]
    return [
        {"op": "add", "path": f"/metadata/labels/{key.replace('~', '~0').replace('/', '~1')}", "value": value}
        for key, value in wanted.items()
        if found.get(key) != value
    ]


def _group(
    index: int,
    group: Mapping[str, Any],
    slot: Slot,
    owner: Owner,
    runtime_image: str,
    environment: Mapping[str, str],
    idle: bool,
) -> list[Json]:
    wanted: Json = {"minReplicas": slot.low, "maxReplicas": slot.high}
    held = slot_of(group)
    # What was written keeps its fields: the API server's defaults, and ours of an older version, are no difference.
    rewritten = slot.wish is not None and (held.pool, held.contents) != (slot.wish.pool, slot.wish.digest)
    if slot.wish is not None and rewritten and idle:
        content = worker_group(owner, slot, slot.wish, runtime_image, environment)
        wanted |= {key: content[key] for key in ("resources", "template")}
    return [
        {"op": "add", "path": f"/spec/workerGroupSpecs/{index}/{key}", "value": value}
        for key, value in wanted.items()
        if group.get(key) != value
    ]
