"""How kstatus reads a custom resource: the rules of sigs.k8s.io/cli-utils, which Flux, Argo CD and kpt wait by."""

from __future__ import annotations

from typing import Any, Literal

__all__ = ["Verdict", "kstatus"]

Verdict = Literal["Current", "InProgress", "Failed", "Terminating"]


def kstatus(live: dict[str, Any]) -> Verdict:
    """What kstatus makes of a live object."""
    metadata, status = live["metadata"], live.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    observed = status.get("observedGeneration")
    if observed is not None and observed != metadata.get("generation"):
        return "InProgress"
    conditions = status.get("conditions") or []
    for one in conditions:
        # The first that is found, in the order of the list.
        if one["status"] == "True" and one["type"] == "Reconciling":
            return "InProgress"
        if one["status"] == "True" and one["type"] == "Stalled":
            return "Failed"
    ready = next((one for one in conditions if one["type"] == "Ready"), None)
    return "Current" if ready is None or ready["status"] == "True" else "InProgress"
