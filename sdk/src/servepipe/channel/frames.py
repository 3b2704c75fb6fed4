"""The frame format: everything that goes over a channel.

    offset  size
    0       2     magic "SP"
    2       1     version of the protocol
    3       1     kind
    4       2     flags, 0 in version 1
    6       2     n, the number of buffers
    8       8     id of the call; 0 where the kind belongs to none
    16      4     length of the head
    20      4     length of the body
    24      8 n   lengths of the buffers
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
    "HEADER",
    "MAGIC",
    "MAX_BUFFERS",
    "NO_PAYLOAD",
    "STRANGERS_FRAME_BYTES",
    "VERSION",
    "Kind",
    "Limits",
    "Part",
    "Payload",
    "encode",
    "encode_refusal",
    "parse_refusal",
    "parse_text",
]

MAGIC = b"SP"
VERSION = 1

HEADER = struct.Struct("<2sBBHHQII")

MAX_BUFFERS = 1024
"""Buffers of one frame; values with more have the rest inside the pickle."""

STRANGERS_FRAME_BYTES = 4096
"""How large a frame may be from a peer that has not proved itself."""

MAX_BODY_BYTES = (1 << 32) - 1

MAX_TEXT_BYTES = 2000

Part = bytes | memoryview
Payload = tuple[bytes, list[Part]]
"""A value as `servepipe.channel.values.dump` makes it: a pickle, and the buffers that it refers to."""

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
    """Whoever sends this begins nothing more; calls under way end as usual."""
    CHUNK = 13
    """Reserved for streams: one item of a call's answer."""
    END = 14
    """Reserved for streams: there are no more."""


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


def encode(
    kind: int,
    call: int = 0,
    head: bytes = b"",
    payload: Payload = NO_PAYLOAD,
    *,
    max_bytes: int = MAX_BODY_BYTES,
) -> tuple[list[Part], int]:
    """A frame as the parts to send in order, none of them copied, and how many bytes they are.

    Raises `FrameTooLargeError` where that is more than ``max_bytes``.
    """
    body, buffers = payload
    size = HEADER.size + len(head) + len(body)
    if buffers:
        sizes = [len(buffer) for buffer in buffers]
        size += 8 * len(sizes) + sum(sizes)
        table = struct.pack(f"<{len(sizes)}Q", *sizes)
    if size > max_bytes or len(body) > MAX_BODY_BYTES:
        raise FrameTooLargeError(f"a value of {size:,} bytes is too large for a channel: at most {max_bytes:,}")
    start = HEADER.pack(MAGIC, VERSION, kind, 0, len(buffers), call, len(head), len(body))
    return ([start, table, head, body, *buffers], size) if buffers else ([start, head, body], size)


def encode_refusal(reason: Reason, text: str, call: int = 0) -> tuple[list[Part], int]:
    """A REJECT frame."""
    return encode(Kind.REJECT, call, bytes([reason]) + text.encode(errors="replace")[:MAX_TEXT_BYTES])


def parse_refusal(head: Part) -> tuple[Reason, str]:
    """The reason and the text of a REJECT frame's head."""
    try:
        return Reason(head[0]), parse_text(head[1:])
    except (IndexError, ValueError):
        raise ProtocolError("a refusal without a reason that this version knows") from None


def parse_text(head: Part) -> str:
    """A head that is for people to read."""
    return bytes(head[:MAX_TEXT_BYTES]).decode(errors="replace")
