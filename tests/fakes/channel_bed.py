"""For tests of the channel on real sockets: servers, contexts of calls, and peers that send what they like."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frame_tools import Frame, Frames

from servepipe.channel import handshake
from servepipe.channel.client import Channel
from servepipe.channel.endpoints import Endpoint
from servepipe.channel.frames import Kind
from servepipe.channel.metadata import SentHeads
from servepipe.channel.server import ChannelServer
from servepipe.channel.values import dump

TOKEN = b"t" * 32
WAIT_S = 30.0


@dataclass
class Context:
    """What travels with a call."""

    request_id: str = "request"
    deadline: float | None = None
    pins: dict[str, str] = field(default_factory=dict)


def within(seconds: float) -> Context:
    return Context(deadline=time.time() + seconds)


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until ``condition()`` is true."""
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {WAIT_S:g} s in vain until {what}")
        await asyncio.sleep(0.002)


async def echo(call):
    return call.args[0] if call.args else None


@asynccontextmanager
async def folder() -> AsyncIterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="svp-"))
    try:
        yield path
    finally:
        for _ in range(3):  # transports that were closed end in the next ticks of the loop
            await asyncio.sleep(0)
        shutil.rmtree(path)


@asynccontextmanager
async def served(handle=echo, *, tcp=False, tls=None, replica="replica", **settings) -> AsyncIterator[ChannelServer]:
    """A server on a unix socket, or on TCP."""
    async with (
        folder() as path,
        ChannelServer(handle, application="m1--a", replica=replica, token=TOKEN, machine="here", **settings) as server,
    ):
        if tcp:
            await server.listen_tcp("127.0.0.1", tls=tls)
        else:
            await server.listen_unix(path)
        yield server


@asynccontextmanager
async def connected(server: ChannelServer, **settings) -> AsyncIterator[Channel]:
    endpoint = server.endpoint.seen_from("here")
    assert endpoint is not None
    channel = await Channel.connect(endpoint, **settings)
    try:
        yield channel
    finally:
        channel.abort()
        await channel.ended


class RawPeer:
    """A peer of a server that sends any bytes, and reads the frames that come back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._got = Frames()
        self.heads = SentHeads()

    @classmethod
    async def connect(cls, endpoint: Endpoint, tls: ssl.SSLContext | None = None) -> RawPeer:
        if endpoint.path:
            return cls(*await asyncio.open_unix_connection(endpoint.path))
        return cls(*await asyncio.open_connection(endpoint.host, endpoint.port, ssl=tls))

    @classmethod
    async def let_in(cls, endpoint: Endpoint, tls: ssl.SSLContext | None = None) -> RawPeer:
        """One that has made its handshake."""
        peer = await cls.connect(endpoint, tls)
        await peer.prove(endpoint.token, handshake.new_hello(endpoint.application, endpoint.replica, 1 << 30))
        assert (await peer.frame()).kind == Kind.WELCOME
        if endpoint.path:
            assert (await peer.frame()).kind == Kind.OFFER
        return peer

    async def prove(self, token: bytes, hello: handshake.Hello, then: bytes = b"") -> bytes:
        """Everything of a handshake but its last frame; returns the proof.

        ``then`` leaves in one write with it: later the other side may have refused the proof, and what it said about
        that is lost with a write that fails.
        """
        self.send(Frame(Kind.HELLO, 0, hello.encode()))
        challenge = await self.frame()
        assert challenge.kind == Kind.CHALLENGE
        nonce, _ = handshake.parse_challenge(challenge.head)
        proof = handshake.client_proof(token, hello, nonce)
        self.send(Frame(Kind.PROOF, 0, proof).encode() + then)
        return proof

    def send(self, what: Frame | bytes) -> None:
        self._writer.write(what if isinstance(what, bytes) else what.encode())

    def call(self, number: int, *args: Any, method: str | None = None, context: Context | None = None) -> Frame:
        """The frame of a call."""
        body, buffers = dump((args, {}))
        head = self.heads.encode(method, context or Context())
        return Frame(Kind.CALL, number, head, body, tuple(map(bytes, buffers)))

    async def frame(self) -> Frame:
        """The next frame. EOFError: there is none."""
        async with asyncio.timeout(WAIT_S):
            while not self._got.frames:
                data = await self._reader.read(1 << 20)
                if not data:
                    raise EOFError
                self._got.feed(data)
        return self._got.frames.pop(0)

    async def end(self) -> list[Frame]:
        """Wait until the other side has closed the connection; what came before that."""
        frames = []
        try:
            while True:
                frames.append(await self.frame())
        except (EOFError, ConnectionError):
            return frames
        finally:
            self.close()

    def close(self) -> None:
        self._writer.close()

    async def leave(self) -> None:
        """Close at once, and wait until nothing of the connection is left.

        TLS would say goodbye and wait for the other side, maybe longer than the event loop runs.
        """
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
