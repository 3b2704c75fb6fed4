"""What the operator watches: ServePipelines, and what belongs to them by label.

Labels are asked for on the server's side, so that a cluster with a hundred thousand other pods costs nothing. Secrets
are not watched: to watch some by label takes the right to list all, and their values, of the whole cluster.
"""

from __future__ import annotations

from collections.abc import Callable

from servepipe_operator.adapters.kube_resource import (
    NETWORK_POLICIES,
    PDBS,
    PIPELINES,
    PODS,
    RAYCLUSTERS,
    SERVICES,
    Resource,
)
from servepipe_operator.controller.context import Key
from servepipe_operator.controller.store import Kind
from servepipe_operator.engine.state import Json
from servepipe_operator.objects.names import INSTALLATION_LABEL, PIPELINE_LABEL

__all__ = ["CHILDREN", "belongs_to", "pipelines"]


def belongs_to(pipeline: Json, installation: str) -> bool:
    """Whether the operator named ``installation`` runs ``pipeline``.

    Its label decides; without one whoever took it first, as its status says; and one that nobody took is anybody's.
    """
    said = (pipeline["metadata"].get("labels") or {}).get(INSTALLATION_LABEL)
    status = pipeline.get("status")
    taken = status.get("installation") if isinstance(status, dict) else None
    return (said or taken or installation) == installation


def pipelines(installation: str) -> Kind:
    """The ServePipelines of one installation; those of others look as if they were not there."""

    def key_of(live: Json) -> Key | None:
        metadata = live["metadata"]
        return Key(metadata["namespace"], metadata["name"]) if belongs_to(live, installation) else None

    return Kind(PIPELINES, key_of, signature=_wishes)


def _wishes(live: Json) -> object:
    """Not the status, which we write ourselves; a status that someone else wrote is seen at the next look."""
    metadata = live["metadata"]
    return [metadata.get(name) for name in ("generation", "labels", "annotations", "deletionTimestamp")]


def _labelled(live: Json) -> Key | None:
    name = (live["metadata"].get("labels") or {}).get(PIPELINE_LABEL)
    return Key(live["metadata"]["namespace"], str(name)) if name else None


def _regarding(live: Json) -> Key | None:
    """By the name of the RayCluster, see `objects.names.cluster_name`; an Event has no labels."""
    name, dash, _ = str((live.get("involvedObject") or {}).get("name") or "").rpartition("-")
    return Key(live["metadata"]["namespace"], name) if dash else None


def _some(*names: str) -> Callable[[Json], Json]:
    def keep(live: Json) -> Json:
        metadata = {
            name: value for name, value in live["metadata"].items() if name not in ("managedFields", "annotations")
        }
        kept = {name: live[name] for name in ("apiVersion", "kind", *names) if name in live}
        return {**kept, "metadata": metadata}

    return keep


def _pod(live: Json) -> Json:
    """Without its template: what it is and how it fares."""
    spec = live.get("spec") or {}
    return {**_some("status")(live), "spec": {name: spec[name] for name in ("nodeName",) if name in spec}}


_EVENT = ("type", "reason", "message", "count", "involvedObject", "firstTimestamp", "lastTimestamp", "eventTime")

#: By kind, as `Store.children` wants it.
CHILDREN: dict[str, Kind] = {
    kind.resource.kind: kind
    for kind in (
        Kind(RAYCLUSTERS, _labelled, PIPELINE_LABEL),
        Kind(SERVICES, _labelled, PIPELINE_LABEL),
        Kind(NETWORK_POLICIES, _labelled, PIPELINE_LABEL),
        Kind(PDBS, _labelled, PIPELINE_LABEL),
        Kind(PODS, _labelled, PIPELINE_LABEL, keep=_pod),
        # Of an invalid RayCluster KubeRay tells nowhere else. It writes core/v1.
        Kind(
            Resource("v1", "Event", "events"),
            _regarding,
            fields="involvedObject.kind=RayCluster,type=Warning",
            keep=_some(*_EVENT),
        ),
    )
}
