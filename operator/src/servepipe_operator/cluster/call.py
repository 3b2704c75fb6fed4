"""`servepipe call` for a pipeline in a cluster, and the way of its requests."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from servepipe_operator.adapters.dashboard import base_url
from servepipe_operator.adapters.kube_access import Access
from servepipe_operator.adapters.kube_errors import KubeError
from servepipe_operator.adapters.kube_resource import PIPELINES
from servepipe_operator.bodies import body_of, show_answer
from servepipe_operator.cluster.connection import ClusterError, Connection, NotNowError, connect_as, run
from servepipe_operator.cluster.forward import Forward
from servepipe_operator.cluster.merging import OPS_MANAGER
from servepipe_operator.cluster.reach import ingress_of, ingress_selector, no_forward, proxied_instead, to_pod
from servepipe_operator.engine.state import Json
from servepipe_operator.objects.pods import SERVE_PORT

__all__ = ["Route", "call"]

CONNECT_S = 2.0
#: The ingress ends a request after `requestTimeoutSeconds`. Before it has the request, Ray's proxy keeps it for at most
#: this or `requestTimeoutSeconds`, whichever is longer; and finding a way takes a while.
PROXY_S = 300.0
REACH_S = 60.0
JSON = "application/json"


@dataclass(slots=True)
class _Way:
    """One way, and with whose credentials.

    Args:
        forward: Where it is a port-forward.
        users: Requests that are under way.
        stack: Closed when nobody uses it any more.
    """

    session: aiohttp.ClientSession
    url: str
    access: Access = field(default_factory=lambda: Access(""))
    forward: Forward | None = None
    users: int = 0
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def holds(self) -> bool:
        """Whether it leads to a pod that is still there, as far as can be known before a request is sent."""
        try:
            if self.forward is not None:
                await self.forward.check()
        except KubeError:
            return False
        return True


class Route:
    """The way of a pipeline's requests: straight to its URL, else by port-forward, else through the API server's proxy.

    Args:
        live: The pipeline.
        session: Whose connections are used where it is not a port-forward.
        told: Called with why there is no port-forward.
    """

    def __init__(
        self,
        connection: Connection,
        live: Json,
        session: aiohttp.ClientSession,
        told: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.preprocessed = bool((live["spec"]["graph"].get("input") or {}).get("preprocessor"))
        self._connection, self._live, self._session, self._told = connection, live, session, told
        self._path = str((live["spec"].get("ingress") or {}).get("route", "/"))
        self._finding = asyncio.Lock()
        self._found: _Way | None = None

    async def post(self, body: bytes) -> tuple[int, str, bytes]:
        """POST a JSON body; returns status, content type and body.

        Raises:
            ClusterError: No way leads there; or it broke off, and the pipeline may have had the request.
        """
        async with self._way() as way:
            try:
                headers = {"Content-Type": JSON, **await way.access.headers()}
                async with way.session.post(
                    way.url, data=body, headers=headers, ssl=way.access.ssl_context or True
                ) as response:
                    return response.status, response.content_type, await response.read()
            except (aiohttp.ClientError, OSError) as error:
                if self._found is way:
                    self._found = None  # pods come and go: the next request looks again
                known = way.forward.failure if way.forward is not None else ""
                reason = known or str(error) or type(error).__name__
                raise ClusterError(f"Nothing answers: {reason}", where=way.url) from None

    async def close(self) -> None:
        """End the port-forward, if there is one; a later request opens a new one."""
        way, self._found = self._found, None
        if way is not None:
            await way.stack.aclose()

    @asynccontextmanager
    async def _way(self) -> AsyncIterator[_Way]:
        async with self._finding:
            way = self._found
            if way is not None and not await way.holds():
                self._found = None
                await self._end(way)
            way = self._found = self._found or await self._find()
        way.users += 1
        try:
            yield way
        finally:
            way.users -= 1
            await self._end(way)

    async def _end(self, way: _Way) -> None:
        """Close what nobody uses and nobody will."""
        if not way.users and self._found is not way:
            await way.stack.aclose()

    async def _find(self) -> _Way:
        url = str((self._live.get("status") or {}).get("url") or "")
        if url and await self._reachable(url):
            return _Way(self._session, url)
        try:
            return await self._forward()
        except KubeError as error:
            self._told(proxied_instead(no_forward(error)))
            access = self._connection.kube.access
            return _Way(self._session, base_url("proxy", ingress_of(self._live), access) + self._path, access)

    async def _forward(self) -> _Way:
        """Raises `KubeError` where there is none, `NotNowError` where no pod of the ingress is ready."""
        kube, metadata = self._connection.kube, self._live["metadata"]
        namespace = metadata["namespace"]
        live = await kube.get(PIPELINES, namespace, metadata["name"])  # its RayCluster may be another one by now
        where = self._connection.place(namespace)
        absent = NotNowError("No pod of the ingress is ready", where=where, fix="Look with `servepipe status`.")
        stack = AsyncExitStack()
        chosen = ingress_selector(live)
        _, forward, session = await to_pod(stack, self._connection, namespace, chosen, SERVE_PORT, absent)
        return _Way(session, forward.url + self._path, forward=forward, stack=stack)

    async def _reachable(self, url: str) -> bool:
        """Whether this machine sees the pipeline's own URL: usually only pods of the cluster do."""
        timeout = aiohttp.ClientTimeout(total=2 * CONNECT_S, connect=CONNECT_S)
        try:
            async with self._session.get(f"{url.rstrip('/')}/-/ready", timeout=timeout) as response:
                # A name server that answers every question leads to somebody else, who would read the request.
                return response.status == 200 and (await response.json()).get("ready") is True
        except (aiohttp.ClientError, OSError, ValueError, AttributeError):
            return False


def _limit_s(live: Json) -> float:
    """After which no answer comes any more: whoever still had the request would have ended it, and said so."""
    return REACH_S + max(PROXY_S, float((live["spec"].get("ingress") or {}).get("requestTimeoutSeconds", 0)))


def call(arguments: argparse.Namespace) -> int:
    """`servepipe call JSON`."""
    body = body_of(arguments.body)

    async def work() -> int:
        async with connect_as(OPS_MANAGER, arguments) as connection:
            live = await connection.get(arguments.pipeline)
            print(f"{live['metadata']['name']} in {connection.place()}", file=sys.stderr, flush=True)
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
                route = Route(connection, live, session, lambda line: print(f"({line})", file=sys.stderr, flush=True))
                limit_s = _limit_s(live)
                try:
                    async with asyncio.timeout(limit_s):
                        answer = await route.post(body)
                except TimeoutError:
                    raise NotNowError(
                        f"No answer within {limit_s:.0f} s; the pipeline may have had the request",
                        where=connection.place(),
                        fix="Look with `servepipe status`.",
                    ) from None
                finally:
                    await route.close()
                return show_answer(*answer)

    return run(work())
