"""Names, labels and owners of the Kubernetes objects of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from servepipe.api.v1alpha1 import API_VERSION, KIND
from servepipe_operator.engine.state import ClusterProblem, Json

__all__ = [
    "INSTALLATION_LABEL",
    "MANAGER",
    "PIPELINE_LABEL",
    "POOL_LABEL",
    "ROLE_LABEL",
    "Owner",
    "claim",
    "ingress_policy_name",
    "labels",
    "metadata",
    "owner_reference",
    "ownership",
    "pdb_name",
    "token_secret_name",
]

MANAGER = "servepipe"
PIPELINE_LABEL = "servepipe.dev/pipeline"
INSTALLATION_LABEL = "servepipe.dev/installation"
#: On pods: ``head``, ``worker`` or ``ingress``. KubeRay's own labels are its: it counts and deletes pods by them.
ROLE_LABEL = "servepipe.dev/role"
POOL_LABEL = "servepipe.dev/pool"


@dataclass(frozen=True, slots=True)
class Owner:
    """The pipeline that objects belong to, and the installation of the operator that runs it."""

    name: str
    namespace: str
    uid: str
    installation: str


def token_secret_name(pipeline: str) -> str:
    return f"{pipeline}-token"


def ingress_policy_name(cluster: str) -> str:
    return f"{cluster}-ingress"


def pdb_name(pipeline: str, role: Literal["ingress", "head"] = "ingress") -> str:
    return f"{pipeline}-{role}"


def labels(owner: Owner) -> dict[str, str]:
    """The labels of every object of a pipeline, pods included."""
    return {
        "app.kubernetes.io/managed-by": MANAGER,
        PIPELINE_LABEL: owner.name,
        INSTALLATION_LABEL: owner.installation,
    }


def metadata(owner: Owner, name: str) -> Json:
    """The metadata of a child: deleting the pipeline deletes it."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels(owner),
        "ownerReferences": [owner_reference(API_VERSION, KIND, owner.name, owner.uid)],
    }


def owner_reference(api_version: str, kind: str, name: str, uid: str) -> Json:
    """For ``metadata.ownerReferences``: deleted with this object, which is the only controller."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def claim(kind: str, live: Mapping[str, Any], owner: Owner) -> ClusterProblem | None:
    """Why a live object with a child's name cannot be used as it is, or None where it is ours."""
    where = f"{kind} {owner.namespace}/{live['metadata']['name']}"
    match ownership(live, owner):
        case "former":
            told = f"{where} of the deleted pipeline with the same name is still there; if it stays, see its finalizers"
            return ClusterProblem("PreviousDeletionPending", told)
        case "foreign":
            told = (
                f"{where} is there and belongs to somebody else: delete or rename it, or give the pipeline another name"
            )
            return ClusterProblem("NameTaken", told, stalled=True)
    return None


def ownership(live: Mapping[str, Any], owner: Owner) -> Literal["ours", "former", "foreign"]:
    """Whose a live object with a child's name is.

    Returns:
        ``former``: a deleted pipeline's of the same name; wait until it is collected (``PreviousDeletionPending``).
        ``foreign``: anybody else's; it is never adopted, changed or deleted.
    """
    metadata = live.get("metadata", {})
    references = metadata.get("ownerReferences") or []
    if references and all(one.get("kind") == "RayCluster" and not one.get("controller") for one in references):
        # What a RayCluster keeps whose pipeline is deleted: see `services.token_secret`.
        return "former" if (metadata.get("labels") or {}).get(PIPELINE_LABEL) == owner.name else "foreign"
    controller: Mapping[str, Any] = next((one for one in references if one.get("controller")), {})
    group = str(controller.get("apiVersion", "")).partition("/")[0]
    if group != API_VERSION.partition("/")[0] or controller.get("kind") != KIND:
        return "foreign"
    if controller.get("uid") == owner.uid:
        return "ours"
    return "former" if controller.get("name") == owner.name else "foreign"
