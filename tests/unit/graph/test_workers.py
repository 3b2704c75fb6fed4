"""Calls begin before their task has its first turn, and user code cannot tell."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import uvloop

from servepipe.graph import ir, workers
from servepipe.graph.calls import RequestContext
from servepipe.graph.interpreter import run
from servepipe.graph.ir import Const, First, StepRef
from servepipe.graph.program import Program

WITHIN_S = 30.0


def on_each_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Replicas run on uvloop, other programs on what Python has."""

    @functools.wraps(test)
    def both(run_loop: Callable[..., None], **fixtures: Any) -> None:
        run_loop(test(**fixtures))

    signature = inspect.signature(test)
    run_loop = inspect.Parameter("run_loop", inspect.Parameter.KEYWORD_ONLY)
    both.__signature__ = signature.replace(parameters=[*signature.parameters.values(), run_loop])  # type: ignore[attr-defined]
    mark: pytest.MarkDecorator = pytest.mark.parametrize(
        "run_loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"]
    )
    return mark(both)


class Direct:
    """A caller with one object for all nodes."""

    def __init__(self, node: Any) -> None:
        self.node = node

    async def call(
        self, node: str, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], context: RequestContext
    ) -> Any:
        return await getattr(self.node, method or "__call__")(*args, **kwargs)


async def answer(graph: ir.Graph, node: Any) -> Any:
    async with asyncio.timeout(WITHIN_S):
        return await run(Program(graph), (), {}, Direct(node), RequestContext())


def call(name: str, *args: ir.Expr) -> ir.Call:
    """A call of the method that has the step's name up to its dash."""
    return ir.Call(name, "n", name.partition("-")[0], args)


@on_each_loop
async def test_calls_that_do_not_wait_take_no_turn_of_the_loop(make: SimpleNamespace) -> None:
    class Node:
        async def f(self, *values: int) -> int:
            return sum(values) + 1

    graph = make.graph(call("f-1"), call("f-2"), call("f-3", StepRef("f-1"), StepRef("f-2")))
    turns: list[str] = []
    asyncio.get_running_loop().call_soon(turns.append, "turn")

    assert await run(Program(graph), (), {}, Direct(Node()), RequestContext()) == 3

    assert turns == []
    await asyncio.sleep(0)
    assert {task.get_name() for task in asyncio.all_tasks()} & {"servepipe-calls"} == set()


@on_each_loop
async def test_values_of_calls_that_do_not_wait_live_no_longer_than_their_request(make: SimpleNamespace) -> None:
    class Large:
        pass

    made: list[weakref.ref[Large]] = []

    class Node:
        async def make(self) -> Large:
            large = Large()
            made.append(weakref.ref(large))
            return large

        async def f(self, _: Large) -> str:
            return "answer"

    gc.disable()
    try:
        graph = make.graph(call("make"), call("f", StepRef("make")))
        assert await run(Program(graph), (), {}, Direct(Node()), RequestContext()) == "answer"
        assert made[0]() is None  # and its task has not even had its turn
    finally:
        gc.enable()


@on_each_loop
async def test_a_call_is_in_one_task_from_its_start_to_its_end(make: SimpleNamespace) -> None:
    tasks: dict[str, list[Any]] = {}

    class Node:
        async def f(self, key: str) -> None:
            tasks[key] = [asyncio.current_task()]
            for _ in range(3):
                await asyncio.sleep(0)
                tasks[key].append(asyncio.current_task())

    steps = [call(f"f-{key}", Const(key)) for key in "abc"]
    await answer(make.graph(*steps, output=make.listed(*(step.name for step in steps))), Node())

    assert [len(set(seen)) for seen in tasks.values()] == [1, 1, 1]
    assert len({asyncio.current_task(), *(seen[0] for seen in tasks.values())}) == 4


@on_each_loop
async def test_a_timeout_in_user_code_ends_what_it_is_about(make: SimpleNamespace) -> None:
    class Node:
        async def f(self) -> str:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
            return "in time"

    assert await answer(make.graph(call("f-1"), call("f-2"), output=make.listed("f-1", "f-2")), Node()) == [
        "in time",
        "in time",
    ]


@on_each_loop
async def test_libraries_that_look_at_tasks_find_what_they_know(make: SimpleNamespace) -> None:
    """HTTP clients and databases stand on anyio, which keeps books of tasks and looks into their coroutines."""

    class Node:
        async def f(self) -> str:
            with anyio.move_on_after(0.01):
                await anyio.sleep(WITHIN_S)
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, WITHIN_S)
                await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            return "done"

        async def g(self) -> str:
            with anyio.CancelScope():  # noqa: ASYNC100 - as code has that need not wait this time
                return "at once"

    graph = make.graph(call("f-1"), call("f-2"), call("g"), output=make.listed("f-1", "f-2", "g"))

    assert await answer(graph, Node()) == ["done", "done", "at once"]


@on_each_loop
async def test_a_task_group_in_user_code_is_cancelled_with_its_call(make: SimpleNamespace) -> None:
    ended: list[str] = []

    async def child() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("child")

    class Node:
        async def f(self) -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                group.create_task(child())

        async def bad(self) -> None:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        await answer(make.graph(call("f"), call("bad"), output=make.listed("f", "bad")), Node())
    async with asyncio.timeout(WITHIN_S):
        while len(ended) < 2:  # noqa: ASYNC110 - tasks that end know no event
            await asyncio.sleep(0)


@on_each_loop
@pytest.mark.parametrize("how", ["future", "task", "gather", "shield", "turn", "generator"])
async def test_a_call_cancelled_before_its_tasks_first_turn_cleans_up(make: SimpleNamespace, how: str) -> None:
    """The other option of a `first` has won at once: nothing has had a turn of the loop yet."""
    loop = asyncio.get_running_loop()
    inner: dict[str, Any] = {}
    seen: list[str] = []
    over = asyncio.Event()

    async def child() -> None:
        await asyncio.Event().wait()

    async def items() -> AsyncIterator[int]:
        try:
            yield await loop.create_future()
        finally:
            await asyncio.sleep(0)
            seen.append("generator")

    def waits_for() -> Any:
        match how:
            case "turn":
                return asyncio.sleep(0)
            case "task":
                inner["task"] = asyncio.create_task(child())
                return inner["task"]
            case "gather":
                inner["one"], inner["two"] = asyncio.create_task(child()), asyncio.create_task(child())
                return asyncio.gather(inner["one"], inner["two"])
            case "shield":
                inner["kept"] = asyncio.create_task(asyncio.sleep(0, "kept"))
                return asyncio.shield(inner["kept"])
            case "generator":
                return anext(items())
            case _:
                inner["future"] = loop.create_future()
                return inner["future"]

    class Node:
        async def slow(self) -> None:
            try:
                await waits_for()
                seen.append("went on")
                await asyncio.Event().wait()
            except BaseException as error:
                seen.append(type(error).__name__)
                await asyncio.sleep(0)
                seen.append("cleaned up")
                raise
            finally:
                over.set()

        async def now(self) -> str:
            return "won"

    graph = make.graph(call("slow"), call("now"), First("f", (StepRef("slow"), StepRef("now"))))

    assert await answer(graph, Node()) == "won"

    assert not over.is_set()
    await asyncio.wait_for(over.wait(), WITHIN_S)
    assert seen == [*(["generator"] if how == "generator" else []), "CancelledError", "cleaned up"]
    for name, each in inner.items():
        if name == "kept":
            assert await each == "kept"
        else:
            assert each.cancelled()


@on_each_loop
async def test_calls_may_wait_for_the_same_future(make: SimpleNamespace) -> None:
    future = asyncio.get_running_loop().create_future()

    class Node:
        async def f(self, value: int, *_: Any) -> Any:
            return [value, await future]

        async def turn(self) -> None:
            await asyncio.sleep(0)

    early = [call(f"f-{n}", Const(n)) for n in range(3)]
    late = [call(f"f-{n}", Const(n), StepRef("turn")) for n in range(3, 6)]
    names = [step.name for step in (*early, *late)]
    task = asyncio.create_task(answer(make.graph(*early, call("turn"), *late, output=make.listed(*names)), Node()))
    for _ in range(5):
        await asyncio.sleep(0)
    future.set_result("there")

    assert await task == [[n, "there"] for n in range(6)]


@on_each_loop
async def test_context_variables_stay_with_their_call(make: SimpleNamespace) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="outside")

    class Node:
        async def f(self, key: str) -> Any:
            before = variable.get()
            variable.set(key)
            await asyncio.sleep(0)
            return [before, variable.get()]

    graph = make.graph(
        call("f-a", Const("a")), call("f-b", Const("b")), output=ir.ListOf((StepRef("f-a"), StepRef("f-b")))
    )

    assert await answer(graph, Node()) == [["outside", "a"], ["outside", "b"]]
    assert variable.get() == "outside"


@on_each_loop
async def test_any_number_of_calls_may_wait_without_recursion(make: SimpleNamespace) -> None:
    width = 3 * sys.getrecursionlimit()

    class Node:
        async def f(self, *_: Any) -> int:
            await asyncio.sleep(0)
            return 1

        async def total(self, *values: int) -> int:
            return sum(values)

    first = call("f-first")
    wide = [call(f"f-{n}", StepRef("f-first")) for n in range(width)]
    graph = make.graph(first, *wide, call("total", *(StepRef(step.name) for step in wide)))

    assert await answer(graph, Node()) == width
    assert not workers._workers


class Yields:
    """An awaitable that gives its task what no task takes."""

    def __await__(self) -> Any:
        return (yield "rubbish")


@on_each_loop
async def test_what_no_task_takes_fails_the_step(make: SimpleNamespace) -> None:
    class Node:
        async def f(self) -> Any:
            return await Yields()

    with pytest.raises(RuntimeError, match="bad yield"):
        await answer(make.graph(call("f")), Node())


@on_each_loop
async def test_user_code_that_cancels_its_own_task_is_cancelled(make: SimpleNamespace) -> None:
    seen: list[str] = []

    class Node:
        async def f(self) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            try:
                await asyncio.sleep(0)
                seen.append("went on")
            except asyncio.CancelledError:
                seen.append("cancelled")
                task.uncancel()
                raise ValueError("told") from None

    with pytest.raises(ValueError, match="told"):
        await answer(make.graph(call("f")), Node())
    assert seen == ["cancelled"]


@on_each_loop
async def test_a_task_of_calls_can_be_looked_at(gates: Any, make: SimpleNamespace) -> None:
    task = asyncio.create_task(run(Program(make.graph(make.step("a"))), (), {}, Direct(gates), RequestContext()))
    await gates.until_started("a")
    (calls,) = [each for each in asyncio.all_tasks() if each.get_name() == "servepipe-calls"]

    assert "_Request.work" in repr(calls)
    assert [frame.f_code.co_name for frame in calls.get_stack()] == ["work"]
    with pytest.raises(TypeError, match="belongs to its task"):
        await calls.get_coro()  # type: ignore[misc]

    gates.open("a")
    assert await task == "a"
