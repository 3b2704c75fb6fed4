"""Runs a prepared graph: by need, each step once, independent steps at the same time.

Whoever needs a value subscribes to the steps that its expression refers to; a step that settles tells its subscribers.
So a step runs because somebody waits for it, and its fate follows from who still does:

- A call that lost its last subscriber (a sibling failed, another option won, the caller left) is cancelled, unless a
  switch, fallback or map that is still undecided may come back to it: then it goes on, since it must not run twice.
- A step that settled keeps its outcome for whoever needs it later.

Only calls of nodes are coroutines. All else is done between them, in `_advance`, on explicit queues and never by
recursion. A task that finishes a call goes on with one of the calls that became ready and starts tasks for the others:
a chain of steps runs in one task.

    IDLE --wanted--> WANTED --its steps are missing--> WAITING --all there--> READY --task--> RUNNING --> DONE | FAILED
                       (combinators wait for one expression after the other, and never are READY or RUNNING)
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from servepipe.errors import RequestError, StepTimeoutError
from servepipe.graph.calls import Caller, RequestContext, current_request
from servepipe.graph.choices import branch_of, case_of
from servepipe.graph.failures import as_exception, mark
from servepipe.graph.ir import Call, Fallback, First, Map, Split, Switch
from servepipe.graph.program import ExprPlan, Frame, Program, StepPlan

__all__ = ["run"]

IDLE, WANTED, WAITING, READY, RUNNING, DONE, FAILED = range(7)


async def run(
    program: Program, args: Sequence[Any], kwargs: Mapping[str, Any], caller: Caller, context: RequestContext
) -> Any:
    """Run ``program`` once and return its output.

    Cancelling this coroutine cancels what runs for it. When it returns, what is no longer needed has been cancelled,
    though it may take the user's code a moment to end.

    Raises:
        BadRequestError: The graph reads an input that the request does not have.
        StepTimeoutError: A step, or the request, took too long.
        Exception: What a node raised, as itself; `failures.failed_step` names the step.
    """
    request = _Request(program, Frame(program.width, program.read_inputs(args, kwargs)), caller, context)
    token = current_request.set(context)
    try:
        return await request.run()
    finally:
        current_request.reset(token)


class _Need:
    """Somebody who waits for an expression."""

    __slots__ = ("expr", "frame", "missing", "phase")

    def __init__(self, expr: ExprPlan, frame: Frame) -> None:
        self.expr = expr
        self.frame = frame
        self.phase = IDLE
        self.missing = 0

    def ready(self, request: _Request) -> None:
        """All steps of the expression are done."""
        raise NotImplementedError

    def failed(self, request: _Request, error: Exception) -> None:
        """One of them failed."""
        raise NotImplementedError

    def parts(self) -> Sequence[_Need]:
        """Needs that are there only for this one."""
        return ()


class _Cell(_Need):
    """One step in one request, or in one item of a map. It waits for one expression at a time."""

    __slots__ = ("plan", "task", "users", "value")

    def __init__(self, plan: StepPlan, frame: Frame) -> None:
        super().__init__(plan.first, frame)
        self.plan = plan
        self.users: list[_Need] = []
        self.value: Any = None  # what it returned or, once FAILED, raised
        self.task: asyncio.Task[None] | None = None

    def want(self, request: _Request) -> None:
        """Somebody needs the step, and it is IDLE."""
        self.phase = WANTED
        self.expr = self.plan.first
        request.wanted.append(self)

    def failed(self, request: _Request, error: Exception) -> None:
        request.settle(self, FAILED, error)

    def may_want(self) -> int:
        """The steps that this one may want later, and does not want now (bits as in `StepPlan.reach`)."""
        return 0


class _CallCell(_Cell):
    __slots__ = ()

    def ready(self, request: _Request) -> None:
        self.phase = READY
        request.ready.append(self)


class _ChoiceCell(_Cell):
    """A switch or a split: first what it depends on, then the branch."""

    __slots__ = ("chosen",)

    def __init__(self, plan: StepPlan, frame: Frame) -> None:
        super().__init__(plan, frame)
        self.chosen: int | None = None

    def want(self, request: _Request) -> None:
        super().want(request)
        if self.chosen is None:
            request.undecided.add(self)
        else:
            self.expr = self.plan.later[self.chosen]

    def ready(self, request: _Request) -> None:
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


class _FallbackCell(_Cell):
    __slots__ = ("option",)

    def want(self, request: _Request) -> None:
        super().want(request)
        self.option = 0
        self.expr = self.plan.later[0]
        request.undecided.add(self)

    def ready(self, request: _Request) -> None:
        request.settle(self, DONE, self.expr.read(self.frame))

    def failed(self, request: _Request, error: Exception) -> None:
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


class _Part(_Need):
    """One option of a `First`, or one item of a `Map`."""

    __slots__ = ("index", "owner")

    def __init__(self, owner: _PartsCell, index: int, expr: ExprPlan, frame: Frame) -> None:
        super().__init__(expr, frame)
        self.owner = owner
        self.index = index

    def ready(self, request: _Request) -> None:
        value = self.expr.read(self.frame)
        self.phase = IDLE
        self.owner.part_ready(request, self, value)

    def failed(self, request: _Request, error: Exception) -> None:
        self.owner.part_failed(request, self, error)


class _PartsCell(_Cell):
    """A step that waits for several expressions at once."""

    __slots__ = ("live",)

    def __init__(self, plan: StepPlan, frame: Frame) -> None:
        super().__init__(plan, frame)
        self.live: dict[int, _Part] = {}

    def parts(self) -> Sequence[_Need]:
        live = tuple(self.live.values())
        self.live.clear()
        return live

    def start(self, request: _Request, part: _Part) -> None:
        self.live[part.index] = part
        part.phase = WANTED
        request.wanted.append(part)

    def part_ready(self, request: _Request, part: _Part, value: Any) -> None:
        raise NotImplementedError

    def part_failed(self, request: _Request, part: _Part, error: Exception) -> None:
        raise NotImplementedError


class _FirstCell(_PartsCell):
    __slots__ = ("errors",)

    def ready(self, request: _Request) -> None:
        self.phase = WAITING
        self.errors: dict[int, Exception] = {}
        for index, expr in enumerate(self.plan.later):
            self.start(request, _Part(self, index, expr, self.frame))

    def part_ready(self, request: _Request, part: _Part, value: Any) -> None:
        request.settle(self, DONE, value)

    def part_failed(self, request: _Request, part: _Part, error: Exception) -> None:
        del self.live[part.index]
        self.errors[part.index] = error
        if not self.live:
            request.settle(self, FAILED, self.errors[max(self.errors)])


class _MapCell(_PartsCell):
    __slots__ = ("frames", "results", "started", "to_go")

    def __init__(self, plan: StepPlan, frame: Frame) -> None:
        super().__init__(plan, frame)
        # Made once: an iterable may be used up by reading it, and a step runs once per item.
        self.frames: list[Frame] | None = None

    def want(self, request: _Request) -> None:
        super().want(request)
        self.started = 0
        request.undecided.add(self)

    def ready(self, request: _Request) -> None:
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
            self.start(request, _Part(self, index, self.plan.later[0], self.frames[index]))

    def part_ready(self, request: _Request, part: _Part, value: Any) -> None:
        assert self.frames is not None
        del self.live[part.index]
        self.results[part.index] = value
        self.to_go -= 1
        if not self.to_go:
            request.settle(self, DONE, self.results)
        elif self.started < len(self.frames):
            index = self.started
            self.started += 1
            self.start(request, _Part(self, index, self.plan.later[0], self.frames[index]))

    def part_failed(self, request: _Request, part: _Part, error: Exception) -> None:
        request.settle(self, FAILED, error)

    def may_want(self) -> int:
        if self.frames is not None and self.started == len(self.frames):
            return 0
        return self.plan.later[0].reach


_CELLS: dict[type, type[_Cell]] = {
    Call: _CallCell,
    Switch: _ChoiceCell,
    Split: _ChoiceCell,
    Fallback: _FallbackCell,
    First: _FirstCell,
    Map: _MapCell,
}


class _Output(_Need):
    """The request itself, which waits for the graph's output."""

    __slots__ = ("done", "error", "value")

    def __init__(self, expr: ExprPlan, frame: Frame, done: asyncio.Future[None]) -> None:
        super().__init__(expr, frame)
        self.done = done
        self.value: Any = None
        self.error: Exception | None = None

    def ready(self, request: _Request) -> None:
        self.value = self.expr.read(self.frame)
        self.phase = DONE
        if not self.done.done():
            self.done.set_result(None)

    def failed(self, request: _Request, error: Exception) -> None:
        self.error = error
        self.phase = FAILED
        if not self.done.done():
            self.done.set_result(None)


_tasks: set[asyncio.Task[None]] = set()
"""Event loops keep only weak references to tasks."""


class _Request:
    """One run of a graph."""

    def __init__(self, program: Program, root: Frame, caller: Caller, context: RequestContext) -> None:
        self.root = root
        self.caller = caller
        self.context = context
        self.loop = asyncio.get_running_loop()
        self.output = _Output(program.output, root, self.loop.create_future())
        self.wanted: deque[_Need] = deque()  # expressions to subscribe to the steps of
        self.settled: deque[_Cell] = deque()  # steps whose users have not been told yet
        self.ready: list[_CallCell] = []  # calls to start
        self.undecided: set[_Cell] = set()  # combinators under way that may want more steps
        self.orphans: set[_Cell] = set()  # running calls that nobody waits for any more

    async def run(self) -> Any:
        timer = None
        if self.context.deadline is not None:
            timer = self.loop.call_later(max(0.0, self.context.deadline - time.time()), self._deadline_passed)
        output = self.output
        output.phase = WANTED
        self.wanted.append(output)
        self._start(self._advance())
        try:
            await output.done
        except asyncio.CancelledError:
            self._give_up()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if output.error is not None:
            try:
                raise output.error
            finally:
                output.error = None  # or the traceback would keep itself alive
        return output.value

    # What happens between calls. Nothing here waits, and nothing recurs.

    def _advance(self) -> list[_CallCell]:
        """Work everything off that follows from what has settled, and return the calls that became ready."""
        wanted, settled = self.wanted, self.settled
        while True:
            if wanted:
                need = wanted.popleft()
                if need.phase == WANTED:  # else it was dropped while it stood in the queue
                    self._subscribe(need)
            elif settled:
                cell = settled.popleft()
                users, cell.users = cell.users, []
                for need in users:
                    if need.phase != WAITING:  # what an earlier user made of the news has dropped it
                        continue
                    if cell.phase == FAILED:
                        self._failed(need, cell.value)
                        continue
                    need.missing -= 1
                    if not need.missing:
                        self._ready(need)
            elif self.orphans:
                self._cancel_orphans()
                break
            else:
                break
        ready, self.ready = self.ready, []
        return ready

    def _subscribe(self, need: _Need) -> None:
        need.phase = WAITING
        missing = 0
        for hops, plan in need.expr.deps:
            frame = need.frame.up(hops) if hops else need.frame
            cell = frame.cells[plan.slot]
            if cell is None:
                cell = frame.cells[plan.slot] = _CELLS[type(plan.step)](plan, frame)
            phase = cell.phase
            if phase == DONE:
                continue
            if phase == FAILED:
                self._failed(need, cell.value)
                return
            cell.users.append(need)
            missing += 1
            if phase == IDLE:
                cell.want(self)
        need.missing = missing
        if not missing:
            self._ready(need)

    def _ready(self, need: _Need) -> None:
        try:
            need.ready(self)
        except Exception as error:
            # A value of user code that has no such part, cannot be iterated over, or that no case names.
            if isinstance(need, _Cell):
                mark(error, need.plan.step.name)
            elif isinstance(need, _Part):
                mark(error, need.owner.plan.step.name)
            self._failed(need, error)

    def _failed(self, need: _Need, error: Exception) -> None:
        self._drop(need)
        need.failed(self, error)

    def settle(self, cell: _Cell, phase: int, value: Any) -> None:
        """The outcome of a step is known."""
        if cell.phase == WAITING:
            self._drop(cell)
        cell.phase = phase
        cell.value = value
        cell.task = None
        self.undecided.discard(cell)
        self.settled.append(cell)

    def _drop(self, need: _Need) -> None:
        """``need`` no longer waits: leave its steps, and stop those that nobody else needs."""
        stack = [need]
        while stack:
            need = stack.pop()
            waiting = need.phase == WAITING
            need.phase = IDLE
            if isinstance(need, _Cell):
                self.undecided.discard(need)
            stack.extend(need.parts())
            if not waiting:
                continue
            for hops, plan in need.expr.deps:
                cell = need.frame.up(hops).cells[plan.slot]
                if cell is None or need not in cell.users:
                    continue
                cell.users.remove(need)
                if cell.users or cell.phase >= DONE:
                    continue
                if cell.phase == RUNNING:
                    self.orphans.add(cell)
                else:
                    stack.append(cell)

    def _cancel_orphans(self) -> None:
        for cell in tuple(self.orphans):
            if cell.users or cell.phase != RUNNING:
                self.orphans.discard(cell)
            elif not self._may_be_wanted(cell):
                self.orphans.discard(cell)
                cell.phase = IDLE
                task, cell.task = cell.task, None
                assert task is not None
                task.cancel()

    def _may_be_wanted(self, cell: _Cell) -> bool:
        """Whether some combinator that is still undecided may come back to ``cell``."""
        return any(other.may_want() & cell.plan.bit and _related(other.frame, cell.frame) for other in self.undecided)

    def _give_up(self) -> None:
        self._drop(self.output)
        self._advance()

    def _deadline_passed(self) -> None:
        if self.output.done.done():
            return
        running = next(_running(self.root), None)
        step = running.plan.step if running is not None else None
        name, node = (step.name, step.node) if isinstance(step, Call) else ("", "")
        self._failed(
            self.output,
            StepTimeoutError(
                "the request ran out of time" + (f" in step {name} (node {node})" if name else ""), step=name, node=node
            ),
        )
        self._advance()

    # Calls.

    def _start(self, cells: Sequence[_CallCell]) -> None:
        for cell in cells:
            if cell.phase == READY:
                cell.phase = RUNNING
                cell.task = task = self.loop.create_task(self._work(cell))
                _tasks.add(task)
                task.add_done_callback(_tasks.discard)

    async def _work(self, cell: _Cell | None) -> None:
        """Carry out the call of ``cell``, then one of those that it makes possible, and so on."""
        task = asyncio.current_task()
        while cell is not None:
            plan = cell.plan
            step = plan.step
            assert isinstance(step, Call)
            try:
                if step.timeout_s is None and not step.retries:
                    args, kwargs = cell.expr.read(cell.frame)
                    value = await self.caller.call(step.node, step.method, args, kwargs, self.context)
                else:
                    value = await self._attempts(step, cell)
            except GeneratorExit:
                raise
            except BaseException as raised:
                if cell.task is not task:  # nobody waits for it any more
                    return
                if isinstance(raised, asyncio.CancelledError) and task is not None and task.cancelling():
                    self.output.done.cancel()  # the event loop is being shut down
                    return
                error = as_exception(raised)
                mark(error, step.name, step.node, step.method)
                self.settle(cell, FAILED, error)
            else:
                if cell.task is not task:
                    return
                self.settle(cell, DONE, value)
            cell = None
            ready = self._advance()
            for index, fresh in enumerate(ready):
                if fresh.phase == READY:
                    fresh.phase = RUNNING
                    fresh.task = task
                    cell = fresh
                    self._start(ready[index + 1 :])
                    break

    async def _attempts(self, step: Call, cell: _Cell) -> Any:
        for attempt in range(step.retries + 1):
            args, kwargs = cell.expr.read(cell.frame)
            try:
                async with asyncio.timeout(step.timeout_s) as limit:
                    return await self.caller.call(step.node, step.method, args, kwargs, self.context)
            except TimeoutError as error:
                raised: Exception = error
                if limit.expired():
                    raised = StepTimeoutError(
                        f"step {step.name} (node {step.node}) took longer than {step.timeout_s:g} s",
                        step=step.name,
                        node=step.node,
                    )
            except Exception as error:
                raised = error
            if attempt == step.retries:
                raise raised
        raise AssertionError("unreachable")


def _reach(plans: Sequence[ExprPlan]) -> int:
    reach = 0
    for plan in plans:
        reach |= plan.reach
    return reach


def _related(one: Frame, other: Frame) -> bool:
    """Whether one of the frames is the other or lies inside it."""
    return _inside(one, other) or _inside(other, one)


def _inside(frame: Frame | None, outer: Frame) -> bool:
    while frame is not None:
        if frame is outer:
            return True
        frame = frame.parent
    return False


def _running(root: Frame) -> Iterator[_Cell]:
    frames = [root]
    for frame in frames:  # grows while it is read
        for cell in frame.cells:
            if cell is not None and cell.phase == RUNNING:
                yield cell
            if isinstance(cell, _MapCell):
                frames.extend(cell.frames or ())


def _items(step: str, value: Any) -> list[Any]:
    try:
        iterator = iter(value)
    except TypeError:
        raise RequestError(
            f"step {step} maps over {type(value).__name__}, which cannot be iterated over", step=step
        ) from None
    return list(iterator)
