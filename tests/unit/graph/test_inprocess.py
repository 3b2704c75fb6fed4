"""Nodes as objects of this process: built once, hooks, threads and their bounds, and runs from any thread or loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from servepipe.errors import BadRequestError, GraphError, RequestError, SignatureError
from servepipe.graph import ir
from servepipe.graph.background import background
from servepipe.graph.calls import NodeDefinition, RequestContext, current_request
from servepipe.graph.failures import failed_step
from servepipe.graph.inprocess import Runner
from servepipe.graph.ir import Const, InputRef, ItemRef, Map, StepRef

DEADLINE_S = 30.0

RunnerOf = Callable[..., Runner]


class Model:
    def __init__(self, val: int) -> None:
        self.val = val

    def forward(self, x: int) -> int:
        return self.val * x


def ensemble(a: int, b: int, c: int) -> int:
    return a + b + c


@pytest.fixture
def diamond(make: SimpleNamespace, runner_of: RunnerOf) -> Runner:
    return runner_of(
        make.graph(
            ir.Call("m1-output", "m1", "forward", (InputRef((0,)),)),
            ir.Call("m2-output", "m2", "forward", (InputRef((1,)),)),
            ir.Call("ray-dag", "ensemble", None, (StepRef("m1-output"), StepRef("m2-output"), InputRef((2,)))),
        ),
        m1=NodeDefinition("m1", Model, (Const(1),)),
        m2=NodeDefinition("m2", Model, (), (("val", Const(2)),)),
        ensemble=ensemble,
    )


class Unprintable(BaseException):
    def __str__(self) -> str:
        raise RuntimeError("no text either")


def call(method: str | None, *args: ir.Expr, **kwargs: ir.Expr) -> ir.Graph:
    return ir.Graph((ir.Call("s", "n", method, args, tuple(kwargs.items())),), StepRef("s"))


def test_the_diamond(diamond: Runner) -> None:
    assert diamond.execute((1, 2, 3)) == 8
    assert diamond.execute(([1, 2, 3],)) == 8


def test_missing_inputs_are_named_before_anything_runs(make: SimpleNamespace, runner_of: RunnerOf) -> None:
    model = Mock()
    runner = runner_of(call("f", InputRef((0,)), InputRef((1, "k")), k=InputRef(("k",))), n=Model, fakes={"n": model})

    with pytest.raises(BadRequestError, match=r"reads input\[1\]\['k'\], input\['k'\], but .* 2 positional arguments$"):
        runner.execute((1, {}))

    assert model.mock_calls == []


def test_a_node_is_built_once_until_reset(runner_of: RunnerOf) -> None:
    class Counting:
        built = 0

        def __init__(self) -> None:
            Counting.built += 1

        async def f(self) -> int:
            return Counting.built

    runner = runner_of(
        ir.Graph(
            (ir.Call("f", "n", "f", (), ()), Map("m", Const([1] * 50), ir.ListOf((ItemRef("m"), StepRef("f"))))),
            StepRef("m"),
        ),
        n=Counting,
    )

    runner.build()
    assert Counting.built == 1
    runner.execute()
    runner.execute()
    assert Counting.built == 1
    runner.reset()
    assert runner.execute()[0] == [1, 2]


def test_a_constructor_that_fails_is_tried_again(runner_of: RunnerOf) -> None:
    class Late:
        files_there = False

        def __init__(self) -> None:
            if not Late.files_there:
                raise FileNotFoundError("weights")

        def f(self) -> str:
            return "ready"

    runner = runner_of(call("f"), n=Late)
    with pytest.raises(FileNotFoundError) as caught:
        runner.execute()
    assert failed_step(caught.value).step == "s"
    with pytest.raises(FileNotFoundError):
        runner.build()

    Late.files_there = True
    assert runner.execute() == "ready"


def test_hooks_are_called_as_in_a_replica(runner_of: RunnerOf) -> None:
    called: list[Any] = []

    class Hooked:
        def __init__(self) -> None:
            called.append(("init", current_request.get()))

        async def setup(self) -> None:
            called.append("setup")

        def reconfigure(self, user_config: Any) -> None:
            called.append(user_config)

        def f(self) -> None:
            called.append("f")

        async def close(self) -> None:
            called.append("close")

    runner = runner_of(call("f"), n=NodeDefinition("n", Hooked, user_config={"threshold": 3}))

    runner.execute()
    runner.reset()

    assert called == [("init", None), "setup", {"threshold": 3}, "f", "close"]


def test_a_class_that_answers_to_every_name_has_no_hooks(runner_of: RunnerOf) -> None:
    asked: list[str] = []

    class Proxy:
        close = None

        def __getattr__(self, name: str) -> Callable[..., str]:
            asked.append(name)
            return lambda *args: name

    runner = runner_of(call("anything"), n=Proxy)

    assert runner.execute() == "anything"
    runner.reset()
    assert asked == ["anything"]


def test_a_user_config_that_nobody_takes_is_an_error(runner_of: RunnerOf) -> None:
    assert runner_of(call("forward", Const(1)), n=NodeDefinition("n", Model, (Const(1),), user_config={})).execute()
    runner = runner_of(call("forward", Const(1)), n=NodeDefinition("n", Model, (Const(1),), user_config={"x": 1}))

    with pytest.raises(SignatureError, match=r"has a userConfig, but its class has no reconfigure\(\)"):
        runner.execute()


def test_a_close_that_fails_is_logged(runner_of: RunnerOf, caplog: pytest.LogCaptureFixture) -> None:
    class Bad:
        def f(self) -> None: ...

        def close(self) -> None:
            raise OSError("disk")

    runner = runner_of(call("f"), n=Bad)
    runner.execute()
    runner.reset()

    assert "close() of node n failed" in caplog.text
    assert "OSError: disk" in caplog.text


def test_sync_methods_run_in_threads_at_most_so_many_at_once(make: SimpleNamespace, runner_of: RunnerOf) -> None:
    class Busy:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.full = threading.Event()
            self.now = self.most = 0

        def work(self, item: int) -> int:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
                if self.now == 3:
                    self.full.set()
            assert self.full.wait(DEADLINE_S)  # so that as many as may do run at once
            time.sleep(0)
            with self.lock:
                self.now -= 1
            assert threading.current_thread().name.startswith("servepipe-n")
            return item

        def most_at_once(self, _: Any) -> int:
            return self.most

    runner = runner_of(
        make.graph(
            ir.Call("work", "n", "work", (ItemRef("m"),)),
            Map("m", InputRef(), StepRef("work")),
            ir.Call("most", "n", "most_at_once", (StepRef("m"),)),
        ),
        n=NodeDefinition("n", Busy, max_ongoing_requests=3),
    )

    assert runner.execute((range(12),)) == 3


async def test_async_methods_are_bounded_too(make: SimpleNamespace, runner_of: RunnerOf) -> None:
    class Busy:
        now = most = 0

        async def work(self, _: int) -> None:
            self.now += 1
            Busy.most = max(Busy.most, self.now)
            for _ in range(5):
                await asyncio.sleep(0)
            self.now -= 1

    runner = runner_of(
        make.graph(ir.Call("work", "n", "work", (ItemRef("m"),)), Map("m", InputRef(), StepRef("work"))),
        n=NodeDefinition("n", Busy, max_ongoing_requests=2),
    )

    await runner.execute_async((range(10),))
    assert Busy.most == 2


def test_a_thread_that_nobody_waits_for_keeps_its_slot(runner_of: RunnerOf) -> None:
    """Code that is not thread-safe has one slot: a timeout must not let the next call in beside it."""

    class Single:
        inside = 0

        def __init__(self) -> None:
            self.go_on = threading.Event()
            self.second_waits = threading.Event()

        def first(self) -> None:
            self.inside += 1
            assert self.go_on.wait(DEADLINE_S)
            self.inside -= 1

        def second(self) -> int:
            return self.inside

        async def release(self) -> None:
            self.go_on.set()

    single = Single()
    runner = runner_of(
        ir.Graph(
            (
                ir.Call("first", "n", "first", timeout_s=0.01),
                ir.Call("second", "n", "second"),
                ir.Call("release", "other", "release"),
                ir.Fallback("f", (StepRef("first"), ir.ListOf((StepRef("second"), StepRef("release"))))),
            ),
            StepRef("f"),
        ),
        n=NodeDefinition("n", Single, max_ongoing_requests=1),
        other=Single,
        fakes={"n": single, "other": single},
    )

    assert runner.execute() == [0, None]


def test_blocking_false_calls_sync_methods_on_the_loop(runner_of: RunnerOf) -> None:
    class Quick:
        def where(self) -> bool:
            return asyncio.get_running_loop() is background.loop()

    assert runner_of(call("where"), n=NodeDefinition("n", Quick, blocking=False)).execute() is True
    with pytest.raises(RuntimeError, match="no running event loop"):
        runner_of(call("where"), n=NodeDefinition("n", Quick)).execute()


def test_what_methods_may_be(runner_of: RunnerOf) -> None:
    class AsyncObject:
        async def __call__(self, x: int) -> int:
            return x + 1

    class SyncObject:
        def __call__(self, x: int) -> int:
            return x + 2

    async def coroutine_function(x: int) -> int:
        return x + 3

    def gives_awaitable(x: int) -> Any:
        return coroutine_function(x)

    for target, method, result in (
        (AsyncObject, None, 2),
        (SyncObject, None, 3),
        (coroutine_function, None, 4),
        (gives_awaitable, None, 4),
        (SyncObject, "__call__", None),
        (SyncObject, "cal", None),
        (object, None, None),
    ):
        for blocking in (None, False, True):
            runner = runner_of(call(method, Const(1)), n=NodeDefinition("n", target, blocking=blocking))
            if result is None:
                with pytest.raises(SignatureError, match="node n has no method"):
                    runner.execute()
            else:
                assert runner.execute() == result


@pytest.mark.parametrize("blocking", [None, False, True])
@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (StopIteration(), "StopIteration"),
        (SystemExit(2), "SystemExit: 2"),
        (KeyboardInterrupt(), "Key"),
        (GeneratorExit(), "GeneratorExit"),
        (Unprintable("out of the hierarchy"), "Unprintable"),
    ],
)
@pytest.mark.parametrize("method", ["f", "g"])
def test_exceptions_that_event_loops_cannot_carry(
    runner_of: RunnerOf, raised: BaseException, told: str, blocking: bool | None, method: str
) -> None:
    class Node:
        def f(self) -> None:
            raise raised

        async def g(self) -> None:
            raise raised

    runner = runner_of(call(method), n=NodeDefinition("n", Node, blocking=blocking))

    with pytest.raises(Exception, match=told) as caught:
        runner.execute(context=RequestContext(deadline=time.time() + DEADLINE_S))
    assert failed_step(caught.value) == ("s", "n", method)
    assert background.loop().is_running()


def test_an_exception_that_futures_would_replace_stays_the_one_that_was_raised(runner_of: RunnerOf) -> None:
    raised = TimeoutError("the database")

    def query() -> None:
        raise raised

    runner = runner_of(call(None), n=query)

    for execute in (runner.execute, lambda: asyncio.run(runner.execute_async())):
        with pytest.raises(TimeoutError, match="the database") as caught:
            execute()
        assert caught.value is raised
        assert caught.traceback[-1].name == "query"
        assert failed_step(caught.value).step == "s"


def test_an_exception_keeps_its_traceback_and_says_where_it_was(diamond: Runner) -> None:
    with pytest.raises(TypeError) as caught:
        diamond.execute((1, "x", 3))

    assert caught.value.__notes__ == ["in step ray-dag, calling ensemble"]
    assert caught.traceback[-1].name == "ensemble"


def test_fakes_stand_for_nodes(make: SimpleNamespace, runner_of: RunnerOf) -> None:
    class Expensive:
        def __init__(self) -> None:
            raise AssertionError("is not built")

        def f(self, x: int) -> int: ...

    graph = make.graph(ir.Call("a", "m1", "f", (InputRef(),)), ir.Call("b", "total", None, (StepRef("a"),)))
    m1, total = Mock(), AsyncMock(return_value="sum")
    m1.f.return_value = 5

    assert runner_of(graph, m1=Expensive, total=ensemble, fakes={"m1": m1, "total": total}).execute((4,)) == "sum"
    m1.f.assert_called_once_with(4)
    total.assert_awaited_once_with(5)
    with pytest.raises(GraphError, match="there is no node 'm' to replace") as caught:
        runner_of(graph, m1=Expensive, total=ensemble, fakes={"m": m1})
    assert caught.value.fix == "Known are m1, total." or "m1" in caught.value.fix
    with pytest.raises(GraphError, match="the fake of node 'm1' is a class"):
        runner_of(graph, m1=Expensive, total=ensemble, fakes={"m1": Expensive})


def test_a_node_that_is_not_there_is_an_error(runner_of: RunnerOf) -> None:
    with pytest.raises(GraphError, match="there is no node 'n'"):
        runner_of(call("f"), nn=Model).execute()


async def test_execute_works_inside_a_running_loop_and_async_from_any_loop(diamond: Runner) -> None:
    assert asyncio.get_running_loop() is not background.loop()
    assert diamond.execute((1, 2, 3)) == 8  # as in a notebook
    assert await diamond.execute_async((1, 2, 3)) == 8
    assert await asyncio.gather(*(diamond.execute_async((n, 0, 0)) for n in range(20))) == list(range(20))


@pytest.mark.parametrize("method", ["generator", "async_generator"])
def test_a_generator_cannot_leave_its_node(runner_of: RunnerOf, method: str) -> None:
    class Streams:
        def generator(self) -> Any:
            yield 1

        async def async_generator(self) -> Any:
            yield 1

    with pytest.raises(TypeError, match=f"n.{method} returned a generator"):
        runner_of(call(method), n=Streams).execute()


def test_graphs_inside_graphs(diamond: Runner, runner_of: RunnerOf) -> None:
    class Outer:
        def sync(self) -> Any:
            return diamond.execute((1, 2, 3))

        async def right(self) -> Any:
            return await diamond.execute_async((1, 2, 3))

        async def wrong(self) -> Any:
            return diamond.execute((1, 2, 3))

    assert runner_of(call("sync"), n=Outer).execute() == 8
    assert runner_of(call("right"), n=Outer).execute() == 8
    with pytest.raises(RequestError, match="would wait for the event loop that it runs on"):
        runner_of(call("wrong"), n=Outer).execute()


async def test_cancelling_execute_async_cancels_the_request(runner_of: RunnerOf) -> None:
    started, cancelled = threading.Event(), threading.Event()

    class Slow:
        async def f(self) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

    task = asyncio.create_task(runner_of(call("f"), n=Slow).execute_async())
    assert await asyncio.to_thread(started.wait, DEADLINE_S)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(cancelled.wait, DEADLINE_S)


def test_a_request_id_and_a_deadline_can_be_given(runner_of: RunnerOf) -> None:
    class Node:
        def f(self) -> Any:
            return current_request.get()

    context = RequestContext("mine", time.time() + DEADLINE_S)

    assert runner_of(call("f"), n=Node).execute(context=context) is context


def test_the_process_ends_cleanly(tmp_path: Any) -> None:
    """No thread is left, close() is called, and nothing is said, also while code still runs."""
    program = textwrap.dedent(
        """
        import asyncio, concurrent.futures, contextlib, os, threading, warnings
        from servepipe.graph import ir
        from servepipe.graph.calls import NodeDefinition
        from servepipe.graph.inprocess import Runner

        class Node:
            def f(self):
                return "answer"
            async def hang(self):
                started.set()
                await asyncio.Event().wait()
            def close(self):
                print("closed", flush=True)

        started = threading.Event()
        nodes = {"n": NodeDefinition("n", Node)}
        def runner(method):
            return Runner(ir.Graph((ir.Call("s", "n", method),), ir.StepRef("s")), nodes)
        kept, hanging = runner("f"), runner("hang")
        print(kept.execute(), flush=True)
        def hang():
            with contextlib.suppress(concurrent.futures.CancelledError):
                hanging.execute()
        threading.Thread(target=hang, daemon=True).start()
        assert started.wait(30)
        if hasattr(os, "fork"):
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: the process has threads
            child = os.fork()
            if not child:
                assert kept.execute() == "answer"
                os._exit(7)
            print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        """
    )

    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )

    assert ended.stdout.split() == ["answer", "child", "7", "closed", "closed"]
    assert ended.stderr == ""
    assert ended.returncode == 0


def test_interrupting_a_wait_cancels_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = threading.Event()
    started = threading.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    class Interrupted(BaseException):
        pass

    real = asyncio.run_coroutine_threadsafe

    def interrupting(*args: Any) -> Any:
        future = real(*args)

        def result() -> None:
            assert started.wait(DEADLINE_S)
            raise Interrupted

        monkeypatch.setattr(future, "result", result)
        return future

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupting)
    with pytest.raises(Interrupted):
        background.run(work)
    assert cancelled.wait(DEADLINE_S)
