"""`servepipe call` for a pipeline in a cluster, and the way of one request: straight, else through the API server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

import aiohttp

from servepipe_operator.adapters.dashboard import base_url
from servepipe_operator.adapters.kube_access import Access
from servepipe_operator.bodies import body_of, show_answer
from servepipe_operator.cluster.connection import ClusterError, connect_as, run
from servepipe_operator.cluster.merging import OPS_MANAGER
from servepipe_operator.cluster.reach import ingress_of
from servepipe_operator.engine.state import Json

__all__ = ["Route", "call", "route_of"]

CONNECT_S = 2.0
JSON = "application/json"


class Route:
    """Where requests of one pipeline go.

    Args:
        url: The pipeline's own, as its callers inside of the cluster use it.
        proxy: The same through the API server.
        access: Of the API server; its credentials go to the proxy only.
        preprocessed: A preprocessor reads the requests.
    """

    def __init__(self, url: str, proxy: str, access: Access, *, preprocessed: bool = False) -> None:
        self.preprocessed = preprocessed
        self._url, self._proxy, self._access = url, proxy, access
        self._straight: bool | None = None if url else False

    async def post(self, session: aiohttp.ClientSession, body: bytes) -> tuple[int, str, bytes]:
        """POST a JSON body; returns status, content type and body.

        Raises:
            ClusterError: Neither way leads there.
        """
        if self._straight is None:
            self._straight = await self._reachable(session)
        url = self._url if self._straight else self._proxy
        headers: Mapping[str, str] = {"Content-Type": JSON}
        if not self._straight:
            headers = {**headers, **await self._access.headers()}
        try:
            async with session.post(
                url, data=body, headers=headers, ssl=(None if self._straight else self._access.ssl_context) or True
            ) as response:
                return response.status, response.content_type, await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise ClusterError(f"Nothing answers: {str(error) or type(error).__name__}", where=url) from None

    async def _reachable(self, session: aiohttp.ClientSession) -> bool:
        """Whether this machine sees the pipeline's own URL: usually only pods of the cluster do."""
        timeout = aiohttp.ClientTimeout(total=2 * CONNECT_S, connect=CONNECT_S)
        try:
            async with session.get(f"{self._url.rstrip('/')}/-/ready", timeout=timeout) as response:
                # A name server that answers every question leads to somebody else, who would read the request.
                return response.status == 200 and (await response.json()).get("ready") is True
        except (aiohttp.ClientError, OSError, ValueError, AttributeError):
            return False


def route_of(live: Json, access: Access) -> Route:
    """The ways to a pipeline."""
    path = str((live["spec"].get("ingress") or {}).get("route", "/"))
    proxy = base_url("proxy", ingress_of(live), access) + path
    preprocessed = bool((live["spec"]["graph"].get("input") or {}).get("preprocessor"))
    return Route(str((live.get("status") or {}).get("url") or ""), proxy, access, preprocessed=preprocessed)


def call(arguments: argparse.Namespace) -> int:
    """`servepipe call JSON`."""
    body = body_of(arguments.body)

    async def work() -> int:
        async with connect_as(OPS_MANAGER, arguments) as connection:
            live = await connection.get(arguments.pipeline)
            print(f"{live['metadata']['name']} in {connection.place()}", file=sys.stderr, flush=True)
            route = route_of(live, connection.kube.access)
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
                return show_answer(*await route.post(session, body))

    return run(work())
