"""Tasks that have already run, up to the point where they wait, when the event loop first hears of them.

A plain task does nothing before the event loop's next turn. Most calls of nodes write a frame to a socket, or do not
wait at all: they need not lose that turn. So a worker's coroutine is started here and now, as if in its task; only when
it waits does the task take over. For user code there is no difference: `asyncio.current_task` and context variables are
the task's own from the start, and being cancelled reaches what it waits for. (Python 3.12 and later can start tasks so,
3.11 cannot.)
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task  # for those who make tasks, says "Extending asyncio"
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, Protocol

__all__ = ["Request", "start_workers"]

_workers: set[_Worker] = set()
"""Those that wait: event loops keep only weak references to tasks."""


class Request(Protocol):
    """What workers see of the request that they work for."""

    loop: asyncio.AbstractEventLoop
    ready: deque[Any]
    """Calls to start."""

    async def work(self, task: asyncio.Task[None]) -> None:
        """Carry out what is ready, one after the other, in ``task``, until nothing is."""


def start_workers(request: Request) -> None:
    """Start workers until all calls that are ready have begun. Not from inside of one that has not waited yet."""
    loop = request.loop
    outside = asyncio.current_task(loop)
    if outside is not None:
        _leave_task(loop, outside)
    try:
        while request.ready:
            worker = _Worker(request)
            variables = copy_context()
            # Not by the loop's task factory: it might start tasks by itself.
            task: asyncio.Task[None] = asyncio.Task(worker, loop=loop, name="servepipe-calls", context=variables)
            work = worker.work = request.work(task)
            _enter_task(loop, task)
            try:
                worker.begun = _taken(variables.run(work.send, None))
            except StopIteration:
                worker.request = worker.work = None  # its task still has a turn to come: nothing may live on till then
            else:
                _workers.add(worker)
            finally:
                _leave_task(loop, task)
    finally:
        if outside is not None:
            _enter_task(loop, outside)


_NOTHING = object()


class _Worker(Coroutine[Any, Any, None]):
    """The coroutine of a worker's task: goes on with ``work``, which has been started."""

    __slots__ = ("__weakref__", "begun", "request", "work")

    work: Coroutine[Any, Any, None] | None
    """None once it has ended before the task's first turn."""

    def __init__(self, request: Request) -> None:
        self.request: Request | None = request
        self.begun: Any = _NOTHING
        """What ``work`` waits for since before the task's first turn."""

    def send(self, value: Any) -> Any:
        if self.work is None:
            raise StopIteration
        begun = self.begun
        if begun is not _NOTHING:
            self.begun = _NOTHING
            # Unless it has come meanwhile: the turn that has passed (None), or a result.
            if begun is not None and not (_is_future(begun) and begun.done()):
                return _given_again(begun)
        return self._go_on(self.work.send, value)

    def throw(self, error: Any, *more: Any) -> Any:
        if self.work is None:
            raise StopIteration
        begun = self.begun
        if begun is not _NOTHING:
            self.begun = _NOTHING
            # As a task that is cancelled does with what it waits for.
            if isinstance(error, asyncio.CancelledError) and _is_future(begun) and begun.cancel():
                return _given_again(begun)
        return self._go_on(self.work.throw, error, *more)

    def close(self) -> None:
        if self.work is not None:
            self.work.close()

    def __await__(self) -> Any:
        raise TypeError("a worker belongs to its task")

    def __getattr__(self, name: str) -> Any:
        if name == "work":  # not there yet
            raise AttributeError(name)
        return getattr(self.work, name)  # what shows tasks to people asks for names, code and frames

    def _go_on(self, step: Callable[..., Any], *args: Any) -> Any:
        try:
            waits_for = step(*args)
        except BaseException:
            _workers.discard(self)
            raise
        request = self.request
        if request is None or not request.ready:
            return waits_for
        _taken(waits_for)
        start_workers(request)  # it waits, and there is more to do
        return _given_again(waits_for)


# A coroutine gives its task the future that it waits for, marked; the task takes the mark off. Others may be given the
# same future before a task sees it, and would fail to mark it.


def _taken(waits_for: Any) -> Any:
    if _is_future(waits_for):
        waits_for._asyncio_future_blocking = False
    return waits_for


def _given_again(waits_for: Any) -> Any:
    if _is_future(waits_for):
        waits_for._asyncio_future_blocking = True
    return waits_for


def _is_future(value: Any) -> bool:
    return getattr(value, "_asyncio_future_blocking", None) is not None
