"""The ways from outside of the cluster to a pipeline's Ray and to its ingress: the API server's Service proxy.

It needs nothing but the credentials of the kubeconfig, which must be allowed to `get` (and for calls `create`)
``services/proxy``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from servepipe_operator.adapters.dashboard import Dashboard, Place
from servepipe_operator.adapters.kube import Resource
from servepipe_operator.adapters.kube_errors import NotFound
from servepipe_operator.cluster.connection import ClusterError, Connection, in_words
from servepipe_operator.engine.state import Json
from servepipe_operator.objects.names import token_secret_name
from servepipe_operator.objects.services import TOKEN_KEY

__all__ = ["dashboard", "head_of", "ingress_of"]

CLUSTERS = Resource("ray.io/v1", "RayCluster", "rayclusters")
SECRETS = Resource("v1", "Secret", "secrets")
DASHBOARD_PORT = 8265
SERVICE_PORT = 8000


def active_cluster(live: Mapping[str, Any]) -> str:
    """The RayCluster that answers, "" where there is none."""
    clusters = (live.get("status") or {}).get("clusters") or ()
    return next((str(one["name"]) for one in clusters if one.get("role") == "Active"), "")


async def head_of(connection: Connection, live: Json) -> Place:
    """Where the dashboard of the pipeline's RayCluster is. Raises `ClusterError` while there is none."""
    name, namespace = active_cluster(live), live["metadata"]["namespace"]
    if not name:
        raise ClusterError(
            f"{live['metadata']['name']} has no Ray cluster that runs",
            where=connection.place(namespace),
            fix="Look with `servepipe status`.",
        )
    with in_words(connection):
        try:
            cluster = await connection.kube.get(CLUSTERS, namespace, name)
        except NotFound as error:
            raise ClusterError(f"The RayCluster {name!r} is gone", where=connection.place(namespace)) from error
    head = (cluster.get("status") or {}).get("head") or {}
    return Place(namespace, str(head.get("serviceName") or f"{name}-head-svc"), DASHBOARD_PORT)


def ingress_of(live: Mapping[str, Any]) -> Place:
    """The Service that callers use."""
    service = ((live["spec"].get("ingress") or {}).get("service") or {}).get("port", SERVICE_PORT)
    return Place(live["metadata"]["namespace"], live["metadata"]["name"], int(service))


@asynccontextmanager
async def dashboard(connection: Connection, live: Json) -> AsyncIterator[tuple[Dashboard, dict[str, str]]]:
    """The way through the API server, and the headers that Ray wants. Raises `ClusterError` without its token."""
    metadata = live["metadata"]
    name = token_secret_name(metadata["name"])
    with in_words(connection):
        try:
            secret = await connection.kube.get(SECRETS, metadata["namespace"], name)
        except NotFound as error:
            raise ClusterError(
                f"The Secret {name!r} with Ray's token is not there",
                where=connection.place(metadata["namespace"]),
                fix="The operator makes it; look with `servepipe status`.",
            ) from error
    try:
        token = base64.b64decode((secret.get("data") or {})[TOKEN_KEY]).decode()
    except (KeyError, binascii.Error, UnicodeDecodeError) as error:
        raise ClusterError(f"The Secret {name!r} has no {TOKEN_KEY!r} that can be read") from error
    way = Dashboard("proxy", connection.kube.access, token=token)
    try:
        yield way, {"X-Ray-Authorization": f"Bearer {token}"}
    finally:
        await way.close()
