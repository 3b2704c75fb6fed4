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
from servepipe_operator.engine.history import HistoryError
from servepipe_operator.engine.reasons import Reason
from servepipe_operator.engine.state import ClusterProblem

__all__ = ["problem_of", "server_said"]

_FIX: dict[Reason, str] = {
    "NamespaceTerminating": "",
    "QuotaExceeded": "; raise the ResourceQuota, or ask for less",
    "Forbidden": "; an admission policy of the cluster does not allow it",
    "Refused": "",
    "TooLarge": "; fewer nodes with pods of their own or less in their env and templates make it smaller",
    "KindMissing": "; is its CRD installed?",
    "HistoryTooLarge": "",
    "HistoryUnreadable": "",
}


def problem_of(error: KubeError | RecordError | HistoryError, blocking: bool = True) -> ClusterProblem:
    """For anything but `kube_errors.Unavailable` and `kube_errors.Conflict`, which say nothing about the pipeline.

    It goes on by itself when the cause goes.
    """
    reason = _reason(error)
    fix = (
        "; give the operator's Role that right" if isinstance(error, Forbidden) and error.lacks_right else _FIX[reason]
    )
    told = (
        str(error) if isinstance(error, RecordError | HistoryError) or reason == "KindMissing" else server_said(error)
    )
    return ClusterProblem(reason, f"{told}{fix}", stalled=True, blocking=blocking)


def server_said(error: KubeError) -> str:
    """The server's own words, without what was asked."""
    return str(error).partition(f": HTTP {error.code}: ")[2] or str(error)


def _reason(error: KubeError | RecordError | HistoryError) -> Reason:
    match error:
        case HistoryError():
            return "HistoryUnreadable"
        case RecordError():
            return "HistoryTooLarge"
        case NamespaceTerminating():
            return "NamespaceTerminating"
        case QuotaExceeded():
            return "QuotaExceeded"
        case Forbidden():
            return "Forbidden"
        case Invalid() if error.too_large:
            return "TooLarge"
        case NotFound() if error.kind_missing:
            return "KindMissing"
        case Invalid() | _:
            return "Refused"
