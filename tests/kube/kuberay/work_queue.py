"""Keys to be worked on: each once at a time, again after errors, at a later time if asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from kuberay.api import NO_ANSWER, ApiError
from kuberay.status import FailureError

K = TypeVar("K", bound=Hashable)

log = logging.getLogger("kuberay.queue")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 5.0


class WorkQueue(Generic[K]):
    """Args:
    work: Handles one key; returns in how many seconds it wants it again, or None.
    workers: How many keys at a time.
    """

    def __init__(self, name: str, work: Callable[[K], Awaitable[float | None]], workers: int) -> None:
        self._name, self._work, self._workers = name, work, workers
        self._waiting: dict[K, None] = {}
        self._running: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._sleepers: list[asyncio.Future[None]] = []
        self._going = asyncio.Event()
        self._going.set()

    def add(self, key: K, after: float = 0.0) -> None:
        """Work on ``key`` soon, or ``after`` seconds; the earliest wish counts."""
        loop = asyncio.get_running_loop()
        due, timer = loop.time() + after, self._timers.get(key)
        if after > 0:
            if timer is None or timer.when() > due:
                self._cancel(key)
                self._timers[key] = loop.call_at(due, self.add, key)
            return
        self._cancel(key)
        self._waiting[key] = None
        self._wake()

    def pause(self) -> None:
        self._going.clear()

    def resume(self) -> None:
        self._going.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._one())

    def _cancel(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _wake(self) -> None:
        for future in list(self._sleepers):
            if not future.done():
                future.set_result(None)

    async def _next(self) -> K:
        while True:
            await self._going.wait()
            key = next((key for key in self._waiting if key not in self._running), None)
            if key is not None:
                del self._waiting[key]
                return key
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._sleepers.append(future)
            try:
                await future
            finally:
                self._sleepers.remove(future)

    async def _one(self) -> None:
        while True:
            key = await self._next()
            self._running.add(key)
            try:
                again = await self._work(key)
                self._failures.pop(key, None)
            except (ApiError, FailureError, *NO_ANSWER) as error:
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                again = min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S)
                log.info("%s %s: %s", self._name, key, error)
            except Exception:
                log.exception("%s %s", self._name, key)
                again = LONGEST_PAUSE_S
            finally:
                self._running.discard(key)
            if again is not None:
                self.add(key, again)
            elif key in self._waiting:
                self._wake()
