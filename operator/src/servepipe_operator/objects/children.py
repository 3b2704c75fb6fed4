"""The objects around the RayCluster that are kept as wanted: Service, NetworkPolicies, PodDisruptionBudget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from servepipe.api.v1alpha1 import Ingress, Spec
from servepipe_operator.engine.state import Json
from servepipe_operator.objects.disruption import ingress_budget
from servepipe_operator.objects.names import Owner
from servepipe_operator.objects.network import network_policies
from servepipe_operator.objects.services import service

__all__ = ["children", "says"]


def children(owner: Owner, cluster: str, spec: Spec, operator_peers: Sequence[Json]) -> list[Json]:
    """All of them for the accepted spec.

    Args:
        cluster: Name of the RayCluster that serves.
        operator_peers: As for `network_policies`.
    """
    ingress = spec.ingress or Ingress()
    pods = ingress.autoscaling.min_replicas if ingress.autoscaling else ingress.replicas or 1
    budget = ingress_budget(owner, pods)
    return [
        *network_policies(owner, cluster, spec, operator_peers),
        service(owner, ingress, cluster),
        *([budget] if budget else []),
    ]


#: Whom an object selects or lets in: here a field more means something else.
_EXACT = frozenset({"selector", "podSelector", "namespaceSelector", "ingress"})
#: What the API server adds even there.
_DEFAULTED = frozenset({"protocol"})


def says(live: Any, wanted: Any, exactly: bool = False) -> bool:
    """Whether a live object says all that ``wanted`` does; the server's defaults and others' fields are no difference.

    Lists have to be of one length: an element more is a rule more.

    Args:
        exactly: A field more is a difference too.
    """
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            return not wanted and live is None
        if exactly and live.keys() - wanted.keys() - _DEFAULTED:
            return False
        return all(says(live.get(key), value, exactly or key in _EXACT) for key, value in wanted.items())
    if isinstance(wanted, list):
        found = live or []
        if not isinstance(found, list) or len(found) != len(wanted):
            return False
        return all(says(one, other, exactly) for one, other in zip(found, wanted, strict=True))
    return bool(live == wanted)
