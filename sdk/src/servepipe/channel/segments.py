"""Large buffers between processes of one machine: written into shared memory once, instead of through a socket.

The sender copies a buffer into a file in memory and sends only its number; the receiver maps that file by way of
``/proc``, which the kernel allows for processes of one user in one container, and says so when the last reference to
the mapping is gone. Then the memory is used for the next value. Such files are in no folder: whatever happens to either
process, nothing is left behind.

A number may come to mean another file when its connection has ended. So every file bears the name of its connection,
and is mapped only when it does.
"""

from __future__ import annotations

import mmap
import os
import secrets
import weakref
from collections.abc import Callable

from servepipe.channel.frames import MAX_SEGMENT_BYTES, MAX_SEGMENT_FD, Segment

__all__ = ["NAME_BYTES", "SEGMENT_BYTES", "Lender", "borrow"]

NAME_BYTES = 32

SEGMENT_BYTES = 256 << 10
"""Smaller buffers go through the socket."""

MAX_LENT = 64
MAX_LENT_BYTES = 4 << 30
KEPT_BYTES = 256 << 20
"""What one connection may have lent at a time, and how much it keeps for the next values."""


class Lender:
    """The memory that one side of a connection lends to the other.

    Attributes:
        name: Of this connection's files, of `NAME_BYTES` characters; for the peer.
    """

    def __init__(self) -> None:
        self.name = secrets.token_hex(NAME_BYTES // 2)
        self._lent: dict[int, int] = {}  # capacity by file
        self._free: dict[int, int] = {}
        self._lent_bytes = 0

    @property
    def lent(self) -> int:
        """How many segments the peer has."""
        return len(self._lent)

    @property
    def kept_bytes(self) -> int:
        """Memory that waits for the next values."""
        return sum(self._free.values())

    def lend(self, data: memoryview) -> Segment | None:
        """Copy ``data``, which has to be contiguous, into a segment; None: there is none to be had."""
        size = data.nbytes
        if len(self._lent) >= MAX_LENT or self._lent_bytes + size > MAX_LENT_BYTES or size > MAX_SEGMENT_BYTES:
            return None
        try:
            fd, capacity = self._take(size)
        except OSError:
            return None
        try:
            _write(fd, data)
        except OSError:  # no memory
            os.close(fd)
            return None
        self._lent[fd] = capacity
        self._lent_bytes += capacity
        return Segment(fd, size)

    def take_back(self, fd: int) -> None:
        """The peer has no reference to a segment any more. Raises KeyError: it never had it."""
        capacity = self._lent.pop(fd)
        self._lent_bytes -= capacity
        if self.kept_bytes + capacity > KEPT_BYTES:
            os.close(fd)
        else:
            self._free[fd] = capacity

    def drop_kept(self) -> None:
        """Give back the memory that waits for the next values."""
        for fd in self._free:
            os.close(fd)
        self._free.clear()

    def close(self) -> None:
        """The connection has ended: what the peer has mapped stays there as long as it needs it."""
        self.drop_kept()
        for fd in self._lent:
            os.close(fd)
        self._lent.clear()
        self._lent_bytes = 0

    def _take(self, size: int) -> tuple[int, int]:
        """A file with room for ``size`` bytes: the smallest that waits, unless it is far too large, or a new one."""
        fits = [(capacity, fd) for fd, capacity in self._free.items() if size <= capacity <= 4 * size]
        if fits:
            capacity, fd = min(fits)
            del self._free[fd]
            return fd, capacity
        fd = os.memfd_create(self.name, os.MFD_CLOEXEC)
        if fd > MAX_SEGMENT_FD:
            os.close(fd)
            raise OSError("too many files are open")
        try:
            os.ftruncate(fd, size)
        except OSError:
            os.close(fd)
            raise
        return fd, size


def borrow(pid: int, name: str, segment: Segment, released: Callable[[int], None]) -> mmap.mmap:
    """Map a segment of the process ``pid``: memory that is this process's own until the last reference to it is gone.

    Args:
        name: Of the lender.
        released: Called with the segment's number then, in whatever thread that happens.

    Raises:
        OSError: The file cannot be opened: another user, another container, no such file, or not the lender's.
        ValueError: It is smaller than the segment.
    """
    fd = os.open(f"/proc/{pid}/fd/{segment.fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        # Of what has been opened, not of what is to be: that may change in between.
        if os.readlink(f"/proc/self/fd/{fd}") != f"/memfd:{name} (deleted)":  # noqa: PTH115 - Paths cost more
            raise OSError(f"file {segment.fd} of process {pid} is not the one that was lent")
        if not segment.size:
            raise ValueError("a segment of no size")  # which would mean the whole file
        mapping = mmap.mmap(fd, segment.size)
    finally:
        os.close(fd)
    weakref.finalize(mapping, released, segment.fd).atexit = False
    return mapping


def _write(fd: int, data: memoryview) -> None:
    view = data.cast("B") if data.format != "B" or data.ndim != 1 else data
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], done)
