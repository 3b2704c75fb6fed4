"""Large buffers that lie in another process's segments: mapped, passed on unchanged, and given back.

A mapping is private: whoever writes to it gets pages of its own, and the segment stays as it was lent. So a buffer that
came that way can be lent to the next process as it is, instead of being copied into a segment of one's own, which is
what an ingress does with all that goes from one node to another. Whether its pages are still those of the segment is
told by the kernel (``/proc/self/pagemap``, bits 61 to 63 of each page's entry, see ``admin-guide/mm/pagemap`` of the
Linux documentation).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable

from servepipe.channel.frames import Segment

__all__ = ["Borrowed", "borrow", "borrowed"]

_PRESENT_OR_SWAPPED = 0xC0
_OF_A_FILE = 0x20
_ENTRY_BYTES = 8

_AS_LENT = bytes(bits for bits in range(256) if not bits & _PRESENT_OR_SWAPPED or bits & _OF_A_FILE)
"""Highest bytes of the entries of pages that were not written to: of the file, or not looked at yet."""

Released = Callable[[int, bool], None]
"""Receives a segment's number, and whether its memory may be used again."""


class Borrowed:
    """A segment that is mapped here.

    Attributes:
        reusable: Whether its lender may write to it once it comes back. No longer, when a process that it was passed
            on to may have it for longer than this one knows.
    """

    def __init__(self, pid: int, segment: Segment, mapping: mmap.mmap) -> None:
        self.reusable = True
        self._pid = pid
        self._segment = segment
        self._mapping = weakref.ref(mapping)
        self._address, _ = _place(mapping)

    @property
    def size(self) -> int:
        """Bytes of the buffer."""
        return self._segment.size

    @property
    def name(self) -> bytes:
        """As in `Segment`."""
        return self._segment.name

    @property
    def mapping(self) -> mmap.mmap | None:
        """The memory, which keeps the segment from being given back; None: it is on its way."""
        return self._mapping()

    @property
    def as_lent(self) -> bool:
        """Whether nothing was written to it here. False also where that cannot be found out."""
        first = self._address // mmap.PAGESIZE
        count = -(-self.size // mmap.PAGESIZE)
        try:
            # Opened each time: a file that was opened before a fork would tell of the other process.
            with open("/proc/self/pagemap", "rb", buffering=0) as pages:  # noqa: PTH123 - Paths cost more
                entries = os.pread(pages.fileno(), count * _ENTRY_BYTES, first * _ENTRY_BYTES)
        except OSError:
            return False
        highest = entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES]
        return len(highest) == count and not highest.translate(None, _AS_LENT)

    def open(self) -> int:
        """A file of this process that is the segment. Raises OSError: its lender does not have it any more."""
        return _open(self._pid, self._segment)


_borrowed: dict[int, Borrowed] = {}
"""All of this process, by their address."""


def borrow(pid: int, segment: Segment, released: Released) -> mmap.mmap:
    """Map a segment of the process ``pid``: memory that is this process's own until the last reference to it is gone.

    Args:
        released: Called then, in whatever thread that happens.

    Raises:
        OSError: The file cannot be opened: another user, another container, no such file, or not the one that was lent.
        ValueError: It is smaller than the segment.
    """
    fd = _open(pid, segment)
    try:
        if not segment.size:
            raise ValueError("a segment of no size")  # which would mean the whole file
        mapping = mmap.mmap(fd, segment.size, access=mmap.ACCESS_COPY)
    finally:
        os.close(fd)
    record = Borrowed(pid, segment, mapping)
    _borrowed[record._address] = record
    weakref.finalize(mapping, _end, record, released).atexit = False
    return mapping


def borrowed(data: memoryview) -> Borrowed | None:
    """The segment that ``data``, which has to be contiguous, is the whole of; None: there is none."""
    if not _borrowed:
        return None
    address, size = _place(data)
    record = _borrowed.get(address)
    return record if record is not None and record.size == size else None


def _end(record: Borrowed, released: Released) -> None:
    # Another mapping may have the address by now.
    if _borrowed.get(record._address) is record:
        del _borrowed[record._address]
    released(record._segment.fd, record.reusable)


def _open(pid: int, segment: Segment) -> int:
    fd = os.open(f"/proc/{pid}/fd/{segment.fd}", os.O_RDONLY | os.O_CLOEXEC)
    # Of what has been opened, not of what is to be: that may change in between.
    if os.readlink(f"/proc/self/fd/{fd}") != f"/memfd:{segment.name.hex()} (deleted)":  # noqa: PTH115 - Paths cost more
        os.close(fd)
        raise OSError(f"file {segment.fd} of process {pid} is not the one that was lent")
    return fd


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
