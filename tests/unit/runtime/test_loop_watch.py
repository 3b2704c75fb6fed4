"""Code that keeps the event loop is named, and nothing else is."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import pytest
import uvloop

from servepipe.graph.instance import NodeInstance
from servepipe.runtime import loop_watch
from servepipe.runtime.inline_load import InlineLoad, busy_nodes, node_of
from servepipe.runtime.loop_watch import LOOKS, LoopWatch, Place, Shares, user_code

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

    def look(places: Sequence[Place]) -> None:
        assert places[0].function == "blocks_deep_inside"
        warn(places)
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


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_task_of_the_user_s_is_named_as_well(told: Told, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """On either loop: uvloop leaves no frames of its own. In a thread, as in Ray's workers."""

    async def main() -> None:
        watch = LoopWatch(limit_s=0.02, what="node n", advice="Do not.", log=logging.getLogger("watched"))
        await asyncio.create_task(blocks_deep_inside(told, 1))
        watch.close()

    def serve() -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(DEADLINE_S)
    assert len(told.messages) == 1
    assert f"keeps the event loop: blocks_deep_inside ({__file__}:" in told.messages[0]


async def test_what_is_called_for_nobody_s_code_is_not_named(watch: LoopWatch, told: Told) -> None:
    """The standard library as servepipe and asyncio use it, and modules that begin as theirs do."""
    looked = threading.Event()
    look = watch._look
    watch._look = lambda: (look(), looked.set())  # type: ignore[method-assign, assignment, func-returns-value]
    # A function of the standard library that asyncio calls keeps the loop until the watch has looked.
    asyncio.get_running_loop().call_soon(looked.wait, DEADLINE_S)
    await asyncio.sleep(0)
    assert looked.is_set()
    assert told.messages == []
    watch.close()


async def test_only_code_that_has_not_returned_meanwhile_is_named() -> None:
    """Many short calls, one after the other, are nobody's fault."""

    def call(before: FrameType | None, stays: bool) -> tuple[Sequence[Place], FrameType]:
        frame = sys._getframe()
        return user_code(frame, still_in=frame if stays else before), frame

    instance = NodeInstance("n", call, blocking=False)
    first, frame = await instance.call(None, (None, False), {})
    assert [place.function.rpartition(".")[2] for place in first] == ["call"]
    assert (await instance.call(None, (frame, False), {}))[0] == ()
    assert (await instance.call(None, (None, True), {}))[0] != ()


async def test_a_loop_that_waits_is_no_reason_to_warn(watch: LoopWatch, told: Told) -> None:
    await asyncio.to_thread(watch._look)
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


@pytest.mark.parametrize("most", [0.25, 0.5])
def test_shares_are_told_after_so_many_looks(most: float) -> None:
    """Whatever the line, by the outermost function."""
    shares, inner = Shares(most), Place("b", 7, "inner")
    found = [(Place("a", n, "heavy"), inner) if n < LOOKS * 0.3 else (Place("a", n, "light"),) for n in range(LOOKS)]
    found[-5:] = [()] * 5
    for _ in range(2):
        told = [shares.add(one) for one in found]
        assert not any(told[:-1])
        light = (0.7 * LOOKS - 5) / LOOKS
        expected = {Place("a", 0, "heavy"): 0.3, Place("a", 0, "light"): light}
        assert told[-1] == {place: share for place, share in expected.items() if share > most}


async def test_code_that_is_always_at_work_is_named_though_it_never_blocks_for_long(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_watch, "LOOK_EVERY_S", 0.005)
    watch = LoopWatch(limit_s=DEADLINE_S, what="node n", advice="Do not.", log=logging.getLogger("watched"), most=0.25)
    end = time.monotonic() + DEADLINE_S

    async def computes() -> None:
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            sum(range(1000))

    instance = NodeInstance("n", computes)
    while not told.messages:
        assert time.monotonic() < end, "no warning came"
        await instance.call(None, (), {})
        await asyncio.sleep(0.001)
    watch.close()
    assert "node n spends about " in told.messages[0]
    assert f"computes ({__file__})" in told.messages[0]


def test_no_stack_no_place() -> None:
    assert user_code(None) == ()


BEFORE = {"slow": 5.0, "quick": 5.0}


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (BEFORE, {}),
        ({**BEFORE, "slow": 10.0}, {"slow": 0.5}),
        ({**BEFORE, "slow": 7.0}, {}),  # just as much as it may
        ({"quick": 5.1}, {}),
        ({**BEFORE, "new": 10.0}, {}),  # it has just been built, which may take what it takes
    ],
)
def test_nodes_that_compute_much(now: dict[str, float], found: dict[str, float]) -> None:
    assert busy_nodes(BEFORE, now, 10.0) == pytest.approx(found)


@pytest.mark.parametrize(
    ("thread", "node"),
    [
        ("servepipe-a_0", "a"),
        ("servepipe-a-b_12", "a-b"),
        ("servepipe-a-b.method_of_mine_0", "a-b"),
        ("servepipe-a.loop", "a"),
        ("servepipe-watch", ""),
        ("MainThread", ""),
        ("other-a_0", ""),
    ],
)
def test_threads_are_known_by_their_names(thread: str, node: str) -> None:
    assert node_of(thread) == node


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="this system has no clocks of threads")
@pytest.mark.parametrize("blocking", [None, True])
async def test_an_inline_node_that_computes_much_is_told_once(
    caplog: pytest.LogCaptureFixture, blocking: bool | None
) -> None:
    """A sync one in its threads, an async one on its own loop; and nothing else that computes."""
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    async def compute_too() -> None:
        compute()

    known = {"heavy", "light"}
    load = InlineLoad(lambda: known)
    heavy = NodeInstance("heavy", compute_too if blocking else compute, blocking=blocking)
    unknown, light = NodeInstance("hook", compute), NodeInstance("light", lambda: None)
    calls = [asyncio.create_task(instance.call(None, (), {})) for instance in (heavy, unknown)]
    await light.call(None, (), {})
    load.look()
    async with asyncio.timeout(DEADLINE_S):
        while not caplog.messages:
            await asyncio.sleep(0.05)
            load.look()
    load.look()
    stop.set()
    await asyncio.gather(*calls)
    load.close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("inline node heavy uses ")
    for instance in (heavy, unknown, light):
        await instance.close()
