"""The state of one step in one request, by kind of step: what it needs next, and what it makes of it.

Nothing here waits or runs anything: a cell puts into the request's queues what follows, and `interpreter` works them
off. Cells know only their own expressions; who else needs a step, and what becomes of it, is the interpreter's.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from servepipe.errors import RequestError
from servepipe.graph.choices import branch_of, case_of
from servepipe.graph.ir import Call, Fallback, First, Map, Split, Switch
from servepipe.graph.program import ExprPlan, Frame, StepPlan

__all__ = [
    "CELLS",
    "DONE",
    "FAILED",
    "IDLE",
    "READY",
    "RUNNING",
    "WAITING",
    "WANTED",
    "CallCell",
    "Cell",
    "MapCell",
    "Need",
    "Output",
    "Part",
    "Request",
]

IDLE, WANTED, WAITING, READY, RUNNING, DONE, FAILED = range(7)


class Request(Protocol):
    """What a cell sees of the request that it belongs to."""

    wanted: list[Need]
    """Expressions that somebody needs from now on."""
    ready: deque[Cell]
    """Calls whose arguments are there."""
    undecided: set[Cell]
    """Cells whose `may_want` counts."""

    def settle(self, cell: Cell, phase: int, value: Any) -> None:
        """The outcome of a step is known: DONE and what it returned, or FAILED and what it raised."""


class Need(ABC):
    """Somebody who waits for an expression."""

    __slots__ = ("expr", "frame", "missing", "phase")

    def __init__(self, expr: ExprPlan, frame: Frame) -> None:
        self.expr = expr
        self.frame = frame
        self.phase = IDLE
        self.missing = 0

    @abstractmethod
    def ready(self, request: Request) -> None:
        """All steps of the expression are done."""

    @abstractmethod
    def failed(self, request: Request, error: Exception) -> None:
        """One of them failed."""

    def parts(self) -> Sequence[Need]:
        """Needs that are there only for this one."""
        return ()


class Cell(Need):
    """One step in one request, or in one item of a map. It waits for one expression at a time."""

    __slots__ = ("plan", "task", "users", "value")

    def __init__(self, plan: StepPlan, frame: Frame) -> None:
        self.expr = plan.first
        self.frame = frame
        self.phase = IDLE
        self.missing = 0
        self.plan = plan
        self.users: list[Need] = []
        self.value: Any = None  # what it returned or, once FAILED, raised
        self.task: asyncio.Task[None] | None = None

    def want(self, request: Request) -> None:
        """Somebody needs the step, and it is IDLE."""
        self.phase = WANTED
        self.expr = self.plan.first
        request.wanted.append(self)

    def failed(self, request: Request, error: Exception) -> None:
        request.settle(self, FAILED, error)

    def may_want(self) -> int:
        """The steps that this one may want later, and does not want now (bits as in `StepPlan.reach`)."""
        return 0


class CallCell(Cell):
    __slots__ = ()

    def ready(self, request: Request) -> None:
        self.phase = READY
        request.ready.append(self)


class ChoiceCell(Cell):
    """A switch or a split: first what it depends on, then the branch."""

    __slots__ = ("chosen",)

    def __init__(self, plan: StepPlan, frame: Frame) -> None:
        super().__init__(plan, frame)
        self.chosen: int | None = None

    def want(self, request: Request) -> None:
        super().want(request)
        if self.chosen is None:
            request.undecided.add(self)
        else:
            self.expr = self.plan.later[self.chosen]

    def ready(self, request: Request) -> None:
        value = self.expr.read(self.frame)
        if self.chosen is not None:
            request.settle(self, DONE, value)
            return
        step = self.plan.step
        self.chosen = branch_of(step, value) if isinstance(step, Split) else case_of(self.plan, value)
        request.undecided.discard(self)
        self.expr = self.plan.later[self.chosen]
        self.phase = WANTED
        request.wanted.append(self)

    def may_want(self) -> int:
        return 0 if self.chosen is not None else _reach(self.plan.later)


class FallbackCell(Cell):
    __slots__ = ("option",)

    def want(self, request: Request) -> None:
        super().want(request)
        self.option = 0
        self.expr = self.plan.later[0]
        request.undecided.add(self)

    def ready(self, request: Request) -> None:
        request.settle(self, DONE, self.expr.read(self.frame))

    def failed(self, request: Request, error: Exception) -> None:
        self.option += 1
        if self.option == len(self.plan.later):
            request.settle(self, FAILED, error)
            return
        self.expr = self.plan.later[self.option]
        self.phase = WANTED
        request.wanted.append(self)
        request.undecided.add(self)

    def may_want(self) -> int:
        return _reach(self.plan.later[self.option + 1 :])


class Part(Need):
    """One option of a `First`, or one item of a `Map`."""

    __slots__ = ("index", "owner")

    def __init__(self, owner: PartsCell, index: int, expr: ExprPlan, frame: Frame) -> None:
        super().__init__(expr, frame)
        self.owner = owner
        self.index = index

    def ready(self, request: Request) -> None:
        value = self.expr.read(self.frame)
        self.phase = IDLE
        self.owner.part_ready(request, self, value)

    def failed(self, request: Request, error: Exception) -> None:
        self.owner.part_failed(request, self, error)


class PartsCell(Cell):
    """A step that waits for several expressions at once."""

    __slots__ = ("live",)

    def __init__(self, plan: StepPlan, frame: Frame) -> None:
        super().__init__(plan, frame)
        self.live: dict[int, Part] = {}

    def parts(self) -> Sequence[Need]:
        live = tuple(self.live.values())
        self.live.clear()
        return live

    def start(self, request: Request, part: Part) -> None:
        self.live[part.index] = part
        part.phase = WANTED
        request.wanted.append(part)

    @abstractmethod
    def part_ready(self, request: Request, part: Part, value: Any) -> None:
        """One of the expressions has its value."""

    @abstractmethod
    def part_failed(self, request: Request, part: Part, error: Exception) -> None:
        """One of them failed."""


class FirstCell(PartsCell):
    __slots__ = ("errors",)

    def ready(self, request: Request) -> None:
        self.phase = WAITING
        self.errors: dict[int, Exception] = {}
        for index, expr in enumerate(self.plan.later):
            self.start(request, Part(self, index, expr, self.frame))

    def part_ready(self, request: Request, part: Part, value: Any) -> None:
        request.settle(self, DONE, value)

    def part_failed(self, request: Request, part: Part, error: Exception) -> None:
        del self.live[part.index]
        self.errors[part.index] = error
        if not self.live:
            request.settle(self, FAILED, self.errors[max(self.errors)])


class MapCell(PartsCell):
    __slots__ = ("frames", "results", "started", "to_go")

    def __init__(self, plan: StepPlan, frame: Frame) -> None:
        super().__init__(plan, frame)
        # Made once: an iterable may be used up by reading it, and a step runs once per item.
        self.frames: list[Frame] | None = None

    def want(self, request: Request) -> None:
        super().want(request)
        self.started = 0
        request.undecided.add(self)

    def ready(self, request: Request) -> None:
        if self.frames is None:
            items = _items(self.plan.step.name, self.expr.read(self.frame))
            self.frames = [Frame(self.plan.width, self.frame.inputs, self.frame, item) for item in items]
        self.phase = WAITING
        self.to_go = len(self.frames)
        self.results: list[Any] = [None] * self.to_go
        if not self.frames:
            request.settle(self, DONE, [])
            return
        step = self.plan.step
        assert isinstance(step, Map)
        at_once = min(self.to_go, step.concurrency or self.to_go)
        self.started = at_once
        for index in range(at_once):
            self.start(request, Part(self, index, self.plan.later[0], self.frames[index]))

    def part_ready(self, request: Request, part: Part, value: Any) -> None:
        assert self.frames is not None
        del self.live[part.index]
        self.results[part.index] = value
        self.to_go -= 1
        if not self.to_go:
            request.settle(self, DONE, self.results)
        elif self.started < len(self.frames):
            index = self.started
            self.started += 1
            self.start(request, Part(self, index, self.plan.later[0], self.frames[index]))

    def part_failed(self, request: Request, part: Part, error: Exception) -> None:
        request.settle(self, FAILED, error)

    def may_want(self) -> int:
        if self.frames is not None and self.started == len(self.frames):
            return 0
        return self.plan.later[0].reach


CELLS: dict[type, type[Cell]] = {
    Call: CallCell,
    Switch: ChoiceCell,
    Split: ChoiceCell,
    Fallback: FallbackCell,
    First: FirstCell,
    Map: MapCell,
}


class Output(Need):
    """The request itself, which waits for the graph's output."""

    __slots__ = ("done", "error", "value")

    def __init__(self, expr: ExprPlan, frame: Frame) -> None:
        super().__init__(expr, frame)
        self.done: asyncio.Future[None] | None = None  # made when somebody has to wait
        self.value: Any = None
        self.error: Exception | None = None

    async def wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until it is DONE or FAILED."""
        if self.done is None:
            self.done = loop.create_future()
        await self.done

    def cancel(self, loop: asyncio.AbstractEventLoop) -> None:
        """Whoever waits, or is about to, gets ``CancelledError``."""
        if self.done is None:
            self.done = loop.create_future()
        self.done.cancel()

    def ready(self, request: Request) -> None:
        self.value = self.expr.read(self.frame)
        self._end(DONE)

    def failed(self, request: Request, error: Exception) -> None:
        self.error = error
        self._end(FAILED)

    def _end(self, phase: int) -> None:
        self.phase = phase
        if self.done is not None and not self.done.done():  # cancelled, where the event loop is being shut down
            self.done.set_result(None)


def _reach(plans: Sequence[ExprPlan]) -> int:
    reach = 0
    for plan in plans:
        reach |= plan.reach
    return reach


def _items(step: str, value: Any) -> list[Any]:
    try:
        iterator = iter(value)
    except TypeError:
        raise RequestError(
            f"step {step} maps over {type(value).__name__}, which cannot be iterated over", step=step
        ) from None
    return list(iterator)
