"""What the two ends of a connection agree on about shared memory: whether they have any, and when it comes back.

Each side lends a first segment of one byte, and tells its number and name (OFFER). A peer that can map
it does, and gives it back (RELEASE), which shows that large values may go this way. One that cannot, because it runs in
another container, says nothing, and everything goes through the socket.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import socket
import struct
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from servepipe.channel.borrowing import Kept, borrow
from servepipe.channel.errors import ProtocolError
from servepipe.channel.frames import SEGMENT_NAME_BYTES, Kind, Part, Segment, encode
from servepipe.channel.segments import Lender

__all__ = ["Lending", "peer_of"]

log = logging.getLogger("servepipe.channel")

_NOT_REUSABLE = b"\1"

Send = Callable[[tuple[list[Part], int]], None]


class Lending:
    """Belongs to one connection and its event loop.

    Args:
        send: Sends a frame.
        keep_s: As in `servepipe.channel.frames.Limits`.
        passes_on: Whether what comes here may go on to others as it came. It costs whoever writes to it more: what a
            replica gets as an argument is mostly for itself, what a caller gets as an answer is mostly for others.

    Attributes:
        lender: Where large values go; None: through the socket.
    """

    def __init__(self, send: Send, keep_s: float, *, passes_on: bool) -> None:
        self.lender: Lender | None = None
        self._send = send
        self._keep_s = keep_s
        self._kept = Kept() if passes_on else None
        self._loop = asyncio.get_running_loop()
        self._own: Lender | None = None
        self._first: Segment | None = None
        self._pid = 0
        self._offered = False
        self._can_map = False
        self._drop: asyncio.TimerHandle | None = None

    def offer(self, pid: int) -> None:
        """Offer memory to a peer, the process ``pid`` of this machine; 0: it is none of this machine."""
        self._pid = pid
        if not pid:
            return
        self._own = Lender()
        self._first = self._own.lend(memoryview(b"\0"))
        if self._first is not None:
            self._send(encode(Kind.OFFER, self._first.fd, self._first.name))

    def handlers(self) -> Mapping[int, Any]:
        """What receives the frames of this."""
        return {Kind.OFFER: self._on_offer, Kind.RELEASE: self._on_release}

    def map(self, segment: Segment) -> mmap.mmap:
        """The peer's segment, as memory of this process. Raises `ProtocolError`."""
        if not self._can_map:
            raise ProtocolError("a value in memory that was never offered")
        try:
            return self._borrow(segment)
        except (OSError, ValueError) as error:
            raise ProtocolError(f"a value in memory that cannot be had: {error}") from None

    def end(self) -> None:
        """The connection has ended."""
        self.lender = None
        if self._drop is not None:
            self._drop.cancel()
        if self._own is not None:
            self._own.close()
            self._own = None

    def _borrow(self, segment: Segment) -> mmap.mmap:
        # The mapping may outlive the connection, which it must not keep.
        weak = weakref.ref(self)
        loop = self._loop

        def released(fd: int, reusable: bool) -> None:
            lending = weak()
            if lending is not None:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(lending._released, fd, reusable)

        return borrow(self._pid, segment, released, self._kept)

    def _released(self, fd: int, reusable: bool) -> None:
        self._send(encode(Kind.RELEASE, fd, b"" if reusable else _NOT_REUSABLE))

    def _on_offer(self, fd: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        if len(head) != SEGMENT_NAME_BYTES or self._offered:
            raise ProtocolError("an offer that is none")
        self._offered = True
        try:
            self._borrow(Segment(fd, 1, bytes(head)))  # and gone again, which is the answer
        except (OSError, ValueError) as error:
            log.debug("large values come through the socket: %s", error)
        else:
            self._can_map = True

    def _on_release(self, fd: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        if self._own is None:
            raise ProtocolError("memory comes back that was never lent")
        try:
            self._own.take_back(fd, reusable=not head)
        except KeyError:
            raise ProtocolError("memory comes back that was never lent") from None
        if self._first is not None and fd == self._first.fd:
            self._first = None
            self._own.drop_kept()  # a byte is of no further use
            self.lender = self._own
        if self._drop is None:
            self._drop = self._loop.call_later(self._keep_s, self._drop_kept)

    def _drop_kept(self) -> None:
        self._drop = None
        if self._own is not None:
            self._own.drop_kept()


def peer_of(sock: Any) -> tuple[int, int]:
    """Process and user at the other end of a unix socket, as the kernel knows them; (0, -1) for any other socket."""
    if sock is None or sock.family != socket.AF_UNIX:
        return 0, -1
    pid, user, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, user
