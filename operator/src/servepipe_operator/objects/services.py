"""The caller's Service and the Secret with Ray's token."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from servepipe.api.v1alpha1 import Ingress, Service
from servepipe_operator.engine.state import Json
from servepipe_operator.objects.names import PIPELINE_LABEL, ROLE_LABEL, Owner, metadata, token_secret_name
from servepipe_operator.objects.pods import SERVE_PORT

__all__ = ["TOKEN_KEY", "ingress_labels", "service", "token_of", "token_secret"]

#: Where KubeRay looks for it.
TOKEN_KEY = "auth_token"


def service(owner: Owner, ingress: Ingress, cluster: str) -> Json:
    """What callers use: named like the pipeline, in front of the ingress pods of one RayCluster.

    The head and the workers have Serve's proxy too, and KubeRay's own labels would let them answer.
    """
    wished = ingress.service or Service()
    ports: list[Json] = [{"name": "http", "port": wished.port, "targetPort": SERVE_PORT, "protocol": "TCP"}]
    if ingress.grpc:
        ports.append({"name": "grpc", "port": ingress.grpc.port, "targetPort": ingress.grpc.port, "protocol": "TCP"})
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, owner.name),
        "spec": {
            "type": wished.type,
            "selector": ingress_labels(owner.name, cluster),
            "ports": ports,
        },
    }


def ingress_labels(pipeline: str, cluster: str) -> dict[str, str]:
    """By which the pods that answer callers are chosen: those of a pipeline's ingress in one RayCluster."""
    return {PIPELINE_LABEL: pipeline, ROLE_LABEL: "ingress", "ray.io/cluster": cluster}


def token_secret(owner: Owner, token: str, cluster: Mapping[str, Any] | None = None) -> Json:
    """The Secret that ``authOptions.secretName`` names.

    Args:
        token: Random text, made once by the caller and never changed.
        cluster: The live RayCluster that needs it after the pipeline, if there is one.
    """
    made = metadata(owner, token_secret_name(owner.name))
    if cluster is not None:
        kept_by = {key: cluster["metadata"][key] for key in ("name", "uid")}
        made["ownerReferences"].append({"apiVersion": cluster["apiVersion"], "kind": cluster["kind"], **kept_by})
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": made,
        "type": "Opaque",
        "data": {TOKEN_KEY: base64.b64encode(token.encode()).decode()},
    }


def token_of(secret: Mapping[str, Any]) -> str | None:
    """Ray's token in a live Secret, or None where there is none that can be read."""
    try:
        return base64.b64decode(secret["data"][TOKEN_KEY]).decode()
    except (KeyError, ValueError, TypeError):
        return None
