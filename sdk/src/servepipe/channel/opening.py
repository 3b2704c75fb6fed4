"""The end of a channel at a caller until it is let in: proves itself, and has the other side prove itself first.

connected ──HELLO──▶ asked ──CHALLENGE──▶ proven ──WELCOME──▶ open
    └────── anything else, or too late: `HandshakeError` ───────▶ ended
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from servepipe.channel import handshake
from servepipe.channel.connection import Connection
from servepipe.channel.endpoints import Endpoint
from servepipe.channel.errors import HandshakeError, ProtocolError, Reason
from servepipe.channel.frames import Kind, Limits, encode, encode_refusal, parse_refusal

__all__ = ["Opening"]


class Opening(Connection):
    """Args:
        endpoint: The other end.
        limits: Of this side.

    Attributes:
        opened: Done when calls may be made; raises `HandshakeError`.
    """

    def __init__(self, endpoint: Endpoint, limits: Limits) -> None:
        super().__init__(limits, passes_on=True)
        self.endpoint = endpoint
        self.opened: asyncio.Future[None] = self.loop.create_future()
        self._hello = handshake.new_hello(endpoint.application, endpoint.replica, limits.max_frame_bytes)
        self.handlers = {Kind.CHALLENGE: self._on_challenge, Kind.REJECT: self._on_refusal}

    def on_welcome(self, max_calls: int, max_frame_bytes: int) -> None:
        """The other side lets this one in, and has these limits."""
        raise NotImplementedError

    def on_open(self) -> None:
        self.send(encode(Kind.HELLO, head=self._hello.encode()), now=True)

    def on_violation(self, error: ProtocolError) -> None:
        self._refused(HandshakeError(f"{self.peer} sent {error.what}"))
        self.fail(error.what)

    def on_end(self, error: Exception | None) -> None:
        self._refused(HandshakeError(f"{self.peer} closed the connection"))

    def _on_challenge(self, number: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        nonce, proof = handshake.parse_challenge(head)
        token = self.endpoint.token
        if not handshake.is_proof(proof, handshake.server_proof(token, self._hello, nonce)):
            text = "whoever listens there does not know the token"
            self._refused(HandshakeError(text, reason=Reason.TOKEN))
            self.fail(text, refusal=encode_refusal(Reason.TOKEN, text))
            return
        self.handlers = {Kind.WELCOME: self._on_welcome, Kind.REJECT: self._on_refusal}
        self.send(encode(Kind.PROOF, head=handshake.client_proof(token, self._hello, nonce)), now=True)

    def _on_welcome(self, number: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        self.on_welcome(*handshake.parse_welcome(head))
        self.trust()
        if not self.opened.done():
            self.opened.set_result(None)

    def _on_refusal(self, number: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        reason, text = parse_refusal(head)
        self._refused(HandshakeError(f"{self.peer} refuses: {text}", reason=reason))
        self.abort(text)

    def _refused(self, error: HandshakeError) -> None:
        if not self.opened.done():
            self.opened.set_exception(error)
            self.opened.exception()  # whoever waited may be gone by now
