"""How many pods may be taken away at once when machines are drained."""

from __future__ import annotations

from servepipe_operator.engine.state import Json
from servepipe_operator.objects.names import PIPELINE_LABEL, ROLE_LABEL, Owner, metadata, pdb_name

__all__ = ["head_budget", "ingress_budget"]


def ingress_budget(owner: Owner, pods: int) -> Json | None:
    """All but one of the ingress's pods stay; with one there is nothing to keep, and a budget would block the drain.

    Args:
        pods: How many are wanted. (A percentage needs a scale subresource, which RayClusters do not have.)
    """
    return _budget(owner, "ingress", pods - 1) if pods > 1 else None


def head_budget(owner: Owner) -> Json:
    """Keeps the head where it is; made only on request, since no machine under it can be drained then."""
    return _budget(owner, "head", 1)


def _budget(owner: Owner, role: str, available: int) -> Json:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(owner, pdb_name(owner.name, "head" if role == "head" else "ingress")),
        "spec": {
            "minAvailable": available,
            "selector": {"matchLabels": {PIPELINE_LABEL: owner.name, ROLE_LABEL: role}},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
