"""Who is at the other end, before anything is unpickled: unpickling the bytes of a stranger would run its code.

    client                                     server
    HELLO      nonce C, limit, application, replica ─▶
                                             ◀─ CHALLENGE  nonce S, HMAC(token, "server", transcript)
    PROOF      HMAC(token, "client", transcript) ─▶
                                             ◀─ WELCOME    limits

The transcript is the protocol's version, the HELLO and the server's nonce. Neither side tells the token;
both nonces are new for each connection, so that a proof which somebody overheard proves nothing again; the labels keep
a proof from being sent back. The server proves itself first: a client tells nothing to whoever listens at an address
that a replica had.

This proves who opened the connection. That nobody listens or meddles after that is what folders with mode 0700 and TLS
are for.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from dataclasses import dataclass

from servepipe.channel.errors import ProtocolError
from servepipe.channel.frames import VERSION, Part

__all__ = [
    "NONCE_BYTES",
    "Hello",
    "client_proof",
    "encode_welcome",
    "is_proof",
    "new_hello",
    "new_nonce",
    "parse_challenge",
    "parse_welcome",
    "server_proof",
]

NONCE_BYTES = 32
PROOF_BYTES = 32
MAX_NAME_BYTES = 1000

_NAMES = struct.Struct("<QHH")
_WELCOME = struct.Struct("<IQ")


@dataclass(frozen=True, slots=True)
class Hello:
    """Whom a client looks for.

    Args:
        nonce: `NONCE_BYTES` random bytes.
        max_frame_bytes: The largest frame that the client takes.
        application: The Serve application.
        replica: The id of the replica in it.
    """

    nonce: bytes
    max_frame_bytes: int
    application: str
    replica: str

    def encode(self) -> bytes:
        names = self.application.encode(), self.replica.encode()
        if max(map(len, names)) > MAX_NAME_BYTES:
            raise ValueError(f"names of applications and replicas have at most {MAX_NAME_BYTES} bytes")
        return b"".join((self.nonce, _NAMES.pack(self.max_frame_bytes, *map(len, names)), *names))

    @classmethod
    def parse(cls, head: Part) -> Hello:
        """The inverse of `encode`. Raises `ProtocolError`."""
        data = bytes(head)
        try:
            limit, application, replica = _NAMES.unpack_from(data, NONCE_BYTES)
            names = data[NONCE_BYTES + _NAMES.size :]
            if len(names) != application + replica or max(application, replica) > MAX_NAME_BYTES:
                raise ValueError("lengths")
            return cls(data[:NONCE_BYTES], limit, names[:application].decode(), names[application:].decode())
        except (struct.error, ValueError):
            raise ProtocolError("a HELLO that cannot be read") from None


def new_nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)


def new_hello(application: str, replica: str, max_frame_bytes: int) -> Hello:
    return Hello(new_nonce(), max_frame_bytes, application, replica)


def server_proof(token: bytes, hello: Hello, nonce: bytes) -> bytes:
    """What a server answers to ``hello``, with its own ``nonce``."""
    return _proof(b"server", token, hello, nonce)


def client_proof(token: bytes, hello: Hello, nonce: bytes) -> bytes:
    """What a client answers to the server's ``nonce``."""
    return _proof(b"client", token, hello, nonce)


def is_proof(given: Part, expected: bytes) -> bool:
    """Whether two proofs are equal, in a time that tells nothing about where they differ."""
    return hmac.compare_digest(bytes(given), expected)


def parse_challenge(head: Part) -> tuple[bytes, bytes]:
    """The nonce and the proof of a CHALLENGE. Raises `ProtocolError`."""
    data = bytes(head)
    if len(data) != NONCE_BYTES + PROOF_BYTES:
        raise ProtocolError("a CHALLENGE that cannot be read")
    return data[:NONCE_BYTES], data[NONCE_BYTES:]


def encode_welcome(max_calls: int, max_frame_bytes: int) -> bytes:
    """The limits that the server has."""
    return _WELCOME.pack(max_calls, max_frame_bytes)


def parse_welcome(head: Part) -> tuple[int, int]:
    """``max_calls`` and ``max_frame_bytes`` of the server. Raises `ProtocolError`."""
    try:
        max_calls, max_frame_bytes = _WELCOME.unpack(head)
    except struct.error:
        raise ProtocolError("a WELCOME that cannot be read") from None
    return max_calls, max_frame_bytes


def _proof(label: bytes, token: bytes, hello: Hello, nonce: bytes) -> bytes:
    transcript = b"".join((b"servepipe channel\0", bytes([VERSION]), label, b"\0", hello.encode(), nonce))
    return hmac.digest(token, transcript, "sha256")
