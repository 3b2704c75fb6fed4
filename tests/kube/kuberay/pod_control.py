"""Which pods a RayCluster is to have, and the steps to there."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from typing import Any

from kuberay import names, pods, status
from kuberay.api import Api, ApiError
from kuberay.events import Events
from kuberay.status import FailureError
from kuberay.store import PODS, Store

Object = dict[str, Any]

TERMINAL = ("Failed", "Succeeded")
NODE_TYPES = ("head", "worker", "redis-cleanup")
#: What may change without a restart, also with the strategy Recreate.
SCALING = ("replicas", "minReplicas", "maxReplicas")


class PodControl:
    """Creates and deletes the pods of RayClusters.

    Args:
        patience_s: How long KubeRay looks for a pod that it made before it makes another one; 30 s there.
    """

    def __init__(self, api: Api, store: Store, events: Events, patience_s: float) -> None:
        self._api, self._store, self._events, self._patience_s = api, store, events, patience_s
        self._made: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
        """By RayCluster, group and pod: when it was made, until it was seen."""

    def forget(self, namespace: str, cluster: str) -> None:
        """Do not look for pods any more that were made."""
        self._made.pop((namespace, cluster), None)

    def _looks_for(self, cluster: Object, group: str) -> bool:
        """Whether a pod that was made has not been seen yet. One that vanishes at once is looked for in vain."""
        namespace = cluster["metadata"]["namespace"]
        made = self._made.get((namespace, cluster["metadata"]["name"]), {}).get(group, {})
        now = time.monotonic()
        for name, at in list(made.items()):
            if self._store.get(PODS, namespace, name) is None and now - at < self._patience_s:
                return True
            del made[name]
        return False

    def of_cluster(self, cluster: Object) -> list[Object]:
        """Every pod with the cluster's label and a node type, whoever made it."""
        metadata = cluster["metadata"]
        found = self._store.of_cluster(PODS, metadata["namespace"], metadata["name"])
        return [pod for pod in found if pod["metadata"]["labels"].get(names.NODE_TYPE) in NODE_TYPES]

    async def delete_all(self, cluster: Object, *, of_ray: bool = False) -> bool:
        """Everything with the cluster's label, if KubeRay sees at least one pod. True while there are some.

        Args:
            of_ray: Only heads and workers.
        """
        present = self.of_cluster(cluster)
        if of_ray:
            present = [pod for pod in present if pod["metadata"]["labels"][names.NODE_TYPE] in NODE_TYPES[:2]]
        if any("deletionTimestamp" not in pod["metadata"] for pod in present):
            namespace = cluster["metadata"]["namespace"]
            selector = f"{names.CLUSTER}={cluster['metadata']['name']}"
            selector += f",{names.NODE_TYPE} in ({','.join(NODE_TYPES[:2])})" if of_ray else ""
            await self._api.request("DELETE", PODS.path(namespace), {}, labelSelector=selector)
        return bool(present)

    async def reconcile(self, cluster: Object) -> None:
        """Raises `FailureError` where it has to stop, `ApiError` where reads fail."""
        suspension = status.suspended(cluster.get("status") or {})
        where = f"{cluster['metadata']['namespace']}/{cluster['metadata']['name']}"
        if suspension == "RayClusterSuspending":
            await self.delete_all(cluster)
            note = f"Deleted Pods for RayCluster {where} due to suspension"
            await self._events.emit(cluster, "Normal", "DeletedPod", "Delete", note)
            return
        if suspension or cluster["spec"].get("suspend"):
            return
        if self._must_recreate(cluster):
            await self.delete_all(cluster)
            note = f"Deleted all Pods for RayCluster {where} due to spec change with Recreate upgradeStrategy"
            await self._events.emit(cluster, "Normal", "DeletedPod", "Delete", note)
            self.forget(cluster["metadata"]["namespace"], cluster["metadata"]["name"])
            return
        if not self._looks_for(cluster, names.HEAD_GROUP):
            await self._head(cluster)
        for group in names.worker_groups(cluster):
            if not self._looks_for(cluster, group["groupName"]):
                await self._group(cluster, group)

    def _must_recreate(self, cluster: Object) -> bool:
        if (cluster["spec"].get("upgradeStrategy") or {}).get("type") != "Recreate":
            return False
        head = status.head_of(self.of_cluster(cluster))
        made_from = (head or {}).get("metadata", {}).get("annotations", {}).get(names.RECREATE_HASH, "")
        return bool(made_from) and made_from != spec_hash(cluster)

    async def _head(self, cluster: Object) -> None:
        heads = [pod for pod in self.of_cluster(cluster) if pod["metadata"]["labels"][names.NODE_TYPE] == "head"]
        if len(heads) > 1:
            raise FailureError("", f"{len(heads)} head pods found. Please delete extra head pods")
        if not heads:
            await self._create(cluster, pods.head_pod(cluster, spec_hash(cluster)), "Head")
        elif over(heads[0]):
            await self._delete(cluster, heads[0], "Head")
            raise FailureError("", f"The head Pod {heads[0]['metadata']['name']} has ended")

    async def _group(self, cluster: Object, group: Object) -> None:
        present = [
            pod for pod in self.of_cluster(cluster) if pod["metadata"]["labels"].get(names.GROUP) == group["groupName"]
        ]
        if group.get("suspend"):
            for pod in present:
                await self._delete(cluster, pod, "Worker")
            return
        if names.hosts(group) > 1:
            await self._replicas_of_hosts(cluster, group, present)
            return
        ended = [pod for pod in present if over(pod)]
        for pod in ended:
            await self._delete(cluster, pod, "Worker")
        if ended:
            raise FailureError("", f"delete {len(ended)} unhealthy worker Pods")
        chosen = (group.get("scaleStrategy") or {}).get("workersToDelete") or []
        by_name = {pod["metadata"]["name"]: pod for pod in present}
        for name in chosen:
            if name in by_name:
                await self._delete(cluster, by_name.pop(name), "Worker", f"Deleted pod {name}")
        kept = list(by_name.values())
        missing = names.desired_pods(group) - len(kept)
        taken = {pod["metadata"]["labels"].get(names.REPLICA_INDEX) for pod in kept}
        free = (index for index in range(len(kept) + max(missing, 0) + 1) if str(index) not in taken)
        for _ in range(missing):
            await self._create(cluster, pods.worker_pod(cluster, group, next(free)), "Worker")
        # With the autoscaler only the autoscaler chooses.
        if missing < 0 and not names.autoscaling(cluster):
            for pod in kept[:-missing]:
                await self._delete(cluster, pod, "Worker", f"Deleted Pod {pod['metadata']['name']}")

    async def _replicas_of_hosts(self, cluster: Object, group: Object, present: list[Object]) -> None:
        """A replica is several pods that come and go together."""
        replicas: dict[str, list[Object]] = {}
        for pod in present:
            replicas.setdefault(pod["metadata"]["labels"].get(names.REPLICA_NAME, ""), []).append(pod)
        chosen = set((group.get("scaleStrategy") or {}).get("workersToDelete") or [])
        wanted = names.desired_pods(group) // names.hosts(group)
        broken = {
            name
            for name, members in replicas.items()
            if len(members) < names.hosts(group)
            or any(over(pod) or pod["metadata"]["name"] in chosen for pod in members)
        }
        whole = [name for name in replicas if name not in broken]
        surplus = set() if names.autoscaling(cluster) else set(whole[wanted:])
        for name in broken | surplus:
            for pod in replicas[name]:
                await self._delete(cluster, pod, "Worker")
        taken = {replicas[name][0]["metadata"]["labels"][names.REPLICA_INDEX] for name in whole}
        free = (index for index in range(2 * wanted + len(taken) + 1) if str(index) not in taken)
        for _ in range(wanted - len(whole)):
            index, name = next(free), f"{group['groupName']}-{secrets.token_hex(3)}"
            for host in range(names.hosts(group)):
                await self._create(cluster, pods.worker_pod(cluster, group, index, name, host), "Worker")

    async def _create(self, cluster: Object, pod: Object, kind: str) -> None:
        namespace = cluster["metadata"]["namespace"]
        try:
            made = await self._api.create(PODS.path(namespace), pod)
        except ApiError as error:
            what = "head Pod" if kind == "Head" else "worker Pod for the cluster"
            name = "" if kind == "Head" else cluster["metadata"]["name"]
            note = f"Failed to create {what} {namespace}/{name}, {error}"
            await self._events.emit(cluster, "Warning", f"FailedToCreate{kind}Pod", "Create", note)
            raise FailureError(f"FailedCreate{kind}Pod", str(error)) from error
        self._store.put(PODS, made)
        groups = self._made.setdefault((namespace, cluster["metadata"]["name"]), {})
        group = made["metadata"]["labels"][names.GROUP]
        groups.setdefault(group, {})[made["metadata"]["name"]] = time.monotonic()
        note = f"Created {kind.lower()} Pod {namespace}/{made['metadata']['name']}"
        await self._events.emit(cluster, "Normal", f"Created{kind}Pod", "Create", note)

    async def _delete(self, cluster: Object, pod: Object, kind: str, note: str = "") -> None:
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        if "deletionTimestamp" in pod["metadata"]:
            return
        try:
            left = await self._api.delete(PODS.path(namespace, name), pod["metadata"]["uid"])
        except ApiError as error:
            if error.code in (404, 409):
                self._store.drop(PODS, pod)
                return
            note = f"Failed deleting {kind.lower()} Pod {namespace}/{name}, {error}"
            await self._events.emit(cluster, "Warning", f"FailedToDelete{kind}Pod", "Delete", note)
            raise FailureError(f"FailedDelete{kind}Pod", str(error)) from error
        if left.get("kind") == "Pod" and (left["metadata"].get("finalizers") or left["spec"].get("nodeName")):
            self._store.put(PODS, left)
        else:
            self._store.drop(PODS, pod)
        phase = pod.get("status", {}).get("phase", "")
        note = note or f"Deleted {kind.lower()} Pod {namespace}/{name}; Pod status: {phase}"
        await self._events.emit(cluster, "Normal", f"Deleted{kind}Pod", "Delete", note)


def over(pod: Object) -> bool:
    """Whether the pod will not come back by itself."""
    found = pod.get("status", {})
    if found.get("phase") in TERMINAL:
        return True
    ray = pod["spec"]["containers"][0]["name"]
    ended = any(
        one["name"] == ray and "terminated" in one.get("state", {}) for one in found.get("containerStatuses", [])
    )
    return found.get("phase") == "Running" and ended and pod["spec"].get("restartPolicy") == "Never"


def spec_hash(cluster: Object) -> str:
    """Of everything but what scales and what queueing systems add."""
    spec = json.loads(json.dumps(cluster["spec"]))
    spec.pop("upgradeStrategy", None)
    groups = spec.get("workerGroupSpecs") or []
    for group in groups:
        for key in SCALING:
            group.pop(key, None)
        (group.get("scaleStrategy") or {}).pop("workersToDelete", None)
        # Nothing at all and nothing to delete are one.
        if not group.get("scaleStrategy"):
            group.pop("scaleStrategy", None)
    for group in (spec["headGroupSpec"], *groups):
        for key in ("tolerations", "schedulingGates"):
            group["template"]["spec"].pop(key, None)
    return hashlib.sha1(json.dumps(spec, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
