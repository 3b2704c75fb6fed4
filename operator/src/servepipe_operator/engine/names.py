"""The names of what runs in Ray, and of the RayCluster that it runs in."""

from __future__ import annotations

from servepipe_operator.engine.revisions import digest

__all__ = [
    "INGRESS",
    "INGRESS_DEPLOYMENT",
    "NODE_DEPLOYMENT",
    "application",
    "cluster_name",
    "node_of",
    "revision_of",
]

#: The application (and its deployment) that takes the callers' requests. No node may be called so.
INGRESS = "ingress"
INGRESS_DEPLOYMENT = "ingress"
#: The one deployment of every node's application.
NODE_DEPLOYMENT = "node"

_SEPARATOR = "--"


def application(node: str, revision: str) -> str:
    """The Serve application of one revision of a node. Node names never contain ``--``."""
    return f"{node}{_SEPARATOR}{revision}"


def node_of(application_name: str) -> str:
    return application_name.partition(_SEPARATOR)[0]


def revision_of(application_name: str) -> str:
    """``""`` for a name that is not of a node's revision."""
    return application_name.partition(_SEPARATOR)[2]


def cluster_name(pipeline: str, uid: str, revision: str) -> str:
    """The RayCluster's name, at most 50 characters for a pipeline's 44.

    KubeRay finds heads and Secrets by this name alone: a pipeline that is deleted and made again at once, or that
    needs a second cluster, must not find those of the first.
    """
    return f"{pipeline}-{digest([uid, revision], 5)}"
