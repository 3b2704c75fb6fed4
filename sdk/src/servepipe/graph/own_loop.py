"""An event loop for one node's async code alone, in a thread of its own.

Async methods run on the event loop that their calls come from, which costs nothing. One that blocks it blocks all else
that this loop does. A node that says so (``blocking: true``) gets this instead: it blocks nothing but itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from servepipe.graph.failures import Raised, as_exception, asked_for, opened
from servepipe.graph.slots import Slots
from servepipe.graph.threads import NoThreadsError

__all__ = ["OwnLoop"]

log = logging.getLogger("servepipe.graph")


class OwnLoop:
    """A loop whose calls all come from one other event loop. The thread is started by the first of them, and ends after
    `close`, or when nobody has this object any more.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: _Thread | None = None
        self._closed = False

    async def call(
        self,
        function: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        slots: Slots | None = None,
        *,
        to_its_end: bool = False,
    ) -> Any:
        """Call ``function`` on the loop, in a copy of this context, and return its result, awaited where it can be.

        Being cancelled cancels the code.

        Args:
            function: Any callable.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            slots: Gets a slot back when the code has ended, which may be after its caller has left.
            to_its_end: Whether a caller that is cancelled waits until the code has ended.

        Raises:
            NoThreadsError: `close` was called, or the process ends.
            Exception: What ``function`` raises, as `as_exception` puts it.
        """
        home = asyncio.get_running_loop()
        answer = home.create_future()
        call = _Call(home, answer, slots, function, args, kwargs or {})
        try:
            thread = self._started()
            thread.begin(call, contextvars.copy_context())
        except BaseException:
            if slots is not None:
                slots.release()
            raise
        try:
            # Not the answer itself: that is cancelled when the code has been.
            return opened(await asyncio.shield(answer))
        except asyncio.CancelledError:
            thread.cancel(call)
            while to_its_end and not answer.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(answer)
            raise

    def close(self) -> None:
        """Cancel what still runs, also tasks that the code has started, and let the thread end when that has ended."""
        self._closed = True
        if self._thread is not None:
            self._thread.end()

    def _started(self) -> _Thread:
        if self._closed:
            raise NoThreadsError(f"{self._name} has been closed")
        if self._thread is None:
            self._thread = _Thread(self._name)
            # Whoever built the node may have dropped it, because its setup() failed.
            weakref.finalize(self, self._thread.end).atexit = False
        return self._thread


class _Thread:
    """The loop and its thread; neither knows the `OwnLoop`. Its methods are called by the other loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._ends = False
        self._loop = asyncio.new_event_loop()
        # A daemon: code that never ends would keep the process from ending.
        thread = threading.Thread(target=self._serve, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._loop.close()
            raise NoThreadsError(*error.args) from None

    def begin(self, call: _Call, context: contextvars.Context) -> None:
        try:
            self._loop.call_soon_threadsafe(call.begin, context)
        except RuntimeError as error:
            raise NoThreadsError(*error.args) from None

    def cancel(self, call: _Call) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the code with it
            self._loop.call_soon_threadsafe(call.cancel)

    def end(self) -> None:
        self._ends = True
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _serve(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        try:
            while not self._ends:
                self._run(loop.run_forever)
            # All tasks: the code may have started some that are no calls. Those that end have the time that they take.
            while tasks := asyncio.all_tasks(loop):
                for task in tasks:
                    if not task.cancelling():
                        task.cancel()
                self._run(partial(loop.run_until_complete, asyncio.wait(tasks)))
            self._run(partial(loop.run_until_complete, loop.shutdown_asyncgens()))
        finally:
            loop.close()

    def _run(self, run: Callable[[], object]) -> None:
        try:
            run()
        except BaseException:
            # SystemExit or KeyboardInterrupt of a task of the user's. asyncio has told it to who waits for that task.
            log.exception("%s goes on", self._name)


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
        self._task: asyncio.Task[Any] | None = None

    def begin(self, context: contextvars.Context) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), context=context)
        # Not in its code: a task that is cancelled before it begins runs none of it.
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        # Always after its begin: both come through the same queue.
        assert self._task is not None
        self._task.cancel()

    async def _run(self) -> Any:
        try:
            result = self._function(*self._args, **self._kwargs)
            return await result if inspect.isawaitable(result) else result
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and asked_for(error):
                raise
            # SystemExit would end the loop, and everything on it, for one bad request.
            return Raised(as_exception(error))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the other loop has been closed, and nobody waits any more
            self._home.call_soon_threadsafe(self._tell, _CANCELLED if task.cancelled() else task.result())

    def _tell(self, outcome: Any) -> None:
        if self._slots is not None:
            self._slots.release()
        if outcome is _CANCELLED:
            self._answer.cancel()
        else:
            self._answer.set_result(outcome)


_CANCELLED = object()
