"""A time limit that costs a timer only where there is something to wait for."""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

__all__ = ["Limit"]

T = TypeVar("T")


class Limit:
    """As `asyncio.timeout`, from now on, for one coroutine: many calls of nodes in this process end without waiting.

    Args:
        seconds: After this time what runs is cancelled, and `keep` raises ``TimeoutError``.

    Attributes:
        expired: Whether that happened.
    """

    __slots__ = ("_cancelling", "_task", "_timer", "_until", "expired")

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._until = time.monotonic() + seconds

    @types.coroutine
    def keep(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Await ``work`` within the limit."""
        try:
            waits_for = work.send(None)
        except StopIteration as ended:
            return ended.value  # type: ignore[no-any-return]
        self._begin()
        try:
            while True:
                try:
                    yield waits_for
                except GeneratorExit:
                    work.close()
                    raise
                except BaseException as error:
                    waits_for = work.throw(error)
                else:
                    result: T = yield from work
                    break
        except StopIteration as ended:
            result = ended.value
        except BaseException as error:
            if self._end() and isinstance(error, asyncio.CancelledError):
                raise TimeoutError from error
            raise
        self._end()
        return result

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = loop.call_later(max(0.0, self._until - time.monotonic()), self._expire)

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()

    def _end(self) -> bool:
        """Whether nobody but this limit has cancelled the task."""
        self._timer.cancel()
        return self.expired and self._task.uncancel() <= self._cancelling
