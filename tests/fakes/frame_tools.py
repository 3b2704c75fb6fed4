"""For tests of the channel: frames as bytes, and frames read back with copies of everything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from servepipe.channel.frames import Segment, encode
from servepipe.channel.reader import FrameReader


class Frame(NamedTuple):
    kind: int
    call: int
    head: bytes = b""
    body: bytes | Segment = b""
    buffers: tuple[bytes | Segment, ...] = ()

    def encode(self) -> bytes:
        parts, size = encode(self.kind, self.call, self.head, (self.body, list(self.buffers)))
        data = b"".join(parts)
        assert len(data) == size
        return data


class Frames:
    """A reader that keeps what it delivers; ``feed`` hands it bytes as a transport does."""

    def __init__(self, max_frame_bytes: int = 1 << 30) -> None:
        self.frames: list[Frame] = []
        self.reader = FrameReader(self._keep, max_frame_bytes)
        self.largest_buffer = 0

    def _keep(self, kind, call, head, body, buffers):
        body = body if isinstance(body, Segment) else bytes(body)
        self.frames.append(
            Frame(
                kind,
                call,
                bytes(head),
                body,
                tuple(part if isinstance(part, Segment) else bytes(part) for part in buffers),
            )
        )

    def feed(self, data: bytes, pieces: Iterable[int] = ()) -> None:
        """Hand ``data`` over, at most ``pieces`` bytes at a time in turn; then as much as the reader has room for."""
        sizes = iter(pieces)
        while data:
            place = self.reader.get_buffer()
            assert len(place) > 0
            self.largest_buffer = max(self.largest_buffer, len(place))
            count = min(len(place), len(data), max(1, next(sizes, len(data))))
            place[:count] = data[:count]
            data = data[count:]
            self.reader.received(count)
