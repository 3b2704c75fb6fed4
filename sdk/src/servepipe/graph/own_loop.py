"""An event loop for one node's async code alone, in a thread of its own.

Async methods run on the event loop that their calls come from, which costs nothing. One that blocks it blocks all else
that this loop does. A node that says so (``blocking: true``) gets this instead: it blocks nothing but itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from servepipe.graph.failures import Raised, as_exception, asked_for, opened
from servepipe.graph.slots import Slots
from servepipe.graph.threads import NoThreadsError

__all__ = ["OwnLoop"]


class OwnLoop:
    """A loop whose calls all come from one other event loop. The thread is started by the first of them.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._ends = False
        """The same, as the loop itself knows: what was asked before it has begun."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def call(
        self,
        function: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        slots: Slots | None = None,
    ) -> Any:
        """Call ``function`` on the loop, in a copy of this context, and return its result, awaited where it can be.

        Being cancelled cancels the code, but does not wait for it.

        Args:
            function: Any callable.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            slots: Gets a slot back when the code has ended, which may be after its caller has left.

        Raises:
            NoThreadsError: `close` was called, or the process ends.
            Exception: What ``function`` raises, as `as_exception` puts it.
        """
        home = asyncio.get_running_loop()
        answer = home.create_future()
        context = contextvars.copy_context()
        call = _Call(home, answer, slots, function, args, kwargs or {})
        try:
            loop = self._started()
        except NoThreadsError:
            if slots is not None:
                slots.release()
            raise
        loop.call_soon_threadsafe(self._start, call, context)
        try:
            return opened(await answer)
        except asyncio.CancelledError:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the code with it
                loop.call_soon_threadsafe(call.cancel)
            raise

    def close(self) -> None:
        """Cancel what still runs, and let the thread end when that has."""
        if self._loop is not None and not self._closed:
            self._loop.call_soon_threadsafe(self._stop)
        self._closed = True

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise NoThreadsError(f"{self._name} has been closed")
        if self._loop is None:
            loop = asyncio.new_event_loop()
            # A daemon: code that never ends would keep the process from ending.
            thread = threading.Thread(target=_serve, args=(loop,), name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                loop.close()
                raise NoThreadsError(*error.args) from None
            self._loop = loop
        return self._loop

    def _start(self, call: _Call, context: contextvars.Context) -> None:
        task = call.task = asyncio.get_running_loop().create_task(call.run(), context=context)
        self._tasks.add(task)
        # Not in its code: a task that is cancelled before it begins runs none of it.
        task.add_done_callback(call.ended)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if self._ends and not self._tasks:
            task.get_loop().stop()

    def _stop(self) -> None:
        self._ends = True
        for task in self._tasks:
            task.cancel()
        if not self._tasks:
            asyncio.get_running_loop().stop()


class _Call:
    """One call; lives on the node's own loop, and answers at ``home``."""

    def __init__(
        self,
        home: asyncio.AbstractEventLoop,
        answer: asyncio.Future[Any],
        slots: Slots | None,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        self._home = home
        self._answer = answer
        self._slots = slots
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self.task: asyncio.Task[Any] | None = None

    def cancel(self) -> None:
        # Always after its start: both come through the same queue.
        assert self.task is not None
        self.task.cancel()

    async def run(self) -> Any:
        try:
            result = self._function(*self._args, **self._kwargs)
            return await result if inspect.isawaitable(result) else result
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and asked_for(error):
                raise
            # SystemExit would end the loop, and everything on it, for one bad request.
            return Raised(as_exception(error))

    def ended(self, task: asyncio.Task[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the other loop has been closed, and nobody waits any more
            self._home.call_soon_threadsafe(self._tell, _CANCELLED if task.cancelled() else task.result())

    def _tell(self, outcome: Any) -> None:
        if self._slots is not None:
            self._slots.release()
        if outcome is _CANCELLED:
            self._answer.cancel()
        elif not self._answer.done():
            self._answer.set_result(outcome)


_CANCELLED = object()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
