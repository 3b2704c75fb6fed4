"""What is asked for: kinds, those that several parts ask for, and pages of lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

from servepipe.api.v1alpha1 import API_VERSION, KIND
from servepipe_operator.engine.state import Json

__all__ = [
    "NETWORK_POLICIES",
    "PDBS",
    "PIPELINES",
    "PODS",
    "RAYCLUSTERS",
    "SECRETS",
    "SERVICES",
    "Page",
    "Resource",
]


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind: its API version as in ``apiVersion``, kind, and plural."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The path of a collection (no name), an object, or a subresource; no namespace means all of them."""
        parts = ["api" if "/" not in self.api_version else "apis", *self.api_version.split("/")]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/" + "/".join(quote(part, safe="") for part in parts)


PIPELINES = Resource(API_VERSION, KIND, "servepipelines")
RAYCLUSTERS = Resource("ray.io/v1", "RayCluster", "rayclusters")
SERVICES = Resource("v1", "Service", "services")
SECRETS = Resource("v1", "Secret", "secrets")
PODS = Resource("v1", "Pod", "pods")
NETWORK_POLICIES = Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
PDBS = Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")


class Page(NamedTuple):
    """Some objects of a list, and the version of the whole list, from which a watch can go on."""

    items: tuple[Json, ...]
    version: str
