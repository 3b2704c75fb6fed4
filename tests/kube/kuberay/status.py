"""The status that KubeRay writes, from a RayCluster and its pods. Pure."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from kuberay import names, quantity

Object = dict[str, Any]

#: Two statuses that differ only elsewhere are one to KubeRay, so that ``observedGeneration`` may lag.
COMPARED = (
    "state",
    "reason",
    "readyWorkerReplicas",
    "availableWorkerReplicas",
    "desiredWorkerReplicas",
    "minWorkerReplicas",
    "maxWorkerReplicas",
    "endpoints",
    "head",
    "conditions",
)


class FailureError(Exception):
    """A reconcile that ended early. ``reason`` is that of condition ReplicaFailure, "" if it does not show there."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}\n{message}" if reason else message)


def calculate(
    cluster: Object, pods: Sequence[Object], services: Sequence[Object], failure: FailureError | None, now: str
) -> Object:
    """The next status.

    Args:
        pods: All with the cluster's label, whoever made them.
        services: Those that look like the head's; there must be one.
        failure: Why this reconcile ended early.
        now: RFC 3339.
    """
    status: Object = copy.deepcopy(cluster.get("status") or {})
    conditions = _Conditions(status.setdefault("conditions", []), now)
    if failure is None:
        conditions.remove("ReplicaFailure")
    elif failure.reason:
        conditions.set("ReplicaFailure", True, failure.reason, str(failure))
    status["observedGeneration"] = cluster["metadata"]["generation"]
    counts = _counts(cluster, pods)
    # Zeros are left out of the JSON, as Go's omitempty does.
    status |= {key: value or None for key, value in counts.items()} | _resources(cluster)
    running = _all_ready(pods)
    before = status.get("state", "")
    # Nothing takes this back but suspension.
    if failure is None and running and len(pods) == counts["desiredWorkerReplicas"] + 1:
        status["state"] = "ready"
        status.pop("reason", None)
    head = head_of(pods)
    _head_condition(conditions, head)
    suspension = suspended(status)
    if not conditions.true("RayClusterProvisioned") and suspension != "RayClusterSuspended":
        if running:
            message = "All Ray Pods are ready for the first time"
            conditions.set("RayClusterProvisioned", True, "AllPodRunningAndReadyFirstTime", message)
        else:
            message = "RayCluster Pods are being provisioned for first time"
            conditions.set("RayClusterProvisioned", False, "RayClusterPodsProvisioning", message)
    _suspension(conditions, suspension, cluster["spec"].get("suspend"), empty=not pods)
    if cluster["spec"].get("suspend") and not pods:
        status["state"] = "suspended"
    status["endpoints"] = {**status.get("endpoints", {}), **_endpoints(services)} or None
    status["head"] = _head(head, services)
    status["lastUpdateTime"] = now
    if status.get("state", "") != before:
        status["stateTransitionTimes"] = {**status.get("stateTransitionTimes", {}), status["state"]: now}
    return {key: value for key, value in status.items() if value is not None}


def differs(before: Object, after: Object) -> bool:
    """Whether KubeRay would write ``after``."""
    return any((before.get(key) or None) != (after.get(key) or None) for key in COMPARED)


def suspended(status: Object) -> str:
    """The one of both conditions of suspension that is true, or ""."""
    for condition in status.get("conditions", []):
        if condition["type"] in ("RayClusterSuspending", "RayClusterSuspended") and condition["status"] == "True":
            kind: str = condition["type"]
            return kind
    return ""


def head_of(pods: Sequence[Object]) -> Object | None:
    return next((pod for pod in pods if pod["metadata"]["labels"].get(names.NODE_TYPE) == "head"), None)


def pod_ready(pod: Object) -> bool:
    return _condition(pod, "Ready").get("status") == "True"


def running(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") == "Running"


class _Conditions:
    """A list of conditions whose transition times move only with their status."""

    def __init__(self, conditions: list[Object], now: str) -> None:
        self._list, self._now = conditions, now

    def true(self, kind: str) -> bool:
        return any(one["type"] == kind and one["status"] == "True" for one in self._list)

    def remove(self, kind: str) -> None:
        self._list[:] = [one for one in self._list if one["type"] != kind]

    def set(self, kind: str, value: bool | str, reason: str, message: str = "") -> None:
        status = value if isinstance(value, str) else str(value)
        for one in self._list:
            if one["type"] == kind:
                if one["status"] != status:
                    one["lastTransitionTime"] = self._now
                one |= {"status": status, "reason": reason, "message": message}
                return
        self._list.append(
            {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": self._now}
        )


def _counts(cluster: Object, pods: Sequence[Object]) -> dict[str, int]:
    groups = names.worker_groups(cluster)
    active = [group for group in groups if not group.get("suspend")]
    workers = [pod for pod in pods if pod["metadata"]["labels"].get(names.NODE_TYPE) == "worker"]
    most = sum(group.get("maxReplicas", 2**31 - 1) * names.hosts(group) for group in active)
    return {
        "readyWorkerReplicas": sum(running(pod) and pod_ready(pod) for pod in workers),
        "availableWorkerReplicas": sum(running(pod) for pod in workers),
        "desiredWorkerReplicas": sum(names.desired_pods(group) for group in groups),
        "minWorkerReplicas": sum((group.get("minReplicas") or 0) * names.hosts(group) for group in active),
        "maxWorkerReplicas": min(most, 2**31 - 1),
    }


def _resources(cluster: Object) -> Object:
    amounts = [quantity.total(map(quantity.container_resources, _containers(cluster["spec"]["headGroupSpec"])))]
    for group in names.worker_groups(cluster):
        if group.get("suspend"):
            continue
        one = quantity.total(map(quantity.container_resources, _containers(group)))
        pods = names.hosts(group) * (group.get("replicas") or 0)
        amounts.append({name: value * pods for name, value in one.items()})
    total = quantity.total(amounts)
    gpus = sum((value for name, value in total.items() if name.endswith("gpu")), start=quantity.parse(0))
    return {
        "desiredCPU": quantity.written(total.get("cpu", quantity.parse(0)), binary=False),
        "desiredMemory": quantity.written(total.get("memory", quantity.parse(0)), binary=True),
        "desiredGPU": quantity.written(gpus, binary=False),
        "desiredTPU": quantity.written(total.get("google.com/tpu", quantity.parse(0)), binary=False),
    }


def _containers(group: Object) -> list[Object]:
    return group["template"]["spec"]["containers"]


def _all_ready(pods: Sequence[Object]) -> bool:
    # A pod without the condition counts as ready.
    return bool(pods) and all(running(pod) and _condition(pod, "Ready").get("status", "True") == "True" for pod in pods)


def _condition(pod: Object, kind: str) -> Object:
    return next((one for one in pod.get("status", {}).get("conditions", []) if one["type"] == kind), {})


def _head_condition(conditions: _Conditions, head: Object | None) -> None:
    if head is None:
        conditions.set("HeadPodReady", False, "HeadPodNotFound", "Head Pod not found")
        return
    ready = _condition(head, "Ready")
    reason, message = ready.get("reason", ""), ready.get("message", "")
    if ready.get("status") == "True" and not reason:
        reason = "HeadPodRunningAndReady"
    if reason == "ContainersNotReady":
        # The first container that says why.
        for container in head["status"].get("containerStatuses", []):
            state = container.get("state", {})
            why = state.get("waiting") or state.get("terminated")
            if why:
                text = f"{container['name']}: {why.get('message', '')}"
                reason, message = why.get("reason", ""), f"{message}; {text}" if message else text
                break
    conditions.set("HeadPodReady", ready.get("status", "False"), reason or "Unknown", message)


def _suspension(conditions: _Conditions, before: str, wished: bool | None, *, empty: bool) -> None:
    """False/False, then Suspending, which nothing stops until all pods are gone, then Suspended."""
    if before == "RayClusterSuspending":
        if empty:
            message = "RayCluster has been suspended"
            conditions.set("RayClusterProvisioned", False, "RayClusterPodsProvisioning", message)
            conditions.set("RayClusterSuspending", False, "RayClusterSuspending")
            conditions.set("RayClusterSuspended", True, "RayClusterSuspended")
    elif before == "RayClusterSuspended":
        if wished is False:
            conditions.set("RayClusterSuspended", False, "RayClusterSuspended")
    else:
        conditions.set("RayClusterSuspended", False, "RayClusterSuspended")
        conditions.set("RayClusterSuspending", bool(wished), "RayClusterSuspending")


def _endpoints(services: Sequence[Object]) -> dict[str, str]:
    if not services:
        return {}
    endpoints = {}
    for port in services[0]["spec"].get("ports", []):
        if port.get("name"):
            endpoints[port["name"]] = str(port.get("nodePort") or port.get("targetPort") or port["port"])
    return endpoints


def _head(head: Object | None, services: Sequence[Object]) -> Object:
    """Raises `FailureError` unless there is one Service."""
    if len(services) != 1:
        raise FailureError("", "unable to find head service" if not services else "found multiple head services")
    pod_ip = (head or {}).get("status", {}).get("podIP", "")
    address = services[0]["spec"].get("clusterIP", "")
    found = {
        "podIP": pod_ip,
        "podName": head["metadata"]["name"] if head else "",
        "serviceIP": pod_ip if address == "None" else address,
        "serviceName": services[0]["metadata"]["name"],
    }
    return {key: value for key, value in found.items() if value}
