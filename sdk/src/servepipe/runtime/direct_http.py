"""What stands between the HTTP server of an ingress and Serve: it makes the way of a request through both shorter.

Serve asks `middlewares` for it where ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names that; in replicas of other
applications nothing stands there.

- For each request Serve starts a task that watches its caller, and another that runs the app. Here the app is awaited
  where it is, and watches by itself, and only requests that take longer than a moment: see
  `servepipe.runtime.departure`. Requests that have to wait for their turn are left to Serve, as the app does not see
  them yet.
- Most requests go to the app by `servepipe.runtime.http_path`, which does what Serve does in less time. Where that is
  not right, Serve is asked not to watch the caller by the header that it has for this.
- uvicorn writes the head and the body of an answer one after the other: two packets, for which HAProxy wakes up twice.
  Here both leave in one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.middleware import Middleware

from servepipe.runtime import access_log
from servepipe.runtime.http_request import UNWATCHED, WATCHES, Message, Receive, Scope, Send
from servepipe.runtime.serve_internals import UnexpectedServeError, own_replica, runs_user_code_elsewhere

if TYPE_CHECKING:
    from servepipe.runtime.http_path import HttpWay

__all__ = ["DirectHttp", "middlewares", "watch_callers"]

log = logging.getLogger("servepipe.ingress")

JOINED_BYTES = 64 * 1024
"""Larger bodies are written by themselves: to copy them costs more than a packet."""


_watching = False


def watch_callers() -> None:
    """The app of this process honours `WATCHES`. To be called before Serve starts its HTTP server."""
    global _watching
    _watching = True


def middlewares() -> list[Middleware]:
    """Called by Serve in every process with an HTTP server, before that starts."""
    if not _watching:
        return []
    if runs_user_code_elsewhere():
        return []  # the app must not ask for messages of a server on another loop
    try:
        replica = own_replica()
    except UnexpectedServeError as error:
        log.warning("requests take the long way through Serve's replica: %s", error)
        return []
    way = replica.http_way(access_log.is_left_out)
    return [Middleware(DirectHttp, is_full=lambda: replica.is_full, way=way)]


class DirectHttp:
    """Args:
    app: Serve, as an ASGI app.
    is_full: Whether the next request would have to wait for its turn.
    way: To the app without Serve's layers; None: there is none.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        is_full: Callable[[], bool],
        way: HttpWay | None = None,
    ) -> None:
        self._app = app
        self._is_full = is_full
        self._way = way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            transport = _transport_of(send)
            if scope["method"] != "HEAD" and transport is not None:
                send = _joined(send, transport)
            if self._way is not None:
                answer = self._way.take(scope, receive, send, transport and transport.close)
                if answer is not None:
                    await answer
                    return
            headers = scope["headers"]
            # Whoever sends it does not want to be watched by us either.
            if UNWATCHED not in headers and not self._is_full():
                scope["headers"] = [*headers, UNWATCHED]
                scope[WATCHES] = True
        await self._app(scope, receive, send)


def _transport_of(send: Send) -> Any:
    """Where uvicorn's ``send`` writes; None: it is another server's."""
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    return transport if callable(getattr(transport, "write", None)) else None


def _joined(send: Send, transport: Any) -> Send:
    """``send`` of uvicorn, for which an answer whose length is known leaves in one write."""
    cycle: Any = send.__self__  # type: ignore[attr-defined]
    head: Message | None = None

    async def sending(message: Message) -> None:
        nonlocal head
        if head is None:
            if message["type"] == "http.response.start" and _has_length(message):
                head = message
            else:
                await send(message)
            return
        first, head = head, None
        if message.get("more_body") or len(message.get("body", b"")) > JOINED_BYTES:
            await send(first)
            await send(message)
            return
        cycle.transport = _OneWrite(transport)
        try:
            await send(first)
            await send(message)
        finally:
            cycle.transport.flush()
            cycle.transport = transport

    return sending


def _has_length(start: Message) -> bool:
    return any(name == b"content-length" for name, _ in start["headers"])


class _OneWrite:
    """A transport that joins two writes, the head and the body of an answer."""

    __slots__ = ("_head", "_transport")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        else:
            self._head = data

    def flush(self) -> None:
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
