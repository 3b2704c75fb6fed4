"""Large buffers between processes of one machine: written into shared memory once, instead of through a socket.

The sender copies a buffer into a file in memory and sends only its number and name; the receiver maps that file by way
of ``/proc``, which the kernel allows for processes of one user in one container, and says so when the last reference to
the mapping is gone: see `servepipe.channel.borrowing`. Then the memory is used for the next value. Such files are in no
folder: whatever happens to either process, nothing is left behind.

A buffer that an answer brought, and that is as it was, is passed on: the next process maps the first one's file. That
keeps it from coming back, so whoever passes on keeps only a part of what one lender may have lent.

A number may come to mean another file when its connection has ended. So every file bears a name of its own, and is
mapped only when it does.
"""

from __future__ import annotations

import mmap
import os
import secrets
from dataclasses import dataclass

from servepipe.channel.borrowing import Borrowed, borrowed
from servepipe.channel.frames import MAX_SEGMENT_BYTES, MAX_SEGMENT_FD, SEGMENT_NAME_BYTES, Segment

__all__ = ["SEGMENT_BYTES", "Lender"]

SEGMENT_BYTES = 256 << 10
"""Smaller buffers go through the socket."""

MAX_LENT = 64
MAX_LENT_BYTES = 4 << 30
KEPT_BYTES = 256 << 20
"""What one connection may have lent at a time, and how much it keeps for the next values."""

MAX_KEPT = MAX_LENT // 2
MAX_KEPT_BYTES = MAX_LENT_BYTES // 2
"""What of another's segments may be passed on at a time, so that a process which holds on to values for long leaves
their lender enough for all others."""


@dataclass(frozen=True, slots=True)
class _Own:
    """A file with memory of this process."""

    fd: int
    name: bytes
    size: int


@dataclass(frozen=True, slots=True)
class _PassedOn:
    """A file with memory of another process, and the mapping of it that keeps it from being given back."""

    fd: int
    record: Borrowed
    mapping: mmap.mmap

    @property
    def size(self) -> int:
        return self.record.segment.size


class Lender:
    """The memory that one side of a connection lends to the other."""

    def __init__(self) -> None:
        self._lent: dict[int, _Own | _PassedOn] = {}
        self._free: dict[int, _Own] = {}
        self._lent_bytes = 0

    @property
    def lent(self) -> int:
        """How many segments the peer has."""
        return len(self._lent)

    @property
    def kept_bytes(self) -> int:
        """Memory that waits for the next values."""
        return sum(own.size for own in self._free.values())

    def lend(self, data: memoryview) -> Segment | None:
        """Put ``data``, which has to be contiguous, into a segment; None: there is none to be had."""
        size = data.nbytes
        if len(self._lent) >= MAX_LENT or self._lent_bytes + size > MAX_LENT_BYTES or size > MAX_SEGMENT_BYTES:
            return None
        try:
            return self._pass_on(data) or self._copy(data)
        except OSError:  # no file or no memory
            return None

    def take_back(self, fd: int, reusable: bool = True) -> None:
        """The peer has no reference to a segment any more. Raises KeyError: it never had it.

        Args:
            reusable: False: somebody else may still have one.
        """
        lent = self._lent.pop(fd)
        self._lent_bytes -= lent.size
        if isinstance(lent, _PassedOn):
            lent.record.end(reusable=reusable)
            os.close(fd)
        elif reusable and self.kept_bytes + lent.size <= KEPT_BYTES:
            self._free[fd] = lent
        else:
            os.close(fd)

    def drop_kept(self) -> None:
        """Give back the memory that waits for the next values."""
        for fd in self._free:
            os.close(fd)
        self._free.clear()

    def close(self) -> None:
        """The connection has ended: what the peer has mapped stays there as long as it needs it."""
        self.drop_kept()
        for fd in [*self._lent]:
            self.take_back(fd, reusable=False)

    def _pass_on(self, data: memoryview) -> Segment | None:
        record = borrowed(data)
        if record is None or not _may_be_kept(record):
            return None
        mapping = record.mapping
        if mapping is None or not record.as_lent:
            return None
        try:
            fd = _low(record.open())
        except OSError:  # whoever lent it has ended
            return None
        segment = self._lend(_PassedOn(fd, record, mapping), record.segment.name, record.segment.size, shared=True)
        record.begin()
        return segment

    def _copy(self, data: memoryview) -> Segment:
        own = self._take(data.nbytes)
        try:
            _write(own.fd, data)
        except BaseException:  # no memory
            os.close(own.fd)
            raise
        return self._lend(own, own.name, data.nbytes, shared=False)

    def _lend(self, lent: _Own | _PassedOn, name: bytes, size: int, *, shared: bool) -> Segment:
        self._lent[lent.fd] = lent
        self._lent_bytes += lent.size
        return Segment(lent.fd, size, name, shared)

    def _take(self, size: int) -> _Own:
        """A file with room for ``size`` bytes: the smallest that waits, unless it is far too large, or a new one."""
        fits = [own for own in self._free.values() if size <= own.size <= 4 * size]
        if fits:
            return self._free.pop(min(fits, key=lambda own: own.size).fd)
        name = secrets.token_bytes(SEGMENT_NAME_BYTES)
        fd = _low(os.memfd_create(name.hex(), os.MFD_CLOEXEC))
        try:
            os.ftruncate(fd, size)
        except OSError:
            os.close(fd)
            raise
        return _Own(fd, name, size)


def _may_be_kept(record: Borrowed) -> bool:
    kept = record.kept
    return kept.segments < MAX_KEPT and kept.bytes + record.segment.size <= MAX_KEPT_BYTES


def _low(fd: int) -> int:
    """``fd``, when a frame has room for the number; OSError, and it is closed, when not."""
    if fd > MAX_SEGMENT_FD:
        os.close(fd)
        raise OSError("too many files are open")
    return fd


def _write(fd: int, data: memoryview) -> None:
    view = data.cast("B") if data.format != "B" or data.ndim != 1 else data
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], done)
