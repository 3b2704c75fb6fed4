"""The stand-in as a whole: watches, queues, and what tests may do to it. See the package for how to use it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simulated_serve import Timing

from kuberay import names
from kuberay.addresses import Addresses
from kuberay.api import Api
from kuberay.autoscaler import Autoscaler
from kuberay.controller import Controller
from kuberay.http import DASHBOARD, PROXY, Answers
from kuberay.kubelet import Kubelet, Rule
from kuberay.pod_status import OUTCOMES
from kuberay.ray import Behaviour, Key, RayCluster
from kuberay.store import KINDS, NAMESPACES, PODS, RAYCLUSTERS, Store
from kuberay.work_queue import WorkQueue

Object = dict[str, Any]

CONTROLLER_LABEL = "kuberay-stand-in/controller"
RESYNC_S = 300.0
OWNED = ("pods", "services", "secrets")
PARTS = ("controller", "kubelet", "autoscaler")
SIMULATED = ("kubelet", "autoscaler")
MOODS = ("ok", "slow", "hang", "refuse", "error")
PORTS = {"dashboard": DASHBOARD, "serve": PROXY}


@dataclass(frozen=True)
class Pace:
    """Args:
    faster: Than KubeRay, its autoscaler and Serve really are.
    pod_start_s: From a pod's creation until its containers run; not made faster.
    workers: RayClusters that are reconciled at a time; KubeRay's default is 1.
    events: Without, only warnings are emitted, and the API server has less to do.
    """

    faster: float = 10.0
    pod_start_s: float = 0.1
    workers: int = 8
    events: bool = True


class StandIn:
    """One stand-in in a running event loop. `run` does not end by itself; the rest may be called while it runs.

    Args:
        real_pods: Nodes run the pods, and Ray in them with its own autoscaler: none of these is played.
    """

    def __init__(self, kubeconfig: Path, pace: Pace, *, real_pods: bool = False) -> None:
        self._api = Api(kubeconfig)
        self._timing = Timing().faster(pace.faster)
        self._resync_s = RESYNC_S / pace.faster
        self._clusters: dict[Key, RayCluster] = {}
        self._seen: dict[Key, tuple[str, frozenset[str]]] = {}
        self._store = Store(self._api, self._changed)
        self._addresses = Addresses(self._answer)
        self._kubelet = Kubelet(self._api, self._store, self._addresses, self._cluster, pace.pod_start_s, pace.faster)
        self._answers = Answers(self._kubelet.at)
        self._controller = Controller(self._api, self._store, pace.faster, pace.events, has_jobs=real_pods)
        self._autoscaler = Autoscaler(self._api, self._store, self._clusters.get, pace.faster)
        self._queues: dict[str, WorkQueue[Key]] = {
            "controller": WorkQueue("controller", lambda key: self._controller.reconcile(*key), pace.workers),
            "kubelet": WorkQueue("kubelet", self._kubelet.sync, pace.workers),
            "autoscaler": WorkQueue("autoscaler", self._autoscaler.sync, 4),
        }
        if real_pods:
            for part in SIMULATED:
                del self._queues[part]
        self.ready = asyncio.Event()

    async def stop(self) -> None:
        """To be called before `run` is cancelled: leaves no connection behind."""
        await self._api.disconnect()

    async def run(self) -> None:
        """Until cancelled."""
        async with self._api:
            try:
                async with asyncio.TaskGroup() as group:
                    for kind in KINDS:
                        group.create_task(self._store.run(kind))
                    # Nothing is decided on half of the objects.
                    await self._store.synced()
                    for queue in self._queues.values():
                        group.create_task(queue.run())
                    group.create_task(self._resync())
                    self.ready.set()
            finally:
                await self._addresses.close()
                for cluster in self._clusters.values():
                    cluster.close()

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self._resync_s)
            for obj in self._store.all(RAYCLUSTERS):
                self._enqueue(_key(obj))

    # -- what happens

    async def _answer(self, ip: str, port: int, request: Any) -> Any:
        return await self._answers.answer(ip, port, request)

    def _cluster(self, key: Key) -> RayCluster:
        if key not in self._clusters:
            self._clusters[key] = RayCluster(key, self._timing, self._ray_changed)
        return self._clusters[key]

    def _ray_changed(self, cluster: RayCluster) -> None:
        """Something in a simulated Ray happened; pods may have become ready, and nodes may be wanted."""
        proxied = frozenset(cluster.serve.proxied())
        seen = (cluster.head.uid if cluster.head else "", proxied)
        if seen != self._seen.get(cluster.key):
            self._seen[cluster.key] = seen
            for pod in self._kubelet.pods_of(cluster.key):
                self._add("kubelet", pod)
        obj = self._store.get(RAYCLUSTERS, *cluster.key)
        if obj is not None and names.autoscaling(obj):
            self._add("autoscaler", cluster.key, self._autoscaler.interval_s)

    def _changed(self, kind: str, before: Object | None, after: Object | None) -> None:
        """An object is new, different or gone."""
        obj = after or before
        assert obj is not None
        if kind == RAYCLUSTERS.plural:
            if after is None:
                self._gone(_key(obj))
                self._enqueue(_key(obj))
            elif before is None or _matters(before) != _matters(after):
                self._enqueue(_key(obj))
                if names.autoscaling(obj):
                    self._add("autoscaler", _key(obj), self._autoscaler.interval_s)
        elif kind in OWNED:
            if kind == PODS.plural:
                self._add("kubelet", _key(obj))
            for owner in obj["metadata"].get("ownerReferences", []):
                if owner["kind"] == "RayCluster" and owner.get("controller"):
                    self._enqueue((obj["metadata"]["namespace"], owner["name"]))
        elif kind == NAMESPACES.plural and after is not None and before is not None:
            self._namespace_changed(obj["metadata"]["name"])

    def _namespace_changed(self, namespace: str) -> None:
        for kind, queue in ((RAYCLUSTERS, "controller"), (PODS, "kubelet")):
            for obj in self._store.all(kind):
                if obj["metadata"]["namespace"] == namespace:
                    if queue == "controller":
                        self._enqueue(_key(obj))
                    else:
                        self._add(queue, _key(obj))

    def _gone(self, key: Key) -> None:
        self._seen.pop(key, None)
        cluster = self._clusters.get(key)
        if cluster is not None:
            cluster.close()
            # Its log of PUTs stays for those who ask later.
            cluster.head_is(None, keep=False)

    def _enqueue(self, key: Key) -> None:
        namespace = self._store.get(NAMESPACES, "", key[0]) or {"metadata": {}}
        if namespace["metadata"].get("labels", {}).get(CONTROLLER_LABEL) != "off":
            self._add("controller", key)

    def _add(self, part: str, key: Key, after: float = 0.0) -> None:
        if part in self._queues:
            self._queues[part].add(key, after)

    # -- what tests may do; all arguments and results are JSON

    async def pause(self, parts: Iterable[str] = PARTS) -> None:
        for part in self._queues.keys() & set(parts):
            self._queues[part].pause()

    async def resume(self, parts: Iterable[str] = PARTS) -> None:
        for part in self._queues.keys() & set(parts):
            self._queues[part].resume()

    async def pods(self, namespace: str, cluster: str, outcome: str, group: str | None = None) -> None:
        if outcome not in OUTCOMES:
            raise ValueError(f"outcome {outcome!r} is none of {OUTCOMES}")
        self._kubelet.rules = [
            rule
            for rule in self._kubelet.rules
            if (rule.namespace, rule.cluster) != (namespace, cluster) or group not in (None, rule.group)
        ]
        self._kubelet.rules.append(Rule(namespace, cluster, group, outcome))
        for pod in self._store.of_cluster(PODS, namespace, cluster):
            self._add("kubelet", _key(pod))

    async def behave(self, namespace: str, cluster: str, port: str, mood: str, seconds: float = 0.0) -> None:
        if mood not in MOODS:
            raise ValueError(f"mood {mood!r} is none of {MOODS}")
        found = self._cluster((namespace, cluster))
        found.behaviour[port] = Behaviour(mood, seconds)  # type: ignore[arg-type]
        await self._kubelet.set_ports(found, PORTS[port], listening=mood != "refuse")

    async def ray_version(self, namespace: str, cluster: str, version: str) -> None:
        self._cluster((namespace, cluster)).version = version

    async def puts(self, namespace: str, cluster: str) -> Object:
        log = self._cluster((namespace, cluster)).puts
        return {"count": log.count, "last": [asdict(put) for put in log.last]}

    async def put_counts(self) -> dict[str, int]:
        return {"/".join(key): cluster.puts.count for key, cluster in self._clusters.items()}

    async def look(self, namespace: str, cluster: str) -> Object:
        found = self._cluster((namespace, cluster))
        found.serve.settle()
        return {
            "head": asdict(found.head) if found.head else None,
            "nodes": {name: asdict(node) for name, node in found.serve.nodes.items()},
            "gets": found.gets,
            "waiting": found.demand(),
            "problems": list(found.serve.problems),
            "applications": {
                name: {
                    "replicas": [{"id": r.id, "state": r.state, "node": r.node} for r in application.replicas],
                    "deleting": application.deleting,
                    "config": application.config,
                }
                for name, application in found.serve.applications.items()
            },
        }

    async def callers(self, namespace: str, cluster: str, every_s: float) -> None:
        self._cluster((namespace, cluster)).call_every(every_s)

    async def change_serve(self, namespace: str, cluster: str, what: str, application: str) -> None:
        found = self._cluster((namespace, cluster))
        actions = {
            "delete": found.serve.delete_by_hand,
            "edit": found.serve.edit_by_hand,
            "kill-replica": found.serve.kill_replica,
            "stick": found.serve.stuck.add,
            "unstick": found.serve.stuck.discard,
        }
        actions[what](application)
        found.touch()


def _key(obj: Object) -> Key:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _matters(cluster: Object) -> Object:
    """KubeRay looks again when one of these changes, not at every status."""
    metadata = cluster["metadata"]
    keys = ("uid", "generation", "labels", "annotations", "deletionTimestamp", "finalizers")
    return {key: metadata.get(key) for key in keys}
