"""One end of a channel: an asyncio protocol that reads frames, writes them together, and ends in an orderly way.

Frames that are sent in one tick of the event loop leave in one write. What the transport does not take at once waits
here in one piece with all that comes after it, so that no part of a large value is copied on its way out.

Whatever a peer sends, nothing is raised into the event loop: what is no frame, or has no place, ends the connection
with a reason in the log.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from servepipe.channel.errors import ProtocolError
from servepipe.channel.frames import STRANGERS_FRAME_BYTES, Kind, Limits, Part, Segment, encode
from servepipe.channel.lending import Lending, peer_of
from servepipe.channel.reader import FrameReader

__all__ = ["Connection", "Handler"]

log = logging.getLogger("servepipe.channel")

JOINED_BYTES = 64 * 1024
"""Parts are joined up to here: below it a copy is cheaper than a write."""

WRITTEN_BYTES = 256 * 1024
"""How much of a large part is handed to the transport at a time; it copies what the socket does not take."""

_HIGH_WATER = 64 * 1024


class Handler(Protocol):
    """Receives one kind of frame: call, head, body, buffers, as in `servepipe.channel.reader.Deliver`.

    Segments have been mapped: body and buffers are memory.
    """

    def __call__(self, call: int, head: memoryview, body: Any, buffers: Sequence[Any], /) -> None: ...


class Connection(asyncio.BufferedProtocol):
    """Base of both ends.

    Args:
        limits: What this side accepts.
        passes_on: As in `Lending`.

    Attributes:
        handlers: By kind what receives its frames; any other kind is a violation. The end under it fills this in as
            the handshake proceeds.
        peer: Names the other end in the log.
        reason: Why the connection ended; empty while it lives, and where the peer just closed it.
        written: Bytes handed to the transport so far.
        enqueued: Bytes given to `send` so far; what is between both waits here.
    """

    def __init__(self, limits: Limits, *, passes_on: bool) -> None:
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.handlers: Mapping[int, Handler] = {}
        self.peer = "?"
        self.reason = ""
        self.written = 0
        self.enqueued = 0
        self.ended = self.loop.create_future()
        """Done when the connection has ended."""
        self.lending = Lending(self.send, limits.keep_s, passes_on=passes_on)
        self._reader = FrameReader(self._deliver, STRANGERS_FRAME_BYTES)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Part] = deque()
        self._scheduled = False
        self._paused = False
        self._closing = False
        self._last_resort: asyncio.TimerHandle | None = None

    # What ends override

    def on_open(self) -> None:
        """The transport is there; `fail` refuses it."""

    def on_end(self, error: Exception | None) -> None:
        """The connection has ended. Called once, also for one that was refused."""

    def on_closing(self) -> None:
        """Nothing more can be sent. May be called several times."""

    def on_violation(self, error: ProtocolError) -> None:
        """The peer sent what no frame is, or what has no place here; this has to end the connection."""
        self.fail(error.what)

    def on_pause(self) -> None:
        """The peer does not fetch what is sent to it."""

    def on_resume(self) -> None:
        """It does again."""

    # Sending

    @property
    def waiting(self) -> int:
        """Bytes that wait here because the peer does not fetch them, or until the end of this tick."""
        return self.enqueued - self.written

    @property
    def alive(self) -> bool:
        """Whether frames can be sent."""
        return self._transport is not None and not self._closing

    def send(self, frame: tuple[list[Part], int], *, now: bool = False) -> None:
        """Send a frame with all others of this tick; ``now``: at once, when nothing else waits.

        A frame for a connection that has ended is dropped: `on_end` tells what that means for a call.
        """
        parts, size = frame
        if not self.alive:
            return
        self.enqueued += size
        self._waiting.extend(parts)
        if now and not self._scheduled:
            self._flush()
        elif not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._end_of_tick)

    def trust(self) -> None:
        """The peer has proved itself: frames may be large from now on, and may lie in shared memory."""
        self._reader.max_frame_bytes = self.limits.max_frame_bytes
        if self._transport is not None:
            self.lending.offer(peer_of(self._transport.get_extra_info("socket"))[0])

    def _end_of_tick(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        transport = self._transport
        waiting = self._waiting
        if transport is None or self._paused:
            return
        if self.waiting <= JOINED_BYTES:  # nearly always
            data: Part = b"".join(waiting)
            waiting.clear()
            if data:
                self.written += len(data)
                transport.write(data)
        else:
            while waiting and not self._paused:
                data = self._next_piece()
                self.written += len(data)
                transport.write(data)
        if self._closing and not waiting:
            transport.close()

    def _next_piece(self) -> Part:
        """Take small parts together, or a piece of a large one, from the front of what waits."""
        waiting = self._waiting
        first = waiting.popleft()
        if len(first) > WRITTEN_BYTES:
            view = memoryview(first)
            waiting.appendleft(view[WRITTEN_BYTES:])
            return view[:WRITTEN_BYTES]
        if len(first) >= JOINED_BYTES:
            return first
        small, size = [first], len(first)
        while waiting and size + len(waiting[0]) <= JOINED_BYTES:
            small.append(waiting.popleft())
            size += len(small[-1])
        return b"".join(small)

    # Ending

    def close(self, reason: str = "") -> None:
        """End the connection when everything that waits has been sent."""
        if not self._closing:
            self._begin_end(reason)
            # A peer that fetches nothing would keep the connection for ever.
            self._last_resort = self.loop.call_later(self.limits.stall_s, self.abort)
            self._flush()

    def abort(self, reason: str = "") -> None:
        """End the connection now. What waits is lost."""
        self._begin_end(reason)
        self._waiting.clear()
        if self._transport is not None:
            self._transport.abort()

    def _begin_end(self, reason: str) -> None:
        self._closing = True
        self._reader.stopped = True
        self.reason = self.reason or reason
        self.on_closing()

    def fail(self, reason: str, *, refusal: tuple[list[Part], int] | None = None) -> None:
        """End the connection because of what the peer did, say so in the log, and with ``refusal`` to the peer."""
        if self._closing:
            return
        log.warning("the channel with %s is closed: %s", self.peer, reason)
        if refusal is None or self._paused:
            self.abort(reason)
        else:
            self.send(refusal)
            self.close(reason)

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        self.peer = _peer_name(transport)
        _notice_lost_hosts(transport)
        self._guarded(self.on_open)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._closing = True
        self._reader.stopped = True
        self._waiting.clear()
        if self._last_resort is not None:
            self._last_resort.cancel()
        self.lending.end()
        if error is not None and not self.reason:
            self.reason = f"{type(error).__name__}: {error}"
        self._guarded(lambda: self.on_end(error))
        if not self.ended.done():
            self.ended.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._reader.received(nbytes)
        except ProtocolError as error:
            self.on_violation(error)
        except Exception:
            log.exception("the channel with %s is closed: a frame could not be dealt with", self.peer)
            self.abort("a frame could not be dealt with")

    def pause_writing(self) -> None:
        self._paused = True
        self._guarded(self.on_pause)

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()
        if not self._paused:
            self._guarded(self.on_resume)

    def pause_reading(self) -> None:
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._closing and not self._transport.is_reading():
            self._transport.resume_reading()

    # Frames that both ends know

    def _deliver(self, kind: int, call: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        handler = self.handlers.get(kind)
        if handler is None:
            raise ProtocolError(f"a {Kind(kind).name} frame has no place here")
        if buffers or isinstance(body, Segment):
            # All of them, whatever becomes of the frame: they come back when nobody refers to them.
            body, *buffers = (
                self.lending.map(part) if isinstance(part, Segment) else part for part in (body, *buffers)
            )
        handler(call, head, body, buffers)

    def _on_ping(self, call: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        self.send(encode(Kind.PONG, call))

    def _guarded(self, step: Any) -> None:
        try:
            step()
        except Exception:
            log.exception("the channel with %s is closed", self.peer)
            self.abort("an internal error")


def _peer_name(transport: asyncio.BaseTransport) -> str:
    name = transport.get_extra_info("peername") or transport.get_extra_info("sockname")
    if isinstance(name, tuple):
        return f"{name[0]}:{name[1]}"
    return str(name or transport.get_extra_info("sockname") or "a unix socket")


def _notice_lost_hosts(transport: asyncio.BaseTransport) -> None:
    """Let the kernel find out that a peer's machine is gone: it asks also while the peer's event loop is busy."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return
    for level, option, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 10),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 25_000),
    ):
        if (number := getattr(socket, option, None)) is not None:
            sock.setsockopt(level, number, value)
