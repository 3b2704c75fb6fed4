"""Every reason that a condition, an Event or a candidate can have, in one place.

They are words for programs: alerts, GitOps tools and people's scripts match on them. A type checker refuses one that is
not here; docs/troubleshooting.md has a paragraph on each, which a test holds it to.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

__all__ = ["CandidateReason", "EventReason", "FailedPods", "Reason", "failed_pods"]

#: KubeRay's own, of its condition ReplicaFailure; ReplicaFailure itself where it gives one that is not known here.
FailedPods: TypeAlias = Literal[
    "FailedCreateHeadPod",
    "FailedCreateWorkerPod",
    "FailedDeleteAllPods",
    "FailedDeleteHeadPod",
    "FailedDeleteWorkerPod",
    "ReplicaFailure",
]

_AllIsWell: TypeAlias = Literal[
    "Accepted",
    "Answering",
    "Draining",
    "NodesReady",
    "Ready",
    "Running",
    "Suspended",
]

_GoesOn: TypeAlias = Literal[
    "Applying",
    "ChangingGraph",
    "Creating",
    "Deleting",
    "HeadPodNotReady",
    "IngressNotReady",
    "IngressWaits",
    "InsufficientCapacity",
    "NoAnswer",
    "NodesNotAnswering",
    "NodesNotReady",
    "NotAccepted",
    "NotStarted",
    "PodsNotReady",
    "PreviousDeletionPending",
    "ReplacingIngress",
    "RoutingNotAcknowledged",
    "Starting",
    "Unreachable",
    "Upgrading",
    "WaitingForKubeRay",
]

_SomebodyHasToAct: TypeAlias = Literal[
    "BuildFailed",
    "ClusterReplacementRequired",
    "ConfigurationRefused",
    "Forbidden",
    "HistoryTooLarge",
    "HistoryUnreadable",
    "InvalidRayCluster",
    "InvalidSpec",
    "KindMissing",
    "KubeRayMissing",
    "NameTaken",
    "NamespaceTerminating",
    "ProgressDeadlineExceeded",
    "QuotaExceeded",
    "RayVersionMismatch",
    "Refused",
    "ReplicaFailed",
    "RuntimeMismatch",
    "ServeRejected",
    "TokenMissing",
    "TokenRefused",
    "TooLarge",
]

#: Of a condition.
Reason: TypeAlias = Literal[_AllIsWell, _GoesOn, _SomebodyHasToAct, FailedPods]

#: Of an Event: what stalls is told as one too. ``CorruptRecord`` is told by `servepipe up` only.
EventReason: TypeAlias = Literal[Reason, "CorruptRecord", "Notice", "Promoted", "Removed"]

#: Of a node's candidate: what it waits for.
CandidateReason: TypeAlias = Literal[
    "InsufficientCapacity", "Offered", "Starting", "Switched", "Waiting", "WaitingForWorkers"
]

_FAILED_PODS: dict[str, FailedPods] = {reason: reason for reason in get_args(FailedPods)}


def failed_pods(reason: str) -> FailedPods:
    """What KubeRay gave as the reason of its condition ReplicaFailure."""
    return _FAILED_PODS.get(reason, "ReplicaFailure")
