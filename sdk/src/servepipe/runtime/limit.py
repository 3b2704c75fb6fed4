"""A time limit that costs a timer only where there is something to wait for."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

__all__ = ["Limit"]

T = TypeVar("T")


class Limit:
    """As `asyncio.timeout`, from now on, for one coroutine: most requests to nodes in this process end without waiting.

    Args:
        seconds: After this time what runs is cancelled, and `keep` raises ``TimeoutError``.

    Attributes:
        expired: Whether that happened.
    """

    __slots__ = ("_cancelling", "_loop", "_task", "_timer", "_until", "expired")

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + seconds
        self._timer: asyncio.TimerHandle | None = None

    async def keep(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work`` within the limit."""
        try:
            result = await _awaited(work, self._begin)
        except BaseException as error:
            if self._end() and isinstance(error, asyncio.CancelledError):
                raise TimeoutError from error
            raise
        self._end()
        return result

    def _begin(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = self._loop.call_at(self._until, self._expire)

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()

    def _end(self) -> bool:
        """Whether nobody but this limit has cancelled the task."""
        if self._timer is None:
            return False
        self._timer.cancel()
        return self.expired and self._task.uncancel() <= self._cancelling


@types.coroutine
def _awaited(work: Coroutine[Any, Any, T], waits: Callable[[], None]) -> Generator[Any, Any, T]:
    """``await work``, which calls ``waits`` when it has to wait for the first time."""
    try:
        waits_for = work.send(None)
    except StopIteration as ended:
        return ended.value  # type: ignore[no-any-return]
    waits()
    while True:
        try:
            yield waits_for
        except GeneratorExit:
            work.close()
            raise
        except BaseException as error:
            try:
                waits_for = work.throw(error)
            except StopIteration as ended:
                return ended.value  # type: ignore[no-any-return]
        else:
            return (yield from work)  # type: ignore[no-any-return]
