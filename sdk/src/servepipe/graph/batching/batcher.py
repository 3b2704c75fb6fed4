"""Batches on an event loop: the calls of one object's batched methods, each with the collector that decides for it.

A batch belongs to no request. It runs in a task and a context of its own: cancelling one call must not end those of
others, and nothing of one request may be seen by another. Sync code runs in a thread that only this method has:
calls that wait for their batches in threads of the node must not take the one that it needs.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from servepipe.errors import RequestError, StepTimeoutError
from servepipe.graph.batching.collector import Collector, Item
from servepipe.graph.batching.marks import Mark, Override, owners
from servepipe.graph.batching.results import outcomes, raised_by_all
from servepipe.graph.calls import NodeResponse, RequestContext, cancel_nested_calls, current_request
from servepipe.graph.failures import Raised, asked_for, opened
from servepipe.graph.own_loop import OwnLoop
from servepipe.graph.threads import Threads

__all__ = ["Batcher", "Batches", "Begins"]

log = logging.getLogger("servepipe.graph")

Begins: TypeAlias = Callable[[str, str, int], None]
"""Told of each batch that begins: node, method, number of items."""

_computing: ContextVar[Batcher | None] = ContextVar("servepipe_batch", default=None)
"""The one whose method runs."""


class Batches:
    """The batched methods of a node's object. Made on the event loop that the node lives on.

    Args:
        node: Its name, for errors and threads.
        on_loop: Whether sync methods are called on the event loop, not in a thread.
        holds: Whether the object has handles to nodes: then calls that may use other revisions of them share no batch.
        limit: How many calls the node takes at once.
        begins: Told of each batch.
        own_loop: Where async methods run; None: on the event loop that the node lives on.

    Attributes:
        limit: May change.
    """

    def __init__(
        self,
        node: str,
        *,
        on_loop: bool = False,
        holds: bool = False,
        limit: int = 5,
        begins: Begins | None = None,
        own_loop: OwnLoop | None = None,
    ) -> None:
        self.node = node
        self.on_loop = on_loop
        self.holds = holds
        self.limit = limit
        self.begins = begins
        self.own_loop = own_loop
        self.loop = asyncio.get_running_loop()
        self.object: Any = None
        self._batchers: dict[Mark, Batcher] = {}

    def own(self, instance: Any, overrides: Iterable[Override] = ()) -> None:
        """Batch also the calls that ``instance`` makes of its own methods, with what `set_batch` was told before."""
        self.object = instance
        owners[id(instance)] = self
        for override in overrides:
            if override.instance is instance:
                self.override(override)

    def batcher(self, mark: Mark, instance: Any) -> Batcher:
        """That of a method; ``instance`` None: of a function."""
        found = self._batchers.get(mark)
        if found is None:  # a thread may be as fast
            found = self._batchers.setdefault(mark, Batcher(self, mark, instance))
        return found

    def override(self, override: Override) -> None:
        """What `set_batch` was told, from any thread."""
        batcher = self.batcher(override.mark, self.object)
        self.loop.call_soon_threadsafe(batcher.override, override)

    def result(self, mark: Mark, item: Any) -> Any:
        """Have an item computed and wait for it, in a thread."""
        batcher = self.batcher(mark, self.object)
        if _computing.get() is batcher:  # its only thread is this one
            return opened(outcomes(mark.name, batcher.function([item]), 1)[0])
        if _running_loop() is self.loop:
            raise RequestError(
                f"{mark.name} is batched: called on the event loop it would wait for what this very loop carries out",
                fix="Make it async and await it, or call it in a thread: `await asyncio.to_thread(self.method, item)`.",
                node=self.node,
            )
        return NodeResponse(partial(batcher.call, item), self.loop, self.node, mark.function.__name__).result()

    async def awaited(self, mark: Mark, item: Any) -> Any:
        """Have an item computed by an async method, from any event loop."""
        batcher = self.batcher(mark, self.object)
        if _computing.get() is batcher:
            return opened(outcomes(mark.name, await batcher.function([item]), 1)[0])
        if _running_loop() is self.loop:
            return await batcher.call(item)
        return await NodeResponse(partial(batcher.call, item), self.loop, self.node, mark.function.__name__)

    def close(self) -> None:
        """Let threads and timers end."""
        if owners.get(id(self.object)) is self:
            del owners[id(self.object)]
        for batcher in self._batchers.values():
            batcher.close()


@dataclass(slots=True, eq=False)
class _Call(Item):
    answer: asyncio.Future[Any] = field(kw_only=True)
    """With what `opened` opens."""
    request: RequestContext | None = field(kw_only=True)


class Batcher:
    """Batches the calls of one method.

    Args:
        batches: Those of its node.
        mark: Of the method.
        instance: What it is a method of; None: it is a function.

    Attributes:
        function: Takes the list of items.
    """

    def __init__(self, batches: Batches, mark: Mark, instance: Any) -> None:
        self.function: Callable[[list[Any]], Any] = (
            mark.function if instance is None else partial(mark.function, instance)
        )
        self._batches = batches
        self._mark = mark
        self._loop = batches.loop
        self._collector: Collector[_Call] = Collector(mark.settings)
        self._task: asyncio.Task[None] | None = None
        self._looks = False
        self._checked = False
        self._timer: asyncio.TimerHandle | None = None
        self._threads: Threads | None = None

    async def call(self, *args: Any, **kwargs: Any) -> Any:
        """Have one item computed, and return its result. Being cancelled takes it out of its batch.

        Raises:
            StepTimeoutError: Its request's deadline passed before its batch began.
            Exception: What the method raised, or returned for this item.
        """
        item = args[0] if len(args) == 1 and not kwargs else self._item(args, kwargs)
        request = current_request.get()
        now = self._loop.time()
        deadline = None if request is None or request.deadline is None else now + request.deadline - time.time()
        group = request.pins if request is not None and self._batches.holds else None
        call = _Call(item, now, deadline, group, answer=self._loop.create_future(), request=request)
        self._collector.add(call)
        self._look_soon()
        try:
            outcome = await call.answer
        except asyncio.CancelledError:
            if self._collector.leave(call) and self._mark.is_async:
                assert self._task is not None
                self._task.cancel()
            raise
        return opened(outcome)

    def override(self, override: Override) -> None:
        """What `set_batch` was told."""
        self._collector.settings = override.applied(self._collector.settings)
        self._checked = False
        self._look_soon()

    def close(self) -> None:
        """Let the thread and the timer end."""
        if self._timer is not None:
            self._timer.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    def _item(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        instance = self.function.args if isinstance(self.function, partial) else ()
        return self._mark.arguments((*instance, *args), kwargs)[-1]

    def _look_soon(self) -> None:
        """Look at the end of this turn of the event loop, so that calls that come together are seen together."""
        if not self._looks:
            self._looks = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._looks = False
        expired, batch, again_at = self._collector.look(self._loop.time())
        for call in expired:
            if not call.answer.done():
                call.answer.set_result(Raised(self._too_late()))
        if batch:
            self._task = self._loop.create_task(self._run(batch), context=contextvars.Context())
            # Not in its code: a task that is cancelled before it begins runs none of it.
            self._task.add_done_callback(partial(self._ended, batch))
        if self._timer is not None:
            if self._timer.when() == again_at and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if again_at is not None:
            self._timer = self._loop.call_at(again_at, self._wake)

    def _tell(self, size: int) -> None:
        batches, most = self._batches, self._collector.settings.max_size
        if not self._checked and batches.limit < most:
            log.warning(
                "%s of node %s has a max_size of %d, but no batch gets larger than maxOngoingRequests, %d: raise that",
                *(self._mark.name, batches.node, most, batches.limit),
            )
        self._checked = True
        if batches.begins is not None:
            try:
                batches.begins(batches.node, self._mark.function.__name__, size)
            except Exception:
                log.exception("telling of a batch of %s", self._mark.name)

    def _wake(self) -> None:
        self._timer = None
        self._look()

    async def _run(self, batch: Sequence[_Call]) -> None:
        # Others may have left in the turn of the loop in which it was made.
        batch = [call for call in batch if not call.answer.done()]
        if not batch:
            return
        self._tell(len(batch))
        _computing.set(self)
        current_request.set(_shared(batch))
        found = await self._outcomes([call.value for call in batch])
        for call, outcome in zip(batch, found, strict=True):
            if not call.answer.done():
                call.answer.set_result(outcome)

    def _ended(self, batch: Sequence[_Call], task: asyncio.Task[None]) -> None:
        self._task = None
        for call in batch:
            call.answer.cancel()  # those that have none: all that waited left, or the loop ends
        self._collector.ended(self._loop.time())
        self._look_soon()

    async def _outcomes(self, items: list[Any]) -> Sequence[Any]:
        count = len(items)
        try:
            with cancel_nested_calls():
                return outcomes(self._mark.name, await self._results(items), count)
        except BaseException as error:
            if asked_for(error):
                raise
            return raised_by_all(error, count)

    async def _results(self, items: list[Any]) -> Any:
        own_loop = self._batches.own_loop
        if self._mark.is_async and own_loop is not None:
            # A batch that all have left is over when its code is: the next one must not run beside it.
            return await own_loop.call(self.function, (items,), to_its_end=True)
        if self._mark.is_async or self._batches.on_loop:
            results = self.function(items)
        else:
            if self._threads is None:
                self._threads = Threads(1, f"servepipe-{self._batches.node}.{self._mark.function.__name__}")
            results = await self._threads.call(self.function, (items,))
            if own_loop is not None and inspect.isawaitable(results):
                return await own_loop.call(lambda: results, to_its_end=True)
        return await results if inspect.isawaitable(results) else results

    def _too_late(self) -> StepTimeoutError:
        node = self._batches.node
        return StepTimeoutError(
            f"the request's deadline passed while it waited for a batch of {self._mark.name} of node {node}", node=node
        )


def _shared(batch: Sequence[_Call]) -> RequestContext | None:
    """What a batch tells the nodes that it calls: its last deadline, and the pins that all of it share."""
    if len(batch) == 1:
        return batch[0].request
    requests = [call.request for call in batch if call.request is not None]
    if not requests:
        return None
    deadlines = [request.deadline for request in requests if request.deadline is not None]
    return RequestContext(deadline=max(deadlines) if len(deadlines) == len(batch) else None, pins=requests[0].pins)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
