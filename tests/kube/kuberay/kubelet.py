"""Scheduler and kubelet for the pods of RayClusters: they get an address, start, become ready, or fail as told."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kuberay import commands, names, nodes, pod_status
from kuberay.addresses import Addresses
from kuberay.api import Api, ApiError
from kuberay.events import timestamp
from kuberay.http import DASHBOARD, PROXY
from kuberay.pod_control import over
from kuberay.ray import Head, Key, RayCluster
from kuberay.slots import Node
from kuberay.store import NAMESPACES, PODS, RAYCLUSTERS, SECRETS, Store

Object = dict[str, Any]

log = logging.getLogger("kuberay.kubelet")

OUTCOME_ANNOTATION = "kuberay-stand-in/outcome"
KUBELET_LABEL = "kuberay-stand-in/kubelet"
LOOK_AGAIN_S = 1.0
UNWRITTEN_S = 0.5
"""So long a pod stays Pending without a word about its containers."""


@dataclass
class _Pod:
    """What is known here of a pod."""

    uid: str
    cluster: Key
    ip: str = ""
    seen_at: float = 0.0
    begun_at: float | None = None
    joined: bool = False
    passed: bool = False
    """Its readiness probe passed, and has not failed often enough since."""
    failing_at: float | None = None
    head: str = ""
    """Uid of the head that it joined."""
    ports: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Rule:
    """``group`` is "headgroup" for the head, None for all."""

    namespace: str
    cluster: str
    group: str | None
    outcome: str


class Kubelet:
    """Args:
    cluster: The simulated Ray of a RayCluster, made when asked for first.
    start_s: From a pod's creation, or since its head runs, until its containers run.
    faster: How much faster than a real one it probes.
    """

    def __init__(
        self,
        api: Api,
        store: Store,
        addresses: Addresses,
        cluster: Callable[[Key], RayCluster],
        start_s: float,
        faster: float,
    ) -> None:
        self._api, self._store, self._addresses, self._cluster = api, store, addresses, cluster
        self._start_s, self._faster = start_s, faster
        self._pods: dict[Key, _Pod] = {}
        self._at: dict[str, tuple[RayCluster, str]] = {}
        self.rules: list[Rule] = []

    def at(self, ip: str) -> tuple[RayCluster, str] | None:
        """Whose pod has this address."""
        return self._at.get(ip)

    async def sync(self, key: Key) -> float | None:
        """Bring one pod a step further; returns when to look again."""
        pod = self._store.get(PODS, *key)
        known = self._pods.get(key)
        if known is not None and (pod is None or pod["metadata"]["uid"] != known.uid):
            self._end(key, known)
            known = None
        if pod is None or not self._ours(pod):
            return None
        if known is None:
            labels = pod["metadata"]["labels"]
            known = self._pods[key] = _Pod(
                pod["metadata"]["uid"], (key[0], labels[names.CLUSTER]), seen_at=asyncio.get_running_loop().time()
            )
        if over(pod) or "deletionTimestamp" in pod["metadata"]:
            self._leave(pod, known)
            await nodes.end(self._api, pod)
            return None
        if self._outcome(pod) != "unschedulable":
            await nodes.bind(self._api, pod, self._store.get(NAMESPACES, "", key[0]))
        status, again = await self._next(pod, known)
        if status is not None and _differs(pod["status"], status):
            await self._write(pod, status)
        return again

    async def _next(self, pod: Object, known: _Pod) -> tuple[Object | None, float | None]:
        """The pod's status, None while it is not worth a write, and when to look again."""
        now, outcome = timestamp(), self._outcome(pod)
        if outcome == "unschedulable":
            self._leave(pod, known)
            return pod_status.unscheduled(pod, now), None
        known.ip = known.ip or pod["status"].get("podIP") or self._addresses.new()
        if outcome == "Failed" or (outcome == "crash" and pod["spec"]["restartPolicy"] == "Never"):
            self._leave(pod, known)
            return pod_status.failed(pod, known.ip, now), None
        if outcome != "ok":
            self._leave(pod, known)
            reason = "CrashLoopBackOff" if outcome == "crash" else outcome
            return pod_status.waiting(pod, known.ip, now, reason), None
        if known.joined and self._lost(pod, known):
            self._leave(pod, known)
            if pod["spec"]["restartPolicy"] == "Never":
                return pod_status.failed(pod, known.ip, now), None
        if not known.joined:
            pause = self._pause(pod, known)
            if pause is None or pause > 0:
                if asyncio.get_running_loop().time() < known.seen_at + UNWRITTEN_S:
                    return None, UNWRITTEN_S if pause is None else pause
                return pod_status.starting(pod, known.ip, now), pause
            # Workers have the same, and come after the head.
            missing, token = await self._token(pod) if _is_head(pod) else ("", "")
            if missing:
                return pod_status.waiting(pod, known.ip, now, "CreateContainerConfigError", missing), LOOK_AGAIN_S
            if not await self._join(pod, known, token):
                return None, 0.01
        ready, again = self._ready(pod, known)
        return pod_status.running(pod, known.ip, now, ready=ready), again

    def _pause(self, pod: Object, known: _Pod) -> float | None:
        """How long it still takes to start; None: until its head runs, which tells."""
        cluster = self._cluster(known.cluster)
        if not _is_head(pod) and cluster.head is None:
            known.begun_at = None
            return None
        now = asyncio.get_running_loop().time()
        if known.begun_at is None:
            known.begun_at = now
        return max(0.0, known.begun_at + self._start_s - now)

    def _lost(self, pod: Object, known: _Pod) -> bool:
        """Whether it belongs to an earlier head, which the present one does not know."""
        head = self._cluster(known.cluster).head
        if _is_head(pod) or head is None or head.uid == known.head:
            return False
        obj = self._store.get(RAYCLUSTERS, *known.cluster)
        return obj is not None and not names.fault_tolerant(obj)

    async def _join(self, pod: Object, known: _Pod, token: str) -> bool:
        """False: its address was taken, it has another one now."""
        cluster, name = self._cluster(known.cluster), pod["metadata"]["name"]
        obj = self._store.get(RAYCLUSTERS, *known.cluster)
        if obj is None:
            return True
        for port, listens in ((DASHBOARD, _is_head(pod)), (PROXY, True)):
            kind = "dashboard" if port == DASHBOARD else "serve"
            if not listens or cluster.behaviour[kind].mood == "refuse":
                continue
            if not await self._addresses.listen(known.ip, port):
                self._close(known)
                known.ip = self._addresses.new()
                return False
            known.ports.append(port)
        self._at[known.ip] = (cluster, name)
        known.joined = True
        if _is_head(pod):
            version = obj["spec"].get("rayVersion", "")
            head = Head(known.uid, name, known.ip, token, version)
            cluster.head_is(head, keep=names.fault_tolerant(obj))
            group = obj["spec"]["headGroupSpec"]
        else:
            known.head = cluster.head.uid if cluster.head is not None else ""
            wanted = pod["metadata"]["labels"][names.GROUP]
            found = (one for one in names.worker_groups(obj) if one["groupName"] == wanted)
            group = next(found, {"template": {"spec": pod["spec"]}})
        # What the pod was made from, not what its group says by now.
        made_from = {**group, "template": {"spec": pod["spec"]}}
        kind = pod["metadata"]["labels"][names.GROUP]
        cluster.join(Node(name, kind, known.ip, commands.ray_resources(made_from)))
        return True

    def _ready(self, pod: Object, known: _Pod) -> tuple[bool, float | None]:
        """At once when its probe passes, no more once that has failed as often as it may; and when to look again."""
        now = asyncio.get_running_loop().time()
        if self._passes_probe(pod, known):
            known.passed, known.failing_at = True, None
        elif known.passed:
            probe = pod["spec"]["containers"][0]["readinessProbe"]
            known.failing_at = now if known.failing_at is None else known.failing_at
            patience_s = probe.get("failureThreshold", 3) * probe.get("periodSeconds", 10) / self._faster
            if (left := known.failing_at + patience_s - now) > 0:
                return True, left
            known.passed = False
        return known.passed, None

    def _passes_probe(self, pod: Object, known: _Pod) -> bool:
        """A probe of Serve's proxy passes where Serve has a replica; any other probe at once."""
        probe = pod["spec"]["containers"][0].get("readinessProbe") or {}
        if (probe.get("httpGet") or {}).get("path") != "/-/healthz":
            return True
        return pod["metadata"]["name"] in self._cluster(known.cluster).serve.proxied()

    async def _token(self, pod: Object) -> tuple[str, str]:
        """The Secret that is missing or "", and the token or ""."""
        for one in pod["spec"]["containers"][0].get("env", []):
            reference = one.get("valueFrom", {}).get("secretKeyRef")
            if one["name"] != "RAY_AUTH_TOKEN" or not reference:
                continue
            try:
                secret = await self._api.get(SECRETS.path(pod["metadata"]["namespace"], reference["name"]))
                return "", base64.b64decode(secret["data"][reference["key"]]).decode()
            except (ApiError, KeyError):
                return reference["name"], ""
        return "", ""

    async def set_ports(self, cluster: RayCluster, port: int, *, listening: bool) -> None:
        """All pods of a cluster begin or cease to listen on ``port``."""
        for known in self._pods.values():
            if known.cluster != cluster.key or not known.joined:
                continue
            head = cluster.head is not None and cluster.head.ip == known.ip
            if listening and (port == PROXY or head):
                await self._addresses.listen(known.ip, port)
                known.ports.append(port)
            elif not listening:
                self._addresses.refuse(known.ip, port)

    def pods_of(self, cluster: Key) -> list[Key]:
        return [key for key, known in self._pods.items() if known.cluster == cluster]

    def _outcome(self, pod: Object) -> str:
        metadata = pod["metadata"]
        named: str = metadata.get("annotations", {}).get(OUTCOME_ANNOTATION, "")
        if named:
            return named
        where = (metadata["namespace"], metadata["labels"][names.CLUSTER])
        group = metadata["labels"][names.GROUP]
        for rule in reversed(self.rules):
            if (rule.namespace, rule.cluster) == where and rule.group in (None, group):
                return rule.outcome
        return "ok"

    def _ours(self, pod: Object) -> bool:
        metadata = pod["metadata"]
        owners = metadata.get("ownerReferences", [])
        if names.GROUP not in metadata["labels"] or not any(one["kind"] == "RayCluster" for one in owners):
            return False
        namespace = self._store.get(NAMESPACES, "", metadata["namespace"]) or {"metadata": {}}
        labels: dict[str, str] = namespace["metadata"].get("labels", {})
        return labels.get(KUBELET_LABEL) != "off"

    def _end(self, key: Key, known: _Pod) -> None:
        del self._pods[key]
        self._depart(key[1], known)

    def _leave(self, pod: Object, known: _Pod) -> None:
        self._depart(pod["metadata"]["name"], known)

    def _depart(self, name: str, known: _Pod) -> None:
        self._close(known)
        self._at.pop(known.ip, None)
        known.begun_at = None
        if not known.joined:
            return
        known.joined = False
        cluster = self._cluster(known.cluster)
        cluster.leave(name)
        if cluster.head is not None and cluster.head.uid == known.uid:
            obj = self._store.get(RAYCLUSTERS, *known.cluster)
            cluster.head_is(None, keep=obj is not None and names.fault_tolerant(obj))

    def _close(self, known: _Pod) -> None:
        for port in known.ports:
            self._addresses.refuse(known.ip, port)
        known.ports.clear()

    async def _write(self, pod: Object, status: Object) -> None:
        metadata = pod["metadata"]
        path = PODS.path(metadata["namespace"], metadata["name"], "status")
        try:
            patch = {"metadata": {"uid": metadata["uid"]}, "status": status}
            self._store.put(PODS, await self._api.patch(path, patch))
        except ApiError as error:
            if error.code not in (404, 409):
                raise


def _is_head(pod: Object) -> bool:
    return bool(pod["metadata"]["labels"].get(names.NODE_TYPE) == "head")


def _differs(before: Object, after: Object) -> bool:
    return any(before.get(key) != value for key, value in after.items())
