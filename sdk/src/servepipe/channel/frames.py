"""The frame format: everything that goes over a channel.

    offset  size
    0       2     magic "SP"
    2       1     version of the protocol
    3       1     kind
    4       2     flags: 1, the last buffer is the body
    6       2     n, the number of words in the table of buffers
    8       8     id of the call; 0 where the kind belongs to none
    16      4     length of the head
    20      4     length of the body
    24      8 n   lengths of the buffers, a word each, or where they are, three words each: see `Segment`
            …     head: fields of the kind
            …     body: a pickle, which refers to the buffers
            …     buffers

Little-endian. A peer that sees another magic or version knows nothing about the rest, and ends the connection.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from servepipe.channel.errors import FrameTooLargeError, ProtocolError, Reason

__all__ = [
    "BODY_IS_LAST_BUFFER",
    "HEADER",
    "MAGIC",
    "MAX_BUFFERS",
    "MAX_SEGMENT_BYTES",
    "MAX_SEGMENT_FD",
    "MAX_TABLE_WORDS",
    "NO_PAYLOAD",
    "SEGMENT_NAME_BYTES",
    "SEGMENT_WORDS",
    "STRANGERS_FRAME_BYTES",
    "VERSION",
    "Kind",
    "Limits",
    "Part",
    "Payload",
    "Segment",
    "encode",
    "encode_refusal",
    "parse_refusal",
    "parse_table",
    "parse_text",
]

MAGIC = b"SP"
VERSION = 2

HEADER = struct.Struct("<2sBBHHQII")

MAX_BUFFERS = 1024
"""Buffers of one frame; values with more have the rest inside the pickle."""

STRANGERS_FRAME_BYTES = 4096
"""How large a frame may be from a peer that has not proved itself."""

MAX_BODY_BYTES = (1 << 32) - 1

MAX_TEXT_BYTES = 2000

SEGMENT_WORDS = 3
MAX_TABLE_WORDS = SEGMENT_WORDS * (MAX_BUFFERS + 1)
SEGMENT_NAME_BYTES = 16

_IN_SEGMENT = 1 << 63
_SHARED = 1 << 62
_FD_SHIFT = 40
MAX_SEGMENT_BYTES = (1 << _FD_SHIFT) - 1
MAX_SEGMENT_FD = (1 << 62 - _FD_SHIFT) - 1


_WORD = struct.Struct("<Q")
_SEGMENT = struct.Struct(f"<Q{SEGMENT_NAME_BYTES}s")


@dataclass(frozen=True, slots=True)
class Segment:
    """A buffer that is not in its frame but in memory that its sender lends: see `servepipe.channel.segments`.

    Args:
        fd: Number of the file in the sender's process, at most `MAX_SEGMENT_FD`.
        size: Bytes of the buffer, at most `MAX_SEGMENT_BYTES`; the file may have more.
        name: Of the file, `SEGMENT_NAME_BYTES` bytes: the number may come to mean another.
        shared: Whether others may have it as well.
    """

    fd: int
    size: int
    name: bytes
    shared: bool = False

    @property
    def entry(self) -> bytes:
        """What stands for it in a frame's table."""
        word = _IN_SEGMENT | (_SHARED if self.shared else 0) | self.fd << _FD_SHIFT | self.size
        return _SEGMENT.pack(word, self.name)


def parse_table(table: Part | bytearray) -> list[int | Segment]:
    """The buffers of a frame: the length of one that is in the frame itself, and segments. Raises `ProtocolError`."""
    buffers: list[int | Segment] = []
    place = 0
    while place < len(table):
        (word,) = _WORD.unpack_from(table, place)
        if word & _IN_SEGMENT:
            if len(table) - place < _SEGMENT.size:
                raise ProtocolError("a frame with a part of a segment's entry")
            word, name = _SEGMENT.unpack_from(table, place)
            fd = word >> _FD_SHIFT & MAX_SEGMENT_FD
            buffers.append(Segment(fd, word & MAX_SEGMENT_BYTES, name, bool(word & _SHARED)))
            place += _SEGMENT.size
        else:
            buffers.append(word)
            place += _WORD.size
    if len(buffers) > MAX_BUFFERS + 1:  # with the body
        raise ProtocolError(f"a frame with {len(buffers)} buffers: too many")
    return buffers


Part = bytes | memoryview
Payload = tuple[bytes | Segment, list[Part | Segment]]
"""A value as `servepipe.channel.values.dump` makes it: a pickle, and the buffers that it refers to."""

BODY_IS_LAST_BUFFER = 1
"""The only flag."""

NO_PAYLOAD: Payload = (b"", [])


class Kind(IntEnum):
    """What a frame is. The numbers are on the wire: never change one."""

    HELLO = 1
    """Client: whom it looks for, and its nonce."""
    CHALLENGE = 2
    """Server: its nonce and its proof."""
    PROOF = 3
    """Client: its proof."""
    WELCOME = 4
    """Server: the peer is let in; its limits."""
    CALL = 5
    """Client: method and metadata in the head, arguments in the body."""
    RESULT = 6
    """Server: the call's value."""
    FAILURE = 7
    """Server: the exception that the call raised."""
    REJECT = 8
    """Server: the call was not begun, or the peer is not let in; why."""
    CANCEL = 9
    """Client: nobody waits for the call any longer. Server: it has ended without an answer because of that."""
    PING = 10
    PONG = 11
    GOODBYE = 12
    """Server: it begins nothing more; calls under way end as usual. Client: it has the last answer, and ends."""
    CHUNK = 13
    """Reserved for streams: one item of a call's answer."""
    END = 14
    """Reserved for streams: there are no more."""
    OFFER = 15
    """The sender could lend memory, a first segment of which is ``call``; the head is its name."""
    RELEASE = 16
    """The segment ``call`` is not used any more: by nobody, or, with a head, by nobody that the sender knows of."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one side of a channel accepts.

    Args:
        max_frame_bytes: Largest frame, in and out.
        max_calls: Calls in flight on one connection; the next is rejected.
        max_waiting_bytes: Bytes that may wait to be sent on one connection. Beyond it a client rejects calls, and a
            server reads none.
        max_connections: Connections to one server; more are closed at once.
        max_strangers: How many of them may be in their handshake.
        handshake_s: Seconds until a handshake must be complete.
        idle_s: Seconds without a frame after which a server takes a peer that has no calls for gone.
        stall_s: Seconds that a server waits for a peer that fetches nothing of what it has asked for.
        margin_s: Seconds before its deadline at which a client gives a call up, so that it can still say so.
        keep_s: Seconds after which lent memory that has come back is let go.
    """

    max_frame_bytes: int = 1 << 30
    max_calls: int = 4096
    max_waiting_bytes: int = 256 << 20
    max_connections: int = 1024
    max_strangers: int = 64
    handshake_s: float = 5.0
    idle_s: float = 300.0
    stall_s: float = 60.0
    margin_s: float = 0.0
    keep_s: float = 10.0


def encode(
    kind: int,
    call: int = 0,
    head: bytes = b"",
    payload: Payload = NO_PAYLOAD,
    *,
    max_bytes: int = MAX_BODY_BYTES,
) -> tuple[list[Part], int]:
    """A frame as the parts to send in order, none of them copied, and how many bytes they are.

    Raises `FrameTooLargeError` where that is more than ``max_bytes``, with what lies in segments.
    """
    body, buffers = payload
    if buffers or isinstance(body, Segment):
        return _encode_with_buffers(kind, call, head, body, buffers, max_bytes)
    size = HEADER.size + len(head) + len(body)
    if size > max_bytes or len(body) > MAX_BODY_BYTES:
        raise _too_large(size, max_bytes)
    return [HEADER.pack(MAGIC, VERSION, kind, 0, 0, call, len(head), len(body)), head, body], size


def _encode_with_buffers(
    kind: int, call: int, head: bytes, body: bytes | Segment, buffers: list[Part | Segment], max_bytes: int
) -> tuple[list[Part], int]:
    flags = 0
    if isinstance(body, Segment):
        flags, buffers, body = BODY_IS_LAST_BUFFER, [*buffers, body], b""
    size = HEADER.size + len(head) + len(body)
    parts: list[Part] = [b"", b"", head, body]
    table = bytearray()
    lent = 0
    for buffer in buffers:
        if isinstance(buffer, Segment):
            table += buffer.entry
            lent += buffer.size
        else:
            table += _WORD.pack(len(buffer))
            size += len(buffer)
            parts.append(buffer)
    size += len(table)
    if size + lent > max_bytes or len(body) > MAX_BODY_BYTES:
        raise _too_large(size + lent, max_bytes)
    parts[0] = HEADER.pack(MAGIC, VERSION, kind, flags, len(table) // _WORD.size, call, len(head), len(body))
    parts[1] = bytes(table)
    return parts, size


def _too_large(size: int, max_bytes: int) -> FrameTooLargeError:
    return FrameTooLargeError(f"a value of {size:,} bytes, more than the {max_bytes:,} that a channel takes")


def encode_refusal(reason: Reason, text: str, call: int = 0) -> tuple[list[Part], int]:
    """A REJECT frame."""
    return encode(Kind.REJECT, call, bytes([reason]) + text.encode(errors="replace")[:MAX_TEXT_BYTES])


def parse_refusal(head: Part) -> tuple[Reason, str]:
    """The reason and the text of a REJECT frame's head. A reason that only later versions know: it is not available."""
    if not head:
        raise ProtocolError("a refusal without a reason")
    try:
        reason = Reason(head[0])
    except ValueError:
        reason = Reason.UNAVAILABLE
    return reason, parse_text(head[1:])


def parse_text(head: Part) -> str:
    """A head that is for people to read."""
    return bytes(head[:MAX_TEXT_BYTES]).decode(errors="replace")
