"""Runs a prepared graph: by need, each step once, independent steps at the same time.

Whoever needs a value subscribes to the steps that its expression refers to; a step that settles tells its subscribers.
So a step runs because somebody waits for it, and its fate follows from who still does:

- A call that lost its last subscriber (a sibling failed, another option won, the caller left) is cancelled, unless a
  switch, fallback or map that is still undecided may come back to it: then it goes on, since it must not run twice.
- A step that settled keeps its outcome for whoever needs it later.

Only calls of nodes are coroutines. All else is done between them, in `_advance`, on explicit queues and never by
recursion. Calls are carried out by workers, each a coroutine in a task of its own (`workers`): one that has finished a
call goes on with the next that is ready, and others are started only while it waits. So a chain of steps runs in one
task, and a request whose calls never wait needs no turn of the event loop.

    IDLE --wanted--> WANTED --its steps are missing--> WAITING --all there--> READY --begun--> RUNNING --> DONE | FAILED
                       (combinators wait for one expression after the other, and never are READY or RUNNING)
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from servepipe.errors import StepTimeoutError
from servepipe.graph.calls import Caller, RequestContext, current_request
from servepipe.graph.cells import (
    CELLS,
    DONE,
    FAILED,
    IDLE,
    READY,
    RUNNING,
    WAITING,
    WANTED,
    CallCell,
    Cell,
    Need,
    Output,
    Part,
)
from servepipe.graph.failures import as_exception, mark
from servepipe.graph.frames import forget, related, running_calls
from servepipe.graph.ir import Call
from servepipe.graph.limit import Limit
from servepipe.graph.program import Frame, Program
from servepipe.graph.workers import start_workers

__all__ = ["run"]


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
    root = Frame(program.width, program.read_inputs(args, kwargs))
    token = current_request.set(context)
    try:
        request = _Request(program, root, caller, context)
        output = request.output
        request.subscribe(output)
        request.advance()
        if request.ready:
            start_workers(request)
        if output.phase < DONE:
            await request.wait()
        if output.error is not None:
            try:
                raise output.error
            finally:
                output.error = None  # or the traceback would keep itself alive
        return output.value
    finally:
        current_request.reset(token)
        forget(root)


class _Request:
    """One run of a graph."""

    __slots__ = ("caller", "context", "loop", "orphans", "output", "ready", "root", "settled", "undecided", "wanted")

    def __init__(self, program: Program, root: Frame, caller: Caller, context: RequestContext) -> None:
        self.root = root
        self.caller = caller
        self.context = context
        self.loop = asyncio.get_running_loop()
        self.output = Output(program.output, root)
        self.wanted: list[Need] = []  # expressions to subscribe to the steps of
        self.settled: list[Cell] = []  # steps whose users have not been told yet
        self.ready: deque[Cell] = deque()  # calls to start
        self.undecided: set[Cell] = set()  # combinators under way that may want more steps
        self.orphans: set[Cell] = set()  # running calls that nobody waits for any more

    async def wait(self) -> None:
        """Wait until the output is there, or its failure."""
        timer = None
        if self.context.deadline is not None:
            timer = self.loop.call_later(max(0.0, self.context.deadline - time.time()), self._deadline_passed)
        try:
            await self.output.wait(self.loop)
        except asyncio.CancelledError:
            self._drop(self.output)
            self.advance()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    # What happens between calls. Nothing here waits, and nothing recurs.

    def advance(self) -> None:
        """Work everything off that follows from what has settled; the calls that became ready are in `ready` then."""
        wanted, settled = self.wanted, self.settled
        if wanted:
            self._subscribe_wanted()
        for cell in settled:  # grows while it is read
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
            if wanted:
                self._subscribe_wanted()
        settled.clear()
        if self.orphans:
            self._cancel_orphans()

    def _subscribe_wanted(self) -> None:
        for need in self.wanted:  # grows while it is read
            if need.phase == WANTED:  # else it was dropped while it stood in the queue
                self.subscribe(need)
        self.wanted.clear()

    def subscribe(self, need: Need) -> None:
        """Have ``need`` wait for the steps of its expression."""
        need.phase = WAITING
        missing = 0
        for hops, plan in need.expr.deps:
            frame = need.frame.up(hops) if hops else need.frame
            cell = frame.cells[plan.slot]
            if cell is None:
                cell = frame.cells[plan.slot] = CELLS[type(plan.step)](plan, frame)
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

    def _ready(self, need: Need) -> None:
        if type(need) is CallCell:  # most of them are, and cannot fail
            need.ready(self)
            return
        try:
            need.ready(self)
        except Exception as error:
            # A value of user code that has no such part, cannot be iterated over, or that no case names.
            if isinstance(need, Cell):
                mark(error, need.plan.step.name)
            elif isinstance(need, Part):
                mark(error, need.owner.plan.step.name)
            self._failed(need, error)

    def _failed(self, need: Need, error: Exception) -> None:
        self._drop(need)
        need.failed(self, error)

    def settle(self, cell: Cell, phase: int, value: Any) -> None:
        """The outcome of a step is known."""
        if cell.phase == WAITING:
            self._drop(cell)
        cell.phase = phase
        cell.value = value
        cell.task = None
        self.undecided.discard(cell)
        self.settled.append(cell)

    def _drop(self, need: Need) -> None:
        """``need`` no longer waits: leave its steps, and stop those that nobody else needs."""
        stack = [need]
        while stack:
            need = stack.pop()
            waiting = need.phase == WAITING
            need.phase = IDLE
            if isinstance(need, Cell):
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

    def _may_be_wanted(self, cell: Cell) -> bool:
        """Whether some combinator that is still undecided may come back to ``cell``."""
        return any(other.may_want() & cell.plan.bit and related(other.frame, cell.frame) for other in self.undecided)

    def _deadline_passed(self) -> None:
        if self.output.phase >= DONE:
            return
        running = next(running_calls(self.root), None)
        step = running.plan.step if running is not None else None
        name, node = (step.name, step.node) if isinstance(step, Call) else ("", "")
        self._failed(
            self.output,
            StepTimeoutError(
                "the request ran out of time" + (f" in step {name} (node {node})" if name else ""), step=name, node=node
            ),
        )
        self.advance()

    # Calls.

    async def work(self, task: asyncio.Task[None]) -> None:
        """Carry out calls that are ready, one after the other, in ``task``."""
        ready = self.ready
        while ready:
            cell = ready.popleft()
            if cell.phase != READY:  # it was dropped
                continue
            cell.phase = RUNNING
            cell.task = task
            step: Any = cell.plan.step
            try:
                if step.timeout_s is None and not step.retries:
                    args, kwargs = cell.expr.read(cell.frame)
                    value = await self.caller.call(step.node, step.method, args, kwargs, self.context)
                else:
                    value = await self._attempts(step, cell)
            except BaseException as raised:
                if isinstance(raised, GeneratorExit) and asyncio.current_task(self.loop) is not task:
                    raise  # no code of the user's: this coroutine itself is being thrown away
                if cell.task is not task:  # nobody waits for it any more
                    return
                if isinstance(raised, asyncio.CancelledError) and task.cancelling():
                    self.output.cancel(self.loop)  # the event loop is being shut down
                    return
                error = as_exception(raised)
                mark(error, step.name, step.node, step.method)
                self.settle(cell, FAILED, error)
                del error, cell  # this frame is in the traceback, and both would keep that alive
            else:
                if cell.task is not task:
                    return
                cell.phase = DONE
                cell.value = value
                cell.task = None
                self.settled.append(cell)
            self.advance()

    async def _attempts(self, step: Call, cell: Cell) -> Any:
        for attempt in range(step.retries + 1):
            args, kwargs = cell.expr.read(cell.frame)
            limit = None if step.timeout_s is None else Limit(step.timeout_s)
            try:
                call = self.caller.call(step.node, step.method, args, kwargs, self.context)
                return await (call if limit is None else limit.keep(call))
            except TimeoutError as error:
                raised: Exception = error
                if limit is not None and limit.expired:
                    raised = StepTimeoutError(
                        f"step {step.name} (node {step.node}) took longer than {step.timeout_s:g} s",
                        step=step.name,
                        node=step.node,
                    )
            except Exception as error:
                raised = error
            if attempt == step.retries:
                try:
                    raise raised
                finally:
                    del raised  # or the traceback would keep itself alive
        raise AssertionError("unreachable")
