"""Code that keeps the event loop is named, and nothing else is."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from servepipe.graph.instance import NodeInstance
from servepipe.runtime.inline_load import InlineLoad, busy_nodes
from servepipe.runtime.loop_watch import LoopWatch, user_code

DEADLINE_S = 30.0


class Told(logging.Handler):
    """Warnings as they come; `wait` blocks until there are so many."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self._came = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._came:
            self.messages.append(record.getMessage())
            self._came.notify_all()

    def wait(self, count: int) -> None:
        with self._came:
            assert self._came.wait_for(lambda: len(self.messages) >= count, DEADLINE_S), "no warning came"


@pytest.fixture
def told() -> Iterator[Told]:
    handler, log = Told(), logging.getLogger("watched")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


@pytest.fixture
async def watch(told: Told) -> LoopWatch:
    return LoopWatch(limit_s=0.02, what="node n", advice="Do not.", log=logging.getLogger("watched"))


def block(told: Told, count: int) -> int:
    """Keep the loop until so many warnings have come."""
    told.wait(count)
    return count


async def blocks_deep_inside(told: Told, count: int) -> int:
    return block(told, count)


async def blocks_too(told: Told, count: int) -> int:
    return block(told, count)


async def test_code_that_keeps_the_loop_is_named_once(
    watch: LoopWatch, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call(function: Callable[..., object], count: int) -> object:
        return await NodeInstance("n", function).call(None, (told, count), {})

    assert await call(blocks_deep_inside, 1) == 1
    assert told.messages[0].startswith("node n has stood still for more than 0.02 s, as this keeps the event loop: ")
    assert f"blocks_deep_inside ({__file__}:" in told.messages[0]
    assert " > " in told.messages[0] and told.messages[0].endswith("Do not.")
    assert await call(blocks_too, 2) == 2
    assert f"blocks_too ({__file__}:" in told.messages[1]
    looked, warn = threading.Event(), watch._warn

    def look() -> None:
        warn()
        looked.set()

    monkeypatch.setattr(watch, "_warn", look)
    monkeypatch.setattr(told, "wait", lambda count: looked.wait(DEADLINE_S))
    assert await call(blocks_deep_inside, 0) == 0
    monkeypatch.undo()
    assert looked.is_set() and len(told.messages) == 2  # not again
    third = await NodeInstance("n", lambda told, count: block(told, count), blocking=False).call(None, (told, 3), {})
    assert third == 3 and "<lambda>" in told.messages[2]
    assert len(told.messages) == 3
    watch.close()


async def test_a_task_of_the_user_s_is_named_as_well(watch: LoopWatch, told: Told) -> None:
    await asyncio.create_task(blocks_deep_inside(told, 1))
    assert "blocks_deep_inside" in told.messages[0]
    watch.close()


async def test_a_loop_that_waits_is_no_reason_to_warn(watch: LoopWatch, told: Told) -> None:
    await asyncio.sleep(0.1)
    watch._warn()
    assert told.messages == []
    watch.close()
    await asyncio.to_thread(watch._thread.join, DEADLINE_S)
    assert not watch._thread.is_alive()


def test_the_thread_ends_with_the_loop(told: Told) -> None:
    async def make() -> LoopWatch:
        return LoopWatch(limit_s=0.02, what="n", advice="", log=logging.getLogger("watched"))

    thread = asyncio.run(make())._thread
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_no_stack_no_place() -> None:
    assert user_code(None) == ()
    assert user_code(sys._getframe()) == ()  # pytest called it


BEFORE = {(1, "servepipe-slow_0"): 5.0, (2, "servepipe-quick_0"): 5.0, (9, "MainThread"): 0.0}


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (BEFORE, {}),
        ({**BEFORE, (1, "servepipe-slow_0"): 10.0}, {"slow": 0.5}),
        ({**BEFORE, (1, "servepipe-slow_0"): 7.0}, {}),  # just as much as it may
        (
            {(1, "servepipe-slow_0"): 7.0, (3, "servepipe-slow_1"): 1.0, (4, "servepipe-slow.batch_0"): 1.0},
            {"slow": 0.4},
        ),
        ({**BEFORE, (9, "MainThread"): 10.0, (7, "servepipe-watch"): 9.0}, {}),
        ({(1, "servepipe-a-b_0"): 9.0}, {"a-b": 0.9}),
    ],
)
def test_nodes_that_compute_much(now: dict[tuple[int, str], float], found: dict[str, float]) -> None:
    assert busy_nodes(BEFORE, now, 10.0) == pytest.approx(found)


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="this system has no clocks of threads")
async def test_an_inline_node_that_computes_much_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    load = InlineLoad()
    instance, idle = NodeInstance("heavy", compute), NodeInstance("light", lambda: None)
    call = asyncio.create_task(instance.call(None, (), {}))
    await idle.call(None, (), {})
    async with asyncio.timeout(DEADLINE_S):
        while not caplog.messages:
            await asyncio.sleep(0.05)
            load.look()
    load.look()
    stop.set()
    await call
    load.close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("inline node heavy uses ")
    await instance.close()
    await idle.close()
