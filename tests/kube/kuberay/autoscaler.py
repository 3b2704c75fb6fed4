"""Ray's autoscaler, version 2, as its sidecar does it to a RayCluster: only through patches.

It counts by the groups of the spec and patches them by index. With pods of a group that is no longer in the spec it
does nothing at all; the real one ends with an error and is started again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kuberay import commands, names
from kuberay.api import JSON_PATCH, Api, ApiError
from kuberay.ray import Key, RayCluster
from kuberay.slots import Resources, fits
from kuberay.store import PODS, RAYCLUSTERS, Store

Object = dict[str, Any]

log = logging.getLogger("kuberay.autoscaler")

INTERVAL_S = 5.0
IDLE_TIMEOUT_S = 60


@dataclass
class _Decision:
    """``replicas`` and pods to delete, by group."""

    replicas: dict[str, int]
    delete: dict[str, list[str]]
    look_again_s: float | None = None


class Autoscaler:
    """Args:
    cluster: The simulated Ray of a RayCluster, or None.
    faster: How much faster than the real one it is, also in what it takes for idle.
    """

    def __init__(self, api: Api, store: Store, cluster: Callable[[Key], RayCluster | None], faster: float) -> None:
        self._api, self._store, self._cluster, self._faster = api, store, cluster, faster
        self.interval_s = INTERVAL_S / faster

    async def sync(self, key: Key) -> float | None:
        """One look; returns when it needs another one though nothing happens."""
        cluster, obj = self._cluster(key), self._store.get(RAYCLUSTERS, *key)
        if cluster is None or cluster.head is None or obj is None or not names.autoscaling(obj):
            return None
        if "deletionTimestamp" in obj["metadata"] or obj["spec"].get("suspend"):
            return None
        workers = self._workers(key)
        groups = names.worker_groups(obj)
        known = {group["groupName"] for group in groups}
        orphans = [pod["metadata"]["name"] for pod in workers if pod["metadata"]["labels"][names.GROUP] not in known]
        if orphans:
            log.error("%s: pods of groups that are not in the spec: %s", key, ", ".join(orphans))
            return self.interval_s
        present = {pod["metadata"]["name"] for pod in workers}
        if any(present & set(_to_delete(group)) for group in groups):
            return self.interval_s
        decision = self._decide(cluster, groups, workers)
        patch = _patch(groups, decision)
        if patch:
            path = RAYCLUSTERS.path(*key)
            try:
                self._store.put(RAYCLUSTERS, await self._api.patch(path, patch, JSON_PATCH))
            except ApiError as error:
                log.info("%s: %s", key, error)
            return self.interval_s
        return decision.look_again_s

    def _workers(self, key: Key) -> list[Object]:
        found = self._store.of_cluster(PODS, *key)
        return [pod for pod in found if pod["metadata"]["labels"].get(names.NODE_TYPE) == "worker"]

    def _decide(self, cluster: RayCluster, groups: list[Object], workers: list[Object]) -> _Decision:
        observed = Counter(pod["metadata"]["labels"][names.GROUP] for pod in workers)
        wanted = {}
        for group in groups:
            name = group["groupName"]
            asked = max(group.get("replicas") or 0, group.get("minReplicas") or 0)
            # Lowering ``replicas`` by hand does not delete pods: what is there counts.
            wanted[name] = max(asked, observed[name] // names.hosts(group))
        before = dict(wanted)
        self._launch(cluster, groups, observed, wanted)
        decision = _Decision(wanted, {})
        if wanted == before:
            self._shrink(cluster, groups, decision)
        for group in groups:
            most = group.get("maxReplicas", 2**31 - 1)
            decision.replicas[group["groupName"]] = min(decision.replicas[group["groupName"]], most)
        return decision

    def _launch(
        self, cluster: RayCluster, groups: list[Object], observed: Counter[str], wanted: dict[str, int]
    ) -> None:
        """Raise ``wanted`` by what replicas without a node need, beyond the nodes that are coming."""
        joined = Counter(node.group for node in cluster.serve.nodes.values())
        coming: list[Resources] = []
        for group in groups:
            offered = commands.ray_resources(group)
            late = wanted[group["groupName"]] * names.hosts(group) - joined[group["groupName"]]
            coming += [dict(offered) for _ in range(max(0, late))]
        for demand in cluster.serve.waiting():
            room = next((free for free in coming if fits(demand, free)), None)
            if room is None:
                for group in groups:
                    offered = commands.ray_resources(group)
                    name = group["groupName"]
                    if fits(demand, offered) and wanted[name] < group.get("maxReplicas", 2**31 - 1):
                        wanted[name] += 1
                        coming += [dict(offered) for _ in range(names.hosts(group))]
                        room = coming[-1]
                        break
            if room is not None:
                for name, amount in demand.items():
                    room[name] -= amount

    def _shrink(self, cluster: RayCluster, groups: list[Object], decision: _Decision) -> None:
        """Choose nodes that have been idle for long, down to each group's minimum, and those beyond its maximum."""
        now = time.time()
        waits = []
        for group in groups:
            name = group["groupName"]
            if names.hosts(group) > 1:
                continue
            timeout = self._idle_timeout(cluster.key, group)
            mine = [node for node in cluster.serve.nodes.values() if node.group == name]
            surplus = len(mine) - group.get("maxReplicas", 2**31 - 1)
            idle = sorted((node for node in cluster.serve.idle() if node.group == name), key=lambda one: one.idle_since)
            spare = decision.replicas[name] - (group.get("minReplicas") or 0)
            chosen = [node.name for node in idle if now - node.idle_since >= timeout][: max(0, spare)]
            busy = [node.name for node in mine if node.name not in chosen]
            chosen += busy[: max(0, surplus - len(chosen))]
            if chosen:
                decision.delete[name] = chosen
                decision.replicas[name] -= len(chosen)
            elif idle and spare > 0:
                waits.append(idle[0].idle_since + timeout - now)
        decision.look_again_s = max(0.05, min(waits)) if waits else None

    def _idle_timeout(self, key: Key, group: Object) -> float:
        obj = self._store.get(RAYCLUSTERS, *key)
        options = (obj or {}).get("spec", {}).get("autoscalerOptions") or {}
        seconds = group.get("idleTimeoutSeconds", options.get("idleTimeoutSeconds", IDLE_TIMEOUT_S))
        return float(seconds) / self._faster


def _to_delete(group: Object) -> list[str]:
    return (group.get("scaleStrategy") or {}).get("workersToDelete") or []


def _patch(groups: list[Object], decision: _Decision) -> list[Object]:
    """JSON patch operations; names that are deleted are taken out when something else is written."""
    patch: list[Object] = []
    for index, group in enumerate(groups):
        name, path = group["groupName"], f"/spec/workerGroupSpecs/{index}"
        if decision.replicas[name] != (group.get("replicas") or 0):
            operation = "replace" if "replicas" in group else "add"
            patch.append({"op": operation, "path": f"{path}/replicas", "value": decision.replicas[name]})
        if name in decision.delete:
            value = {"workersToDelete": decision.delete[name]}
            patch.append({"op": "add", "path": f"{path}/scaleStrategy", "value": value})
    if patch:
        for index, group in enumerate(groups):
            if _to_delete(group) and group["groupName"] not in decision.delete:
                path = f"/spec/workerGroupSpecs/{index}/scaleStrategy"
                patch.append({"op": "replace", "path": path, "value": {"workersToDelete": []}})
    return patch
