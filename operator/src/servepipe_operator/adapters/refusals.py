"""What the API server's refusals mean for a pipeline: the reason and message of a condition."""

from __future__ import annotations

from servepipe_operator.adapters.kube_errors import (
    Forbidden,
    Invalid,
    KubeError,
    NamespaceTerminating,
    NotFound,
    QuotaExceeded,
)
from servepipe_operator.adapters.revision_history import RecordError
from servepipe_operator.engine.state import ClusterProblem

__all__ = ["problem_of"]

_FIX = {
    "NamespaceTerminating": "",
    "QuotaExceeded": "; raise the ResourceQuota, or ask for less",
    "Forbidden": "; the operator's Role, or an admission webhook, does not allow it",
    "Refused": "",
    "KindMissing": "; is its CRD installed?",
    "HistoryTooLarge": "",
}


def problem_of(error: KubeError | RecordError, blocking: bool = True) -> ClusterProblem:
    """For anything but `kube_errors.Unavailable` and `kube_errors.Conflict`, which say nothing about the pipeline.

    It goes on by itself when the cause goes.
    """
    reason = _reason(error)
    return ClusterProblem(reason, f"{error}{_FIX[reason]}", stalled=True, blocking=blocking)


def _reason(error: KubeError | RecordError) -> str:
    match error:
        case RecordError():
            return "HistoryTooLarge"
        case NamespaceTerminating():
            return "NamespaceTerminating"
        case QuotaExceeded():
            return "QuotaExceeded"
        case Forbidden():
            return "Forbidden"
        case NotFound() if error.kind_missing:
            return "KindMissing"
        case Invalid() | _:
            return "Refused"
