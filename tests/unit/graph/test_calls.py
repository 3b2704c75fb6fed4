"""Handles: what user code sees of other nodes, in async methods, in threads and on foreign loops."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from servepipe.errors import RequestError, SignatureError, StepTimeoutError
from servepipe.graph import ir
from servepipe.graph.calls import NodeDefinition, NodeHandle, RequestContext, current_request
from servepipe.graph.failures import failed_step
from servepipe.graph.inprocess import InProcessCaller, Runner
from servepipe.graph.ir import Const, DictOf, InputRef, ListOf, NodeRef, StepRef

DEADLINE_S = 30.0

RunnerOf = Callable[..., Runner]


class Leaf:
    def __init__(self) -> None:
        self.started, self.cancelled = threading.Event(), threading.Event()

    def double(self, x: int) -> int:
        return 2 * x

    async def triple(self, x: int) -> int:
        await asyncio.sleep(0)
        return 3 * x

    async def fail(self) -> None:
        raise ValueError("leaf")

    async def context(self) -> Any:
        return current_request.get()

    late_error = TimeoutError("leaf")

    def late(self) -> None:
        raise self.late_error

    async def hang(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def add_one(x: int) -> int:
    return x + 1


class Holder:
    def __init__(self, held: Any, *, function: Any = None) -> None:
        self.held = held
        self.function = function

    async def in_async(self, x: int) -> Any:
        both = await asyncio.gather(self.held["leaves"][0].double.remote(x), self.held["leaves"][0].triple.remote(x=x))
        return [*both, await self.function.remote(x)]

    def in_sync(self, x: int) -> Any:
        under_way = [self.held["leaves"][0].double.remote(x), self.held["leaves"][0].triple.remote(x)]
        return [*(response.result(DEADLINE_S) for response in under_way), self.function.remote(x).result()]


def graph(method: str, *args: ir.Expr) -> ir.Graph:
    return ir.Graph((ir.Call("s", "holder", method, args),), StepRef("s"))


def holding(target: Any, **more: Any) -> NodeDefinition:
    return NodeDefinition("holder", target, (NodeRef("leaf"),), **more)


@pytest.mark.parametrize("method", ["in_async", "in_sync"])
def test_a_handle_calls_the_node_from_any_method(runner_of: RunnerOf, method: str) -> None:
    runner = runner_of(
        graph(method, InputRef()),
        leaf=Leaf,
        add=add_one,
        holder=NodeDefinition(
            "holder",
            Holder,
            (DictOf((("leaves", ListOf((NodeRef("leaf"), NodeRef("leaf")))),)),),
            (("function", NodeRef("add")),),
        ),
    )

    assert runner.execute((5,)) == [10, 15, 6]


def test_result_on_the_event_loop_is_an_error_instead_of_a_deadlock(runner_of: RunnerOf) -> None:
    class Wrong:
        def __init__(self, leaf: Any) -> None:
            self.leaf = leaf

        async def wrong(self) -> Any:
            response = self.leaf.double.remote(1)
            try:
                return response.result()
            finally:
                await response

    with pytest.raises(RequestError, match=r"leaf.double.result\(\) would wait on the event loop") as caught:
        runner_of(graph("wrong"), leaf=Leaf, holder=holding(Wrong)).execute()
    assert "await" in caught.value.fix


def test_a_failure_goes_through_the_holder_and_the_request_with_it(runner_of: RunnerOf) -> None:
    class Through:
        def __init__(self, leaf: Any) -> None:
            self.leaf = leaf

        def fail(self) -> Any:
            self.leaf.fail.remote().result()

        async def caught(self) -> Any:
            try:
                await self.leaf.fail.remote()
            except ValueError as error:
                return str(error)

        async def unknown(self) -> Any:
            await self.leaf.nope.remote()

        def late(self) -> Any:
            return self.leaf.late.remote().result()

        async def late_async(self) -> Any:
            return await self.leaf.late.remote()

        def contexts(self) -> Any:
            return [current_request.get(), self.leaf.context.remote().result()]

    def runner(method: str) -> Runner:
        return runner_of(graph(method), leaf=Leaf, holder=holding(Through))

    with pytest.raises(ValueError, match="leaf") as caught:
        runner("fail").execute()
    assert failed_step(caught.value) == ("s", "holder", "fail")
    assert runner("caught").execute() == "leaf"
    for method in ("late", "late_async"):
        with pytest.raises(TimeoutError, match="leaf") as late:
            runner(method).execute()
        assert late.value is Leaf.late_error
        assert late.traceback[-1].name == "late"
    with pytest.raises(SignatureError, match="node leaf has no method 'nope'"):
        runner("unknown").execute()
    context = RequestContext("r7", None, {"leaf": "abc"})
    assert runner("contexts").execute(context=context) == [context, context]


def test_result_gives_up_waiting_after_its_timeout(runner_of: RunnerOf) -> None:
    class Impatient:
        def __init__(self, leaf: Any) -> None:
            self.leaf = leaf

        def impatient(self) -> None:
            response = self.leaf.hang.remote()
            with pytest.raises(StepTimeoutError, match=r"leaf\.hang gave no answer within 0\.01 s"):
                response.result(0.01)
            response.cancel()
            with pytest.raises(concurrent.futures.CancelledError):
                response.result()

        def of_its_own(self) -> None:
            self.leaf.time_out.remote().result(DEADLINE_S)

    class TimesOut(Leaf):
        async def time_out(self) -> None:
            raise TimeoutError("of the node")

    runner_of(graph("impatient"), leaf=Leaf, holder=holding(Impatient)).execute()
    with pytest.raises(TimeoutError, match="of the node"):
        runner_of(graph("of_its_own"), leaf=TimesOut, holder=holding(Impatient)).execute()


@pytest.mark.parametrize("method", ["sync", "started_only", "awaited", "gathered"])
async def test_a_caller_that_leaves_cancels_what_its_nodes_have_called(runner_of: RunnerOf, method: str) -> None:
    class Waiting:
        def __init__(self, leaf: Any) -> None:
            self.leaf = leaf

        def sync(self) -> None:
            self.leaf.hang.remote().result(2 * DEADLINE_S)

        async def started_only(self) -> None:
            self.response = self.leaf.hang.remote()
            await asyncio.Event().wait()

        async def awaited(self) -> None:
            await self.leaf.hang.remote()

        async def gathered(self) -> None:
            await asyncio.gather(self.leaf.hang.remote(), self.leaf.hang.remote())

    leaf = Leaf()
    runner = runner_of(graph(method), leaf=Leaf, holder=holding(Waiting), fakes={"leaf": leaf})
    task = asyncio.create_task(runner.execute_async())
    assert await asyncio.to_thread(leaf.started.wait, DEADLINE_S)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(leaf.cancelled.wait, DEADLINE_S)


async def test_what_a_thread_calls_after_its_caller_has_left_is_cancelled_at_once(runner_of: RunnerOf) -> None:
    entered, gone, ended = threading.Event(), threading.Event(), threading.Event()

    class Slow:
        def __init__(self, leaf: Any) -> None:
            self.leaf = leaf

        def late(self) -> None:
            entered.set()
            assert gone.wait(DEADLINE_S)
            with pytest.raises(concurrent.futures.CancelledError):
                self.leaf.hang.remote().result(DEADLINE_S)
            ended.set()

    task = asyncio.create_task(runner_of(graph("late"), leaf=Leaf, holder=holding(Slow)).execute_async())
    assert await asyncio.to_thread(entered.wait, DEADLINE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gone.set()

    assert await asyncio.to_thread(ended.wait, DEADLINE_S)


def test_a_response_can_be_dropped_awaited_twice_and_cancelled(runner_of: RunnerOf) -> None:
    done = threading.Event()

    class Loose:
        def __init__(self, leaf: Any) -> None:
            self.leaf = leaf

        async def drop(self) -> None:
            self.leaf.finish.remote()

        async def twice(self) -> Any:
            response = self.leaf.double.remote(4)
            return [await response, await response]

        async def cancel(self) -> str:
            response = self.leaf.hang.remote()
            await asyncio.sleep(0)
            response.cancel()
            try:
                await response
            except asyncio.CancelledError:
                return "cancelled"
            return "not cancelled"

        async def pass_on(self) -> Any:
            """Started on the loop; waited for, then cancelled, in a thread."""
            response, hanging = self.leaf.double.remote(4), self.leaf.hang.remote()
            answer = await asyncio.to_thread(response.result, DEADLINE_S)
            await asyncio.to_thread(hanging.cancel)
            try:
                await hanging
            except asyncio.CancelledError:
                return [answer, "cancelled"]

        def own_loop(self) -> Any:
            """A sync method that runs a loop of its own, in its thread."""

            async def inside() -> Any:
                return await self.leaf.double.remote(4)

            return asyncio.run(inside())

    class Finishes(Leaf):
        async def finish(self) -> None:
            await asyncio.sleep(0)
            done.set()

    def runner(method: str) -> Runner:
        return runner_of(graph(method), leaf=Finishes, holder=holding(Loose))

    runner("drop").execute()
    assert done.wait(DEADLINE_S)
    assert runner("twice").execute() == [8, 8]
    assert runner("cancel").execute() == "cancelled"
    assert runner("pass_on").execute() == [8, "cancelled"]
    assert runner("own_loop").execute() == 8


async def test_a_handle_outside_a_request_makes_one_of_its_own() -> None:
    caller = InProcessCaller({"leaf": NodeDefinition("leaf", Leaf)})
    handle = NodeHandle("leaf", caller, asyncio.get_running_loop())

    first, second = await handle.context.remote(), await handle.context.remote()

    assert isinstance(first, RequestContext)
    assert first.request_id != second.request_id
    assert first.deadline is None
    assert current_request.get() is None
    await caller.close()


def test_a_handle_to_a_loop_that_is_closed_says_so() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    handle = NodeHandle("leaf", InProcessCaller({}), loop)

    with pytest.raises(RequestError, match=r"leaf\.double was called after its pipeline had been shut down") as caught:
        handle.double.remote(1)
    assert caught.value.status == 503


def test_a_handle_shows_what_it_is_and_stays_where_it_is() -> None:
    handle = NodeHandle("leaf", InProcessCaller({}), asyncio.new_event_loop())
    handle._loop.close()

    assert repr(handle) == "NodeHandle('leaf')"
    assert repr(handle.double) == "NodeHandle('leaf').double"
    assert not hasattr(handle, "_private")
    for send in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be sent elsewhere"):
            send(handle)


def test_a_request_context_can_be_sent() -> None:
    context = RequestContext("r", 12.5, {"m1": "abc"})

    assert pickle.loads(pickle.dumps(context)) == context


async def test_a_node_that_somebody_else_waits_for_is_built_though_the_first_caller_leaves() -> None:
    release, built = threading.Event(), []

    class Slow:
        def __init__(self) -> None:
            assert release.wait(DEADLINE_S)
            built.append(self)

        def f(self) -> str:
            return "ready"

    caller = InProcessCaller({"n": NodeDefinition("n", Slow)})
    first, second = (asyncio.create_task(caller.call("n", "f", (), {}, RequestContext())) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    release.set()

    assert await second == "ready"
    assert len(built) == 1
    await caller.close()


def test_constructors_take_only_what_does_not_depend_on_a_request(runner_of: RunnerOf) -> None:
    bad = NodeDefinition("holder", Holder, (ListOf((InputRef(),)),))

    with pytest.raises(Exception, match="a constructor cannot take a InputRef"):
        runner_of(graph("in_sync", Const(1)), holder=bad).execute()
