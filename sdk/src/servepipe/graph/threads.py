"""Threads in which an event loop has sync code run: less between the two than `loop.run_in_executor` puts there."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from servepipe.graph.failures import Raised, as_exception, opened
from servepipe.graph.slots import Slots

__all__ = ["NoThreadsError", "Threads", "in_thread"]


class NoThreadsError(RuntimeError):
    """What `ThreadPoolExecutor.submit` says when it takes nothing any more; no error of the code to be called."""


class Threads(ThreadPoolExecutor):
    """Threads for the calls of one node, which all come from one event loop.

    Args:
        count: How many at most.
        name: What their names begin with.
    """

    def __init__(self, count: int, name: str) -> None:
        super().__init__(count, thread_name_prefix=name)
        self._ended: deque[tuple[asyncio.Future[Any], Any, Slots | None]] = deque()
        self._loop_knows = False

    async def call(
        self,
        function: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        slots: Slots | None = None,
    ) -> Any:
        """Call ``function`` in a thread, in a copy of this context, and return what it returns.

        Args:
            function: Any callable.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            slots: Gets a slot back when the code ends, which may be after its caller has left.

        Raises:
            NoThreadsError: There are no more threads to be had: `shutdown` was called, or the process ends.
            Exception: What ``function`` raises, as `as_exception` puts it.
        """
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        context = contextvars.copy_context()
        try:
            work = self.submit(self._work, loop, answer, slots, context, function, args, kwargs or {})
        except RuntimeError as error:
            if slots is not None:
                slots.release()
            raise NoThreadsError(*error.args) from None
        try:
            outcome = await answer
        except BaseException:
            if work.cancel() and slots is not None:  # it had not begun
                slots.release()
            raise
        return opened(outcome)

    def _work(
        self,
        loop: asyncio.AbstractEventLoop,
        answer: asyncio.Future[Any],
        slots: Slots | None,
        context: contextvars.Context,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        self._ended.append((answer, context.run(in_thread, function, args, kwargs), slots))
        # Whoever finds the loop asleep wakes it for all who end before it looks.
        if not self._loop_knows:
            self._loop_knows = True
            try:
                loop.call_soon_threadsafe(self._tell)
            except RuntimeError:  # the loop has been closed, and nobody waits any more
                self._loop_knows = False

    def _tell(self) -> None:
        self._loop_knows = False  # first: what ends from here on may be missed below
        while self._ended:
            answer, outcome, slots = self._ended.popleft()
            if slots is not None:
                slots.release()
            if not answer.done():  # cancelled
                answer.set_result(outcome)


def in_thread(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call ``function`` in a thread for an event loop that applies `opened` to the result."""
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        # No coroutine can raise it.
        told = RuntimeError(f"{getattr(function, '__qualname__', function)} raised StopIteration")
        told.__cause__ = error
        return Raised(told)
    except BaseException as error:
        return Raised(as_exception(error))
