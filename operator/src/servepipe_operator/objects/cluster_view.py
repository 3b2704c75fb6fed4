"""What the objects around a live RayCluster say about it, for conditions.

KubeRay's own ``status.state: ready`` stays for good once it was said, so only its live conditions count. An invalid
RayCluster gets no status at all, just a Warning event.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from servepipe_operator.engine.pools import Slot
from servepipe_operator.engine.reasons import FailedPods, failed_pods
from servepipe_operator.engine.state import ClusterProblem, Json
from servepipe_operator.objects.names import ROLE_LABEL, Owner, claim
from servepipe_operator.objects.pod_trouble import PodTrouble, ending, first_trouble, trouble_of
from servepipe_operator.objects.raycluster import slots_of

__all__ = ["CLUSTER_LABEL", "KUBERAY_MISSING", "ClusterView", "head_selector", "head_service", "is_ready", "view"]

CLUSTER_LABEL = "ray.io/cluster"
GROUP_LABEL = "ray.io/group"
NODE_TYPE_LABEL = "ray.io/node-type"
#: What the API server appended to the name of a pod that it refused; the next one has another.
_POD_SUFFIX = re.compile(r"(?<=-)[a-z0-9]{5}(?=\")")
KUBERAY_MISSING = ClusterProblem(
    "KubeRayMissing", "the API server does not know RayClusters: install KubeRay", stalled=True
)
INVALID_EVENTS = frozenset({"InvalidRayClusterSpec", "InvalidRayClusterMetadata"})


@dataclass(frozen=True, slots=True)
class ClusterView:
    """One look at a RayCluster.

    Args:
        live: The RayCluster, if it is ours.
        head: The head's pod, if there is one.
        ingress_ip: Of a pod of the ingress that is ready, or "".
        pods: How many there are of each worker group, also those that are ending.
    """

    live: Json | None
    problem: ClusterProblem | None
    slots: tuple[Slot, ...] = ()
    head: Json | None = None
    ingress_ip: str = ""
    pods: Mapping[str, int] | None = None
    absent: bool = False
    up: bool = False

    @property
    def head_ip(self) -> str:
        """Of the head's pod, or ""."""
        return _ip(self.head) if self.head else ""

    @property
    def head_uid(self) -> str:
        """Of the head's pod, or ""."""
        return str(self.head["metadata"]["uid"]) if self.head else ""


def head_service(cluster: Mapping[str, Any]) -> str:
    """Name of the head's Service: as KubeRay says, or as it names it where nothing else was asked for."""
    said = ((cluster.get("status") or {}).get("head") or {}).get("serviceName")
    return str(said or f"{cluster['metadata']['name']}-head-svc")


def head_selector(cluster: str) -> str:
    """Of the head's pods: one, and while it is replaced also the one that is ending."""
    return f"{CLUSTER_LABEL}={cluster},{NODE_TYPE_LABEL}=head"


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether it can be used, and is not ending."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return not ending(pod) and any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def view(
    owner: Owner,
    name: str,
    clusters: Iterable[Json],
    pods: Sequence[Json],
    events: Sequence[Json],
    missing: frozenset[str] = frozenset(),
) -> ClusterView:
    """What is known of the RayCluster ``name``.

    Args:
        clusters: RayClusters with the pipeline's label.
        pods: Its pods, likewise.
        events: Warnings about RayClusters of the namespace that may be this one.
        missing: Kinds that the API server does not serve.
    """
    if "rayclusters.ray.io" in missing:
        return ClusterView(None, KUBERAY_MISSING, absent=True)
    live = next((one for one in clusters if one["metadata"]["name"] == name), None)
    if live is None:
        return ClusterView(None, ClusterProblem("Creating", f"RayCluster {name} is being created"), absent=True)
    if problem := claim("RayCluster", live, owner):
        return ClusterView(None, problem, absent=True)
    if live["metadata"].get("deletionTimestamp"):
        return ClusterView(None, ClusterProblem("Deleting", f"RayCluster {name} is being deleted"), absent=True)
    mine = [pod for pod in pods if _labels(pod).get(CLUSTER_LABEL) == name]
    head = next((pod for pod in mine if _labels(pod).get(NODE_TYPE_LABEL) == "head" and not ending(pod)), None)
    workers = [pod for pod in mine if _labels(pod).get(NODE_TYPE_LABEL) == "worker"]
    counts = Counter(_labels(pod).get(GROUP_LABEL, "") for pod in workers)
    leaving = Counter(_labels(pod).get(GROUP_LABEL, "") for pod in workers if ending(pod))
    troubles = _troubles(workers, owner.namespace, name)
    problem, absent, up = _state(live, name, head, mine, troubles, events)
    return ClusterView(
        live=live,
        problem=problem,
        slots=tuple(slots_of(live, counts, leaving, troubles)),
        head=head,
        ingress_ip=next((_ip(pod) for pod in mine if _labels(pod).get(ROLE_LABEL) == "ingress" and is_ready(pod)), ""),
        pods=counts,
        absent=absent,
        up=up,
    )


def _state(
    live: Json,
    name: str,
    head: Json | None,
    pods: Sequence[Json],
    troubles: Mapping[str, PodTrouble],
    events: Sequence[Json],
) -> tuple[ClusterProblem | None, bool, bool]:
    """The problem, whether no Ray can run, and whether the head is said to be ready."""
    conditions = {one.get("type"): one for one in (live.get("status") or {}).get("conditions") or []}
    failed = conditions.get("ReplicaFailure", {})
    if live["spec"].get("suspend"):
        problem = ClusterProblem("Suspended", f"RayCluster {name} is suspended", suspending=True)
        # That pods could not be made is from before: none are wanted now.
        if pods and failed.get("status") == "True" and not str(failed.get("reason")).startswith("FailedCreate"):
            reason, said = _refused(failed)
            told = f"RayCluster {name} is suspended, and KubeRay cannot delete its pods: {said}"
            problem = ClusterProblem(reason, told, stalled=True, suspending=True)
        return problem, not pods, False
    invalid = next((event for event in events if _about(event, live) and event.get("reason") in INVALID_EVENTS), None)
    if not conditions and invalid is not None:
        told = f"KubeRay refuses RayCluster {name}: {invalid.get('message')}"
        return ClusterProblem("InvalidRayCluster", told, stalled=True), True, False
    if not live.get("status"):
        return (
            ClusterProblem("WaitingForKubeRay", f"KubeRay did not take up RayCluster {name} yet"),
            head is None,
            False,
        )
    ready = conditions.get("HeadPodReady", {})
    up = ready.get("status") == "True" and head is not None
    if failed.get("status") == "True":
        reason, said = _refused(failed)
        told = f"KubeRay cannot make pods of RayCluster {name}: {said}"
        return ClusterProblem(reason, told, stalled=True, blocking=not up), head is None, up
    if up:
        return _waiting_pods(troubles), False, True
    trouble = trouble_of(head) if head else None
    if trouble is not None:
        namespace = live["metadata"]["namespace"]
        look = f"kubectl -n {namespace} describe pod -l {head_selector(name)}"
        message = f"the head pod of RayCluster {name} {trouble.message} (see {look})"
    else:
        message = f"the head pod of RayCluster {name} is not ready: {ready.get('message') or ready.get('reason')}"
    return ClusterProblem("HeadPodNotReady", message), head is None, False


def _refused(failure: Mapping[str, Any]) -> tuple[FailedPods, str]:
    """KubeRay's condition ReplicaFailure, as a reason and in its words."""
    reason = failed_pods(str(failure.get("reason") or ""))
    said = " ".join(str(failure.get("message") or "").split()).removeprefix(f"{reason} ")
    return reason, _POD_SUFFIX.sub("", said)


def _waiting_pods(troubles: Mapping[str, PodTrouble]) -> ClusterProblem | None:
    """Workers that cannot come: said, and no reason to send nothing to those that are there."""
    told = "; ".join(trouble.message for trouble in troubles.values())
    return ClusterProblem("PodsNotReady", told, blocking=False) if told else None


def _troubles(pods: Sequence[Json], namespace: str, name: str) -> dict[str, PodTrouble]:
    """By worker group, and where to look further."""
    found: dict[str, PodTrouble] = {}
    for group in sorted({_labels(pod).get(GROUP_LABEL, "") for pod in pods}):
        trouble = first_trouble(pod for pod in pods if _labels(pod).get(GROUP_LABEL, "") == group)
        if trouble is not None:
            look = f"kubectl -n {namespace} describe pod -l {CLUSTER_LABEL}={name},{GROUP_LABEL}={group}"
            found[group] = replace(trouble, message=f"a pod of worker group {group} {trouble.message} (see {look})")
    return found


def _about(event: Mapping[str, Any], live: Json) -> bool:
    about = event.get("involvedObject") or {}
    return bool(about.get("uid") == live["metadata"].get("uid"))


def _labels(pod: Mapping[str, Any]) -> Mapping[str, str]:
    return pod["metadata"].get("labels") or {}


def _ip(pod: Mapping[str, Any]) -> str:
    return str((pod.get("status") or {}).get("podIP") or "")
