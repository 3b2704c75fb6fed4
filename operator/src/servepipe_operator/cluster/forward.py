"""Port-forward: connections to a port of a pod, through the API server and the kubelet of the pod's node.

What connects to `Forward.socket` talks to the port. It is a Unix socket in a folder of this user's own, since anybody
on this machine can connect to a port of it. Each connection has a WebSocket of its own: they end, fail and stand
still one by one.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from weakref import WeakSet

import aiohttp

from servepipe_operator.adapters.kube_access import Access
from servepipe_operator.adapters.kube_errors import KubeError, Unavailable, error_from
from servepipe_operator.adapters.kube_resource import PODS
from servepipe_operator.cluster.forward_frames import PROTOCOL, Frames, to_pod

__all__ = ["Forward", "forwarded"]

WHAT = "port-forward"
CONNECT_S = 30.0
OPEN_S = 45.0  # API servers dial a node that is gone for 30 s
CLOSE_S = 1.0
HEARTBEAT_S = 30.0  # load balancers end what is silent for minutes, as a log can be
CHUNK = 1 << 16


@asynccontextmanager
async def forwarded(access: Access, namespace: str, pod: str, port: int) -> AsyncIterator[Forward]:
    """Connections to ``port`` of ``pod`` as long as the context lasts; the first is open when it is entered.

    Raises:
        KubeError: The API server or the kubelet refuses, or does not answer.
    """
    async with AsyncExitStack() as stack:
        transports: WeakSet[asyncio.Transport] = WeakSet()
        tracing = aiohttp.TraceConfig()
        tracing.on_request_end.append(partial(_answered, transports))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                trace_configs=[tracing],
            )
        )
        stack.push_async_callback(_abort, transports)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="servepipe-"))
        forward = Forward(session, access, namespace, pod, port, Path(folder) / "port")
        stack.push_async_callback(forward.close)
        await forward.begin()
        yield forward


class Forward:
    """A port of a pod; see the module.

    Args:
        session: Whose refused handshakes raise `KubeError`.
        socket: Where it is to listen.

    Attributes:
        socket: To be connected to.
        url: What to ask for over it, before the first path.
        failure: Why the last connection that failed did; "" after one that was opened.
    """

    def __init__(
        self, session: aiohttp.ClientSession, access: Access, namespace: str, pod: str, port: int, socket: Path
    ) -> None:
        self.socket = socket
        self.url = f"http://localhost:{port}"
        self.failure = ""
        self._session, self._access, self._port = session, access, port
        self._url = access.url + PODS.path(namespace, pod, "portforward")
        self._first: aiohttp.ClientWebSocketResponse | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        """Open a first connection, and listen. Raises `KubeError`."""
        self._first = await self._open()
        try:
            self._server = await asyncio.start_unix_server(self._accept, self.socket)
        except OSError as error:  # TMPDIR can be longer than the path of a socket may be
            raise Unavailable(f"{WHAT}: {error}") from error

    async def check(self) -> None:
        """Whether the next connection is likely to work; opens it where none is open. Raises `KubeError`."""
        if self.failure:
            raise Unavailable(self.failure)
        if not self._tasks and self._first is None:
            self._first = await self._open()

    async def close(self) -> None:
        """End all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._first is not None:
            await self._first.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        try:
            first, self._first = self._first, None
            websocket = first if first is not None and not first.closed else await self._open()
            upward = asyncio.create_task(_upward(reader, websocket))
            try:
                await self._downward(websocket, writer)
            finally:
                upward.cancel()
                await websocket.close()
        except KubeError as error:
            self.failure = str(error)
        except ConnectionError:
            pass  # whoever connected has gone
        finally:
            writer.close()

    async def _open(self) -> aiohttp.ClientWebSocketResponse:
        """Raises `KubeError`."""
        try:
            headers = await self._access.headers()
        except Exception as error:  # as in `Kube`
            raise Unavailable(f"{WHAT}: no credentials: {str(error) or type(error).__name__}") from error
        try:
            async with asyncio.timeout(OPEN_S):
                websocket = await self._session.ws_connect(
                    self._url,
                    params={"ports": str(self._port)},
                    protocols=(PROTOCOL,),
                    headers=headers,
                    ssl=self._access.ssl_context or True,
                    heartbeat=HEARTBEAT_S,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                )
        except TimeoutError as error:
            raise Unavailable(f"{WHAT}: no answer within {OPEN_S:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"{WHAT}: {str(error) or type(error).__name__}") from error
        if websocket.protocol != PROTOCOL:
            await websocket.close()
            raise Unavailable(f"{WHAT}: the kubelet does not speak {PROTOCOL}")
        self.failure = ""
        return websocket

    async def _downward(self, websocket: aiohttp.ClientWebSocketResponse, writer: asyncio.StreamWriter) -> None:
        """Raises `Unavailable` where it ends with an error."""
        frames = Frames(self._port)
        async for message in websocket:
            if message.type is not aiohttp.WSMsgType.BINARY:
                raise Unavailable(f"{WHAT}: it broke off: {message.data}")
            try:
                data = frames.take(message.data)
            except ValueError as error:
                raise Unavailable(f"{WHAT}: {error}") from None
            if frames.error:
                raise Unavailable(f"{WHAT}: {frames.error}")
            writer.write(data)
            await writer.drain()
        if websocket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE:
            raise Unavailable(f"{WHAT}: it broke off")


async def _upward(reader: asyncio.StreamReader, websocket: aiohttp.ClientWebSocketResponse) -> None:
    try:
        while data := await reader.read(CHUNK):
            await websocket.send_bytes(to_pod(data))
    except ConnectionError:
        pass  # `_downward` sees it too
    await websocket.close()


async def _answered(
    transports: WeakSet[asyncio.Transport],
    _: aiohttp.ClientSession,
    __: SimpleNamespace,
    answer: aiohttp.TraceRequestEndParams,
) -> None:
    """Raises `KubeError` with what the server says where it refuses a handshake: aiohttp's own error leaves it out."""
    response = answer.response
    if response.status != 101:
        raise error_from(WHAT, response.status, await response.text(), response.headers)
    if response.connection is not None and response.connection.transport is not None:
        transports.add(response.connection.transport)


async def _abort(transports: WeakSet[asyncio.Transport]) -> None:
    """Without TLS's farewell, which a server that hangs would not answer; and the event loop may be about to end."""
    for transport in transports:
        transport.abort()
    for _ in range(3):
        await asyncio.sleep(0)  # what was aborted closes in the loop's next rounds
