"""A request's body that asks for the right to write at the very last moment.

Between a check and the first byte a process may wait for a connection, or be stopped for minutes. This body asks when
the bytes are about to leave, connection made and headers still unsent; a refusal ends the request before the server
has seen any of it.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import BytesPayload

__all__ = ["GuardedBody"]


class GuardedBody(BytesPayload):
    """Bytes that leave only if ``allowed`` does not raise; what it raised is kept in `refusal`."""

    def __init__(self, body: bytes, allowed: Callable[[], None], content_type: str = "application/json") -> None:
        super().__init__(body, content_type=content_type)
        self._allowed_to_write = allowed
        self.refusal: Exception | None = None

    def raise_refusal(self) -> None:
        """Raise what ``allowed`` raised, which aiohttp tells as a connection that failed."""
        if self.refusal is not None:
            raise self.refusal

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Called by aiohttp."""
        self._ask()
        await super().write(writer)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Called by newer releases of aiohttp."""
        self._ask()
        await super().write_with_length(writer, content_length)

    def _ask(self) -> None:
        self.raise_refusal()  # aiohttp sends some requests once more over another connection
        try:
            self._allowed_to_write()
        except Exception as error:
            self.refusal = error
            raise
