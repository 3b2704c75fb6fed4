"""Batches without a framework: callers give one item each, and what meets in a process is computed together.

The usual one of asyncio: a queue, and a task that takes from it until the batch is full or its first item has waited
long enough. What comes while a batch is computed waits for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any


class Batcher:
    """Args:
    run: Answers a batch, with one result for each item.
    max_size, max_wait_s: As everybody has them in this benchmark.
    """

    def __init__(
        self, run: Callable[[list[Any]], Awaitable[list[Any]]], max_size: int = 64, max_wait_s: float = 0.001
    ) -> None:
        self._run, self._max_size, self._max_wait_s = run, max_size, max_wait_s
        self._queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def one(self, item: Any) -> Any:
        """The result for one item. Raises what the batch raised that it was in."""
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((item, answer))
        return await answer

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._max_wait_s):
                    while len(batch) < self._max_size:
                        batch.append(await self._queue.get())
            await self._answer(batch)

    async def _answer(self, batch: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        try:
            results = await self._run([item for item, _ in batch])
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), result in zip(batch, results, strict=True):
            if not answer.done():  # its caller may have left
                answer.set_result(result)
