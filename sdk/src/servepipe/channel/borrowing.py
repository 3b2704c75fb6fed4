"""Large buffers that lie in another process's segments: mapped, known again, and given back.

What a process gets for itself alone it may write to. What it may pass on, or others may have as well, is mapped
privately: whoever writes to it gets pages of its own, and the segment stays as it was lent. So a buffer that an ingress
got from one node can be lent to the next as it is, instead of being copied into a segment of the ingress's own. Whether
its pages are still those of the segment is told by the kernel (``/proc/self/pagemap``, bits 61 to 63 of each page's
entry, see ``admin-guide/mm/pagemap`` of the Linux documentation).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable
from functools import cache

from servepipe.channel.frames import Segment

__all__ = ["Borrowed", "Kept", "borrow", "borrowed"]

_PRESENT_OR_SWAPPED = 0xC0
_OF_A_FILE = 0x20
_ENTRY_BYTES = 8

AS_LENT = bytes(bits for bits in range(256) if not bits & _PRESENT_OR_SWAPPED or bits & _OF_A_FILE)
"""Highest bytes of the entries of pages that were not written to: of the file, or not looked at yet."""

Released = Callable[[int, bool], None]
"""Receives a segment's number, and whether its memory may be used again."""


class Kept:
    """What of one lender's segments is kept from coming back, because it has been passed on."""

    def __init__(self) -> None:
        self.segments = 0
        self.bytes = 0


class Borrowed:
    """A segment that is mapped here, and may be passed on.

    Args:
        kept: Of its lender.

    Attributes:
        segment: As it was lent.
        reusable: Whether its lender may write to it once it comes back. No longer, when somebody may have it for longer
            than this process knows.
        kept: As the argument.
    """

    def __init__(self, pid: int, segment: Segment, mapping: mmap.mmap, kept: Kept) -> None:
        self.segment = segment
        self.reusable = True
        self.kept = kept
        self.address, _ = _place(mapping)
        self._pid = pid
        self._mapping = weakref.ref(mapping)
        self._passed_on = 0

    @property
    def mapping(self) -> mmap.mmap | None:
        """The memory, which keeps the segment from being given back; None: it is on its way.

        That is not rare between threads: Python unmaps memory before it tells that a mapping is gone, and another may
        have its address by then.
        """
        return self._mapping()

    @property
    def as_lent(self) -> bool:
        """Whether nothing was written to it here. False also where that cannot be found out."""
        return _kernel_tells() and _not_written(self.address, self.segment.size)

    def open(self) -> int:
        """A file of this process that is the segment. Raises OSError: its lender does not have it any more."""
        return _open(self._pid, self.segment, os.O_RDONLY)

    def begin(self) -> None:
        """It is passed on once more."""
        if not self._passed_on:
            self.kept.segments += 1
            self.kept.bytes += self.segment.size
        self._passed_on += 1

    def end(self, *, reusable: bool) -> None:
        """Whoever it was passed on to has given it back, or may have it for ever."""
        self._passed_on -= 1
        if not self._passed_on:
            self.kept.segments -= 1
            self.kept.bytes -= self.segment.size
        if not reusable:
            self.reusable = False


_borrowed: dict[int, Borrowed] = {}
"""All of this process, by their address."""


def borrow(pid: int, segment: Segment, released: Released, kept: Kept | None = None) -> mmap.mmap:
    """Map a segment of the process ``pid``: memory that is this process's own until the last reference to it is gone.

    Args:
        released: Called then, in whatever thread that happens.
        kept: Of its lender, where the segment may be passed on; None: where it may not.

    Raises:
        OSError: The file cannot be opened: another user, another container, no such file, or not the one that was lent.
        ValueError: It is smaller than the segment.
    """
    private = segment.shared or kept is not None
    fd = _open(pid, segment, os.O_RDONLY if private else os.O_RDWR)
    try:
        if not segment.size:
            raise ValueError("a segment of no size")  # which would mean the whole file
        mapping = mmap.mmap(fd, segment.size, access=mmap.ACCESS_COPY if private else mmap.ACCESS_WRITE)
    finally:
        os.close(fd)
    if kept is None:
        weakref.finalize(mapping, released, segment.fd, True).atexit = False
    else:
        record = Borrowed(pid, segment, mapping, kept)
        _borrowed[record.address] = record
        weakref.finalize(mapping, _end, record, released).atexit = False
    return mapping


def borrowed(data: memoryview) -> Borrowed | None:
    """The segment that ``data``, which has to be contiguous, is the whole of; None: there is none."""
    if not _borrowed:
        return None
    address, size = _place(data)
    record = _borrowed.get(address)
    return record if record is not None and record.segment.size == size else None


def _end(record: Borrowed, released: Released) -> None:
    try:
        # Another mapping may have the address by now, and lose it in this very moment.
        if _borrowed.get(record.address) is record:
            _borrowed.pop(record.address, None)
    finally:
        released(record.segment.fd, record.reusable)


def _before_fork() -> None:
    """A child has all that is mapped here, and nobody knows for how long."""
    for record in [*_borrowed.values()]:
        record.reusable = False


os.register_at_fork(before=_before_fork)


def _open(pid: int, segment: Segment, mode: int) -> int:
    # The number may mean anything by now: something to wait for, or a terminal.
    fd = os.open(f"/proc/{pid}/fd/{segment.fd}", mode | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    # Of what has been opened, not of what is to be: that may change in between.
    if os.readlink(f"/proc/self/fd/{fd}") != f"/memfd:{segment.name.hex()} (deleted)":  # noqa: PTH115 - Paths cost more
        os.close(fd)
        raise OSError(f"file {segment.fd} of process {pid} is not the one that was lent")
    return fd


def _not_written(address: int, size: int) -> bool:
    """Whether all pages of a private mapping are those of its file, or not there yet."""
    count = -(-size // mmap.PAGESIZE)
    try:
        # Opened each time: a file that was opened before a fork would tell of the other process.
        with open("/proc/self/pagemap", "rb", buffering=0) as pages:  # noqa: PTH123 - Paths cost more
            entries = os.pread(pages.fileno(), count * _ENTRY_BYTES, address // mmap.PAGESIZE * _ENTRY_BYTES)
    except OSError:
        return False
    highest = entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES]
    return len(highest) == count and not highest.translate(None, AS_LENT)


@cache
def _kernel_tells() -> bool:
    """Whether this kernel tells pages that were written to from others: found out with two of them."""
    try:
        fd = os.memfd_create("servepipe", os.MFD_CLOEXEC)
    except OSError:
        return False
    try:
        os.pwrite(fd, b"12", 0)
        os.ftruncate(fd, 2 * mmap.PAGESIZE)
        with mmap.mmap(fd, 2 * mmap.PAGESIZE, access=mmap.ACCESS_COPY) as pages:
            address, size = _place(pages)
            read = pages[0] + pages[mmap.PAGESIZE]
            before = _not_written(address, size)
            pages[mmap.PAGESIZE] = read % 256
            return before and not _not_written(address, size) and _not_written(address, mmap.PAGESIZE)
    except OSError:
        return False
    finally:
        os.close(fd)


class _Buffer(ctypes.Structure):
    """``Py_buffer``, as it is in Python's stable ABI."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def _place(data: memoryview | mmap.mmap) -> tuple[int, int]:
    """Address and number of bytes of a contiguous buffer, also of a read-only one, which ``from_buffer`` refuses."""
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(data), ctypes.byref(buffer), 0)
    try:
        return buffer.buf or 0, buffer.len
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
