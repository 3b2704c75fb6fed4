"""Callers that leave before they have their answer: what runs for them ends."""

from __future__ import annotations

import asyncio
import contextvars

from servepipe.runtime.http_request import Receive, Send

__all__ = ["LEFT", "Departure"]

LOOK_AFTER_S = 0.05
"""Shorter requests are not watched: they end anyway, and a watch costs as much as a step."""

LEFT = 499
"""The status of a request whose caller left, as Serve counts it. Nobody receives it."""


class Departure:
    """Inside its ``with`` the caller of a request is watched; once it is gone, the running task is cancelled.

    Args:
        receive: Of the request, whose body has been read.
        send: Is told the status `LEFT`.
    """

    __slots__ = ("_left", "_receive", "_send", "_task", "_timer", "_watch")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._left = False
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._task = task
        self._timer = loop.call_later(LOOK_AFTER_S, self._begin)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None  # what it raises has a traceback that leads here
        if self._left and (kind is None or not issubclass(kind, asyncio.CancelledError)):
            raise asyncio.CancelledError  # whatever user code makes of being cancelled

    def _begin(self) -> None:
        # In a context of its own: it is no part of what the request does.
        self._watch = self._task.get_loop().create_task(self._wait(), context=contextvars.Context())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        await self._send({"type": "http.response.start", "status": LEFT, "headers": []})
        self._task.cancel()
