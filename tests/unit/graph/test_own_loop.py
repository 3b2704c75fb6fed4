"""A node that may block: its async code has an event loop of its own, and for the author nothing else changes."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

import pytest
from waiting import until

from servepipe.errors import NodeError
from servepipe.graph.calls import NodeHandle, RequestContext, current_request
from servepipe.graph.instance import NodeInstance
from servepipe.graph.own_loop import OwnLoop
from servepipe.graph.slots import Slots
from servepipe.graph.threads import NoThreadsError

DEADLINE_S = 30.0


@pytest.fixture
async def own() -> AsyncIterator[OwnLoop]:
    loop = OwnLoop("own")
    yield loop
    loop.close()


async def test_a_node_that_blocks_does_not_keep_its_caller_from_other_work() -> None:
    go_on = threading.Event()

    class Blocks:
        async def forward(self, x: int) -> int:
            assert go_on.wait(DEADLINE_S)
            return x + 1

    instance = NodeInstance("n", Blocks, blocking=True)
    await instance.build([], {})
    call = asyncio.create_task(instance.call("forward", (1,), {}))
    await instance.check_health()  # the class has none of its own
    await asyncio.sleep(0)
    assert not call.done()
    go_on.set()
    assert await call == 2
    await instance.close()


async def test_all_async_code_of_a_node_runs_on_one_loop_that_is_not_the_caller_s() -> None:
    seen: dict[str, Any] = {}

    class Node:
        def __init__(self) -> None:
            seen["__init__"] = threading.get_ident()

        async def setup(self) -> None:
            self.lock = asyncio.Lock()  # bound to the loop on which it is waited for
            seen["setup"] = asyncio.get_running_loop()

        async def reconfigure(self, config: Any) -> None:
            seen["reconfigure"] = asyncio.get_running_loop()

        async def check_health(self) -> None:
            seen["check_health"] = asyncio.get_running_loop()

        async def forward(self) -> int:
            async with self.lock:
                await asyncio.sleep(0.001)
                seen["forward"] = asyncio.get_running_loop()
            return 1

        def later(self) -> Any:
            return self.forward()

        def sync(self) -> int:
            seen["sync"] = threading.get_ident()
            return 2

        async def close(self) -> None:
            seen["close"] = asyncio.get_running_loop()

    instance = NodeInstance("n", Node, blocking=True)
    await instance.build([], {})
    await instance.reconfigure({"a": 1})
    await instance.check_health()
    assert await asyncio.gather(*(instance.call("forward", (), {}) for _ in range(10))) == [1] * 10
    assert await instance.call("later", (), {}) == 1
    assert await instance.call("sync", (), {}) == 2
    await instance.close()

    threads = {seen.pop("__init__"), seen.pop("sync")}
    assert threading.get_ident() not in threads
    assert len(set(seen.values())) == 1 and seen.keys() == {"setup", "reconfigure", "check_health", "forward", "close"}
    assert asyncio.get_running_loop() not in seen.values()


async def test_context_goes_along(own: OwnLoop) -> None:
    variable = ContextVar("variable", default=0)

    async def read() -> tuple[int, Any]:
        found = variable.get()
        variable.set(7)
        return found, current_request.get()

    variable.set(5)
    request = RequestContext("r1")
    current_request.set(request)
    assert await own.call(read) == (5, request)
    assert variable.get() == 5


@pytest.mark.parametrize("error", [ValueError("v"), TimeoutError("t"), StopAsyncIteration()])
async def test_an_exception_arrives_as_itself(own: OwnLoop, error: Exception) -> None:
    async def fail() -> None:
        raise error

    with pytest.raises(type(error)) as told:
        await own.call(fail)
    assert told.value is error


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_what_would_end_the_loop_is_a_failure_of_the_code(own: OwnLoop, error: BaseException) -> None:
    async def fail() -> None:
        raise error

    with pytest.raises(NodeError, match=type(error).__name__):
        await own.call(fail)
    assert await own.call(lambda: 3) == 3


async def test_a_caller_that_leaves_cancels_the_code_and_keeps_its_slot_until_that_has_ended(own: OwnLoop) -> None:
    begun, cancelled, go_on = threading.Event(), threading.Event(), threading.Event()
    slots = Slots(1)
    slots.free -= 1

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.sleep(DEADLINE_S)
        except asyncio.CancelledError:
            cancelled.set()
            assert go_on.wait(DEADLINE_S)
            raise

    call = asyncio.create_task(own.call(wait, slots=slots))
    assert await asyncio.to_thread(begun.wait, DEADLINE_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(cancelled.wait, DEADLINE_S)
    assert slots.free == 0
    go_on.set()
    await until("the slot to be free", lambda: slots.free == 1)


async def test_a_caller_that_leaves_before_the_code_begins_gives_its_slot_back(own: OwnLoop) -> None:
    slots = Slots(2)
    slots.free -= 2
    busy, go_on, ran = threading.Event(), threading.Event(), []

    def block() -> None:
        busy.set()
        assert go_on.wait(DEADLINE_S)

    async def late() -> None:
        ran.append(1)
        await asyncio.sleep(DEADLINE_S)

    first = asyncio.create_task(own.call(block, slots=slots))
    assert await asyncio.to_thread(busy.wait, DEADLINE_S)
    second = asyncio.create_task(own.call(late, slots=slots))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go_on.set()
    await first
    await until("both slots to be free", lambda: slots.free == 2)
    assert ran in ([], [1])  # at most begun; it has not been waited for


async def test_after_the_end_nothing_is_called(own: OwnLoop) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.sleep(DEADLINE_S)
        finally:
            ended.set()

    call = asyncio.create_task(own.call(wait))
    assert await asyncio.to_thread(begun.wait, DEADLINE_S)
    own.close()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()
    slots = Slots(1)
    slots.free -= 1
    with pytest.raises(NoThreadsError, match="own has been closed"):
        await own.call(wait, slots=slots)
    assert slots.free == 1
    await until("its thread to end", lambda: not any(thread.name == "own" for thread in threading.enumerate()))


async def test_handles_work_from_the_node_s_own_loop_and_are_cancelled_with_it() -> None:
    home = asyncio.get_running_loop()
    cancelled = asyncio.Event()

    class Caller:
        async def call(self, node: str, method: str | None, args: Any, kwargs: Any, context: RequestContext) -> Any:
            assert asyncio.get_running_loop() is home
            if method == "never":
                try:
                    await asyncio.sleep(DEADLINE_S)
                finally:
                    cancelled.set()
            return (node, method, *args)

    class Holder:
        def __init__(self, other: NodeHandle) -> None:
            self.other = other

        async def ask(self, method: str) -> Any:
            return await getattr(self.other, method).remote(1)

    instance = NodeInstance("n", Holder, blocking=True)
    await instance.build([NodeHandle("other", Caller(), home)], {})
    assert await instance.call("ask", ("do",), {}) == ("other", "do", 1)
    call = asyncio.create_task(instance.call("ask", ("never",), {}))
    await asyncio.sleep(0.01)
    call.cancel()
    async with asyncio.timeout(DEADLINE_S):
        await cancelled.wait()
    await instance.close()


async def _exits() -> None:
    raise SystemExit(3)


async def _gathers_what_exits() -> None:
    await asyncio.gather(_exits())


async def _stops_the_loop() -> int:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    return 1


@pytest.mark.parametrize("function", [_gathers_what_exits, _stops_the_loop])
async def test_code_that_stops_its_loop_stops_no_other_call(own: OwnLoop, function: Callable[..., Any]) -> None:
    begun, go_on = threading.Event(), asyncio.Event()

    async def wait() -> int:
        begun.set()
        async with asyncio.timeout(DEADLINE_S):
            await go_on.wait()
        return 2

    async def let_go() -> None:
        go_on.set()

    innocent = asyncio.create_task(own.call(wait))
    assert await asyncio.to_thread(begun.wait, DEADLINE_S)
    if function is _stops_the_loop:
        assert await own.call(function) == 1
    else:
        with pytest.raises(NodeError, match="SystemExit"):
            await own.call(function)
    await own.call(let_go)
    assert await innocent == 2


async def test_a_loop_that_cannot_be_made_costs_no_slot(own: OwnLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_files() -> None:
        raise OSError(24, "Too many open files")

    slots = Slots(1)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="open files"):
        patch.setattr(asyncio, "new_event_loop", no_files)
        slots.free -= 1
        await own.call(lambda: 1, slots=slots)
    assert slots.free == 1
    assert await own.call(lambda: 1) == 1


async def test_tasks_that_the_code_has_started_end_with_the_node() -> None:
    ended: list[str] = []

    class Node:
        async def setup(self) -> None:
            begun = asyncio.Event()
            self.worker = asyncio.create_task(self.work(begun))
            await begun.wait()

        async def work(self, begun: asyncio.Event) -> None:
            begun.set()
            try:
                await asyncio.sleep(DEADLINE_S)
            finally:
                await asyncio.sleep(0.001)
                ended.append("worker")

    instance = NodeInstance("n", Node, blocking=True)
    await instance.build([], {})
    await instance.close()
    await until("the worker to end", lambda: bool(ended))


async def test_a_node_that_could_not_be_built_leaves_no_thread() -> None:
    class Fails:
        async def setup(self) -> None:
            raise ValueError("no weights")

    for _ in range(3):
        with pytest.raises(ValueError, match="no weights"):
            await NodeInstance("broken", Fails, blocking=True).build([], {})

    def gone() -> bool:
        gc.collect()
        return not any(thread.name == "servepipe-broken.loop" for thread in threading.enumerate())

    await until("its threads to end", gone)
