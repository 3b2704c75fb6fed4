"""Bytes as they come, cut into frames.

Small frames are delivered where they lie in one buffer that is used again and again. What is large is received into
its final place: the reader hands that out as the buffer for the next ``recv``, so that a large array is never copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from servepipe.channel.errors import ProtocolError, VersionError
from servepipe.channel.frames import (
    BODY_IS_LAST_BUFFER,
    HEADER,
    MAGIC,
    MAX_TABLE_WORDS,
    VERSION,
    Kind,
    Part,
    Segment,
    parse_table,
)

__all__ = ["Deliver", "FrameReader"]

CAPACITY = 64 * 1024
"""Size of the buffer for small frames; every connection has one."""

DIRECT = 16 * 1024
"""From this many missing bytes on, a part of a frame is received into its own place."""

Deliver = Callable[[int, int, memoryview, Part | bytearray | Segment, Sequence[bytearray | Segment]], None]
"""Receives kind, call, head, body, buffers. Head and body are valid only until it returns, the buffers for ever."""

_LAST_KIND = max(Kind)


class FrameReader:
    """Args:
        deliver: Called with each frame. What it raises goes through `received`.
        max_frame_bytes: A larger frame is an error, before memory is taken for it. May be changed between two frames.

    Attributes:
        stopped: Set to deliver nothing more.
    """

    __slots__ = (
        "_call",
        "_deliver",
        "_direct",
        "_end",
        "_filled",
        "_flags",
        "_kind",
        "_lengths",
        "_memory",
        "_missing",
        "_parts",
        "_prefix",
        "_start",
        "_target",
        "_view",
        "max_frame_bytes",
        "stopped",
    )

    def __init__(self, deliver: Deliver, max_frame_bytes: int) -> None:
        self._deliver = deliver
        self.max_frame_bytes = max_frame_bytes
        self.stopped = False
        self._memory = bytearray(CAPACITY)
        self._view = memoryview(self._memory)
        self._start = 0
        self._end = 0
        self._direct = False
        # The frame under way when it has parts of its own.
        self._target: memoryview | None = None
        self._filled = 0
        self._kind = 0
        self._call = 0
        self._lengths = (0, 0, 0)
        self._prefix: bytearray | None = None
        self._parts: list[bytearray | Segment] = []
        self._missing: list[int | Segment] = []
        self._flags = 0

    def get_buffer(self) -> memoryview:
        """Where the next bytes go; never empty."""
        target = self._target
        if target is not None and len(target) - self._filled >= DIRECT:
            self._direct = True
            return target[self._filled :]
        self._direct = False
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start and CAPACITY - self._end < CAPACITY // 4:
            rest = self._end - self._start
            self._view[:rest] = self._view[self._start : self._end]
            self._start, self._end = 0, rest
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """Take ``count`` bytes that lie in what `get_buffer` gave, and deliver the frames that they complete.

        Raises:
            ProtocolError: The bytes are no frames. The reader is of no further use.
        """
        if self._direct:
            self._filled += count
        else:
            self._end += count
        while not self.stopped:
            if self._target is not None:
                if not self._fill(self._target):
                    return
            elif not self._begin():
                return

    def _begin(self) -> bool:
        """Deliver or begin the frame at the start of the buffer; False: too little of it is there."""
        start = self._start
        present = self._end - start
        if present < HEADER.size:
            if self._memory[start : min(start + 2, self._end)] != MAGIC[:present]:
                raise ProtocolError("no frame: it does not begin as one does")
            return False
        magic, version, kind, flags, count, call, head, body = HEADER.unpack_from(self._memory, start)
        if magic != MAGIC:
            raise ProtocolError("no frame: it does not begin as one does")
        if version != VERSION:
            raise VersionError(f"a frame of version {version}; this side speaks {VERSION}")
        if not 0 < kind <= _LAST_KIND:
            raise ProtocolError(f"a frame of the unknown kind {kind}")
        if flags & ~BODY_IS_LAST_BUFFER or (flags and not count):
            raise ProtocolError(f"a frame with the unknown flags {flags:#x}")
        prefix = HEADER.size + 8 * count + head + body
        if count > MAX_TABLE_WORDS or prefix > self.max_frame_bytes:
            raise ProtocolError(f"a frame of at least {prefix:,} bytes and {count} words of buffers: too large")
        if present < prefix:
            if prefix <= CAPACITY:
                return False
            self._kind, self._flags, self._call, self._lengths = kind, flags, call, (count, head, body)
            self._prefix = bytearray(prefix)
            self._aim(self._prefix)
            return True
        self._start = start + prefix
        if count:
            self._kind, self._flags, self._call, self._lengths = kind, flags, call, (count, head, body)
            self._prefix = bytearray(self._view[start : start + prefix])
            self._begin_buffers(self._prefix)
        else:
            split = start + HEADER.size + head
            self._deliver(kind, call, self._view[start + HEADER.size : split], self._view[split : split + body], ())
        return True

    def _aim(self, place: bytearray) -> None:
        self._target = memoryview(place)
        self._filled = 0

    def _fill(self, target: memoryview) -> bool:
        """Move what has come to ``target``; False: it is not complete."""
        take = min(len(target) - self._filled, self._end - self._start)
        if take:
            target[self._filled : self._filled + take] = self._view[self._start : self._start + take]
            self._filled += take
            self._start += take
        if self._filled < len(target):
            return False
        self._target = None
        self._direct = False
        if self._parts or not self._lengths[0]:
            self._next_buffer()
        elif self._prefix is not None:
            self._begin_buffers(self._prefix)
        return True

    def _begin_buffers(self, prefix: bytearray) -> None:
        table = memoryview(prefix)[HEADER.size : HEADER.size + 8 * self._lengths[0]]
        self._missing = parse_table(table)
        total = len(prefix) + sum(part.size if isinstance(part, Segment) else part for part in self._missing)
        if total > self.max_frame_bytes:
            raise ProtocolError(f"a frame of {total:,} bytes: too large")
        self._missing.reverse()
        self._next_buffer()

    def _next_buffer(self) -> None:
        """Receive the next buffer, or deliver the frame when there is none."""
        while self._missing:
            part = self._missing.pop()
            if not isinstance(part, Segment):
                place = bytearray(part)
                self._parts.append(place)
                self._aim(place)
                return
            self._parts.append(part)
        assert self._prefix is not None
        count, head, size = self._lengths
        split = HEADER.size + 8 * count + head
        view = memoryview(self._prefix)
        parts, self._parts, self._prefix = self._parts, [], None
        body: Part | Segment | bytearray = view[split : split + size]
        if self._flags & BODY_IS_LAST_BUFFER:
            body = parts.pop()
        self._deliver(self._kind, self._call, view[split - head : split], body, parts)
