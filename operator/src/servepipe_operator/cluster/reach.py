"""The ways from outside of the cluster to a pipeline's Ray and to its ingress: the API server's Service proxy.

It needs nothing but the credentials of the kubeconfig, which must be allowed to `get` (and for calls `create`)
``services/proxy``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from servepipe_operator.adapters.dashboard import Place, base_url
from servepipe_operator.adapters.kube_access import Access
from servepipe_operator.adapters.kube_errors import NotFound
from servepipe_operator.adapters.kube_resource import RAYCLUSTERS, SECRETS
from servepipe_operator.cluster.connection import ClusterError, Connection, in_words
from servepipe_operator.engine.state import Json
from servepipe_operator.objects.cluster_view import head_service
from servepipe_operator.objects.names import token_secret_name
from servepipe_operator.objects.pods import DASHBOARD_PORT
from servepipe_operator.objects.services import TOKEN_KEY, token_of

__all__ = ["RayDashboard", "dashboard", "head_of", "ingress_of"]

SERVICE_PORT = 8000
CONNECT_S = 30.0


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
            cluster = await connection.kube.get(RAYCLUSTERS, namespace, name)
        except NotFound as error:
            raise ClusterError(f"The RayCluster {name!r} is gone", where=connection.place(namespace)) from error
    return Place(namespace, head_service(cluster), DASHBOARD_PORT)


def ingress_of(live: Mapping[str, Any]) -> Place:
    """The Service that callers use."""
    service = ((live["spec"].get("ingress") or {}).get("service") or {}).get("port", SERVICE_PORT)
    return Place(live["metadata"]["namespace"], live["metadata"]["name"], int(service))


class RayDashboard:
    """A pipeline's dashboard.

    Args:
        session: Without a limit of connections, since each stream of logs holds one.
        access: Whose credentials go with each request.
        url: Before the first path.
        token: Ray's.
    """

    def __init__(self, session: aiohttp.ClientSession, access: Access, url: str, token: str) -> None:
        self._session, self._access, self._url, self._token = session, access, url, token

    @asynccontextmanager
    async def get(
        self, path: str, query: Mapping[str, str] | None = None, *, timeout_s: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """GET a path; ``timeout_s`` None is a stream."""
        # Authorization is the API server's, and Ray's own header passes through.
        headers = {**await self._access.headers(), "X-Ray-Authorization": f"Bearer {self._token}"}
        async with self._session.get(
            self._url + path,
            params=query,
            headers=headers,
            ssl=self._access.ssl_context or True,
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S),
        ) as response:
            yield response


@asynccontextmanager
async def dashboard(connection: Connection, live: Json, head: Place) -> AsyncIterator[RayDashboard]:
    """The dashboard of a pipeline. Raises `ClusterError` where the Secret with its token cannot be read."""
    token = await _token(connection, live)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        access = connection.kube.access
        yield RayDashboard(session, access, base_url("proxy", head, access), token)


async def _token(connection: Connection, live: Json) -> str:
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
    token = token_of(secret)
    if token is None:
        raise ClusterError(f"The Secret {name!r} has no {TOKEN_KEY!r} that can be read")
    return token
