"""The work queue: one worker per key, no wake-up lost, and waits that grow."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servepipe_operator.controller.queue import Backoff, WorkQueue, has, run_workers


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abc")),
        st.tuples(st.just("after"), st.sampled_from("abc"), st.sampled_from([0.0, 0.5, 1.0, 3.0])),
        st.tuples(st.just("take")),
        st.tuples(st.just("done"), st.integers(0, 3)),
        st.tuples(st.just("pass"), st.sampled_from([0.5, 1.0, 2.0])),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_one_worker_per_key_and_every_add_is_followed_by_a_run(steps: list[tuple]) -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    active: list[str] = []
    owed: dict[str, float] = {}  # key -> when it must have become due

    def take() -> bool:
        key = queue.take()
        if key is None:
            due = [k for k, at in owed.items() if at <= clock.now and k not in active]
            assert not due, f"due but not given out: {due}"
            return False
        assert key not in active, "two workers on one key"
        assert key in owed, "nobody asked for it"
        active.append(key)
        del owed[key]
        return True

    for step in steps:
        match step:
            case ("add", key):
                queue.add(key)
                owed[key] = clock.now
            case ("after", key, seconds):
                queue.add_after(key, seconds)
                owed[key] = min(owed.get(key, clock.now + seconds), clock.now + seconds)
            case ("take",):
                take()
            case ("done", index) if active:
                queue.done(active.pop(index % len(active)))
            case ("pass", seconds):
                clock.now += seconds
    while active:
        queue.done(active.pop())
    clock.now += 10
    while take():
        queue.done(active.pop())
    assert not owed
    assert queue.depth == 0


def test_depth_and_age_count_what_waits() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    assert (queue.depth, queue.age_s) == (0, 0)
    queue.add("a")
    clock.now = 2
    queue.add("b")
    queue.add("a")
    clock.now = 5
    assert (queue.depth, queue.age_s) == (2, 5)
    assert queue.take() == "a"
    assert (queue.depth, queue.age_s) == (1, 3)


def test_waits_double_up_to_the_limit_and_start_again_after_a_success() -> None:
    backoff: Backoff[str] = Backoff(1, 5, 0, lambda: 0.0)
    assert [backoff.next_s("a") for _ in range(5)] == [1, 2, 4, 5, 5]
    assert backoff.next_s("b") == 1
    backoff.forget("a")
    assert backoff.next_s("a") == 1


def test_jitter_only_shortens() -> None:
    assert Backoff[str](10, 60, 0.5, lambda: 0.5).next_s("a") == 7.5


@dataclass
class World:
    fail: set[str] = field(default_factory=set)
    runs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


async def test_workers_go_on_after_an_error_and_stop_when_the_queue_is_closed() -> None:
    queue: WorkQueue[str] = WorkQueue()
    world = World(fail={"bad"})
    enough = asyncio.Event()

    async def work(key: str) -> float | None:
        world.runs.append(key)
        if key in world.fail:
            world.fail.discard(key)
            raise ValueError("once")
        if {"good", "bad"} <= set(world.runs) and world.runs.count("bad") == 2:
            enough.set()
        return None

    running = asyncio.create_task(
        run_workers(queue, work, 2, Backoff(0.01), lambda key, error, _: world.errors.append(f"{key}: {error}"))
    )
    queue.add("bad")
    queue.add("good")
    async with asyncio.timeout(10):  # until the failed key ran again
        await enough.wait()
    queue.close()
    async with asyncio.timeout(10):  # until the workers ended
        await running
    assert world.errors == ["bad: once"]
    assert world.runs.count("good") == 1


async def test_keys_run_side_by_side_and_an_add_in_the_middle_runs_again() -> None:
    queue: WorkQueue[str] = WorkQueue()
    gate = asyncio.Event()
    runs: list[str] = []

    async def work(key: str) -> float | None:
        runs.append(key)
        if runs.count("slow") == 2:
            queue.close()
        elif key == "slow":
            queue.add("slow")
            queue.add("other")
            await gate.wait()
        else:
            gate.set()  # only another worker can get here
        return None

    queue.add("slow")
    async with asyncio.timeout(10):  # until all workers ended
        await run_workers(queue, work, 2, Backoff(), lambda key, error, _: pytest.fail(f"{key}: {error}"))
    assert runs == ["slow", "other", "slow"]


async def test_what_is_fatal_ends_all_workers() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")

    async def work(key: str) -> float | None:
        raise PermissionError("lost")

    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(10):  # until the other worker, which has nothing to do, was ended too
            await run_workers(queue, work, 2, Backoff(), lambda *_: pytest.fail("not fatal"), (PermissionError,))
    assert isinstance(raised.value.exceptions[0], PermissionError)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=10),
    st.integers(1, 4),
)
def test_with_real_workers_every_last_add_is_followed_by_a_run(
    adds: list[tuple[str, int]], works: list[tuple[int, bool]], workers: int
) -> None:
    """``adds``: key, and turns of the loop until the next; ``works``: turns that a run takes, and whether it fails."""

    async def check() -> None:
        queue: WorkQueue[str] = WorkQueue()
        steps = itertools.count()
        added: dict[str, int] = {}
        good: dict[str, int] = {}  # when the latest run that succeeded began
        running: set[str] = set()
        plans = itertools.chain(works, itertools.repeat((0, False)))

        async def work(key: str) -> float | None:
            assert key not in running, "two workers on one key"
            running.add(key)
            began = next(steps)
            turns, fails = next(plans)
            for _ in range(turns):
                await asyncio.sleep(0)
            running.remove(key)
            if fails:
                raise ValueError("as planned")
            good[key] = began
            if not pending and all(good.get(name, -1) > at for name, at in added.items()):
                queue.close()
            return None

        unplanned: list[Exception] = []

        def failed(key: str, error: Exception, wait_s: float) -> None:
            if not isinstance(error, ValueError):
                unplanned.append(error)

        task = asyncio.create_task(run_workers(queue, work, workers, Backoff(1e-6, 1e-6), failed))
        pending = list(adds)
        while pending:
            key, turns = pending.pop(0)
            added[key] = next(steps)
            queue.add(key)
            for _ in range(turns):
                await asyncio.sleep(0)
        async with asyncio.timeout(20):  # until each key ran after its last add
            await task
        assert unplanned == []

    asyncio.run(check())


async def test_work_that_takes_long_gives_its_place_to_another_key_up_to_a_limit() -> None:
    queue: WorkQueue[int] = WorkQueue()
    let_go, at_once, most_seen = asyncio.Event(), 0, 0
    ended: list[int] = []
    all_hang = asyncio.Event()

    async def work(key: int) -> float | None:
        nonlocal at_once, most_seen
        at_once += 1
        most_seen = max(most_seen, at_once)
        if at_once == 5:
            all_hang.set()
        await let_go.wait()
        at_once -= 1
        ended.append(key)
        if len(ended) == 12:
            queue.close()
        elif at_once == 0:
            assert len(ended) >= 5
        return None

    for key in range(12):
        queue.add(key)
    task = asyncio.create_task(
        run_workers(queue, work, 2, Backoff(), lambda *_: pytest.fail("no error"), slow_s=0.01, most=5)
    )
    async with asyncio.timeout(10):  # until as many hang as may
        await all_hang.wait()
    assert queue.depth == 7
    let_go.set()
    async with asyncio.timeout(10):  # until all were worked on, with the places that are left
        await task
    assert sorted(ended) == list(range(12))
    assert most_seen == 5


async def test_work_is_cancelled_after_its_limit_and_counts_as_failed() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    errors: list[Exception] = []

    async def work(key: str) -> float | None:
        await asyncio.Event().wait()
        return None

    def failed(key: str, error: Exception, again_s: float) -> None:
        errors.append(error)
        queue.close()

    async with asyncio.timeout(10):  # until the worker ended
        await run_workers(queue, work, 1, Backoff(), failed, limit_s=0.01)
    assert isinstance(errors[0], TimeoutError)


async def test_a_worker_survives_work_that_was_cancelled_by_something_else() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    errors: list[str] = []

    async def work(key: str) -> float | None:
        if errors:
            queue.close()
            return None
        other = asyncio.create_task(asyncio.sleep(60))
        other.cancel()
        await other
        return None

    async with asyncio.timeout(10):  # until the second look
        await run_workers(queue, work, 1, Backoff(0.001), lambda key, error, _: errors.append(str(error)))
    assert errors == ["something that the work waited for was cancelled"]


async def test_what_is_fatal_is_found_in_a_group_too() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")

    async def work(key: str) -> float | None:
        raise ExceptionGroup("of a task group", [ValueError("x"), PermissionError("lost")])

    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(10):  # until the worker ended
            await run_workers(queue, work, 1, Backoff(), lambda *_: pytest.fail("not fatal"), (PermissionError,))
    assert has(raised.value, (PermissionError,))
    assert not has(raised.value, (KeyError,))


class CountingQueue(WorkQueue[str]):
    """Counts how often somebody looks whether there is a key."""

    takes = 0

    def take(self) -> str | None:
        self.takes += 1
        return super().take()


@pytest.mark.parametrize("after_s", [0.0, 0.01])
async def test_a_key_wakes_one_of_those_who_wait(after_s: float) -> None:
    queue = CountingQueue()
    waiting = [asyncio.create_task(queue.get()) for _ in range(100)]
    await asyncio.sleep(0)
    queue.takes = 0
    queue.add_after("a", after_s)
    async with asyncio.timeout(10):  # until somebody has it
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == ["a"]
    assert queue.takes == 1
    queue.close()
    assert await asyncio.gather(*waiting) == [task.result() for task in waiting]


async def test_a_key_whose_taker_is_cancelled_goes_to_another_one() -> None:
    queue: WorkQueue[str] = WorkQueue()
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()
    async with asyncio.timeout(10):  # until the other one has it
        assert await second == "a"
    assert first.cancelled()


async def test_a_timer_that_comes_earlier_than_the_one_waited_for_is_not_missed() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("late", 3600)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add_after("early", 0.01)
    async with asyncio.timeout(10):  # until it is due
        assert await waiting == "early"


async def test_a_key_that_took_long_last_time_takes_no_place_from_the_begin() -> None:
    loop = asyncio.get_running_loop()
    real, skipped = loop.time, 0.0
    loop.time = lambda: real() + skipped  # type: ignore[method-assign]
    queue: WorkQueue[str] = WorkQueue()
    never, runs = asyncio.Event(), list[tuple[str, float]]()

    async def work(key: str) -> float | None:
        nonlocal skipped
        runs.append((key, loop.time()))
        match key, len(runs):
            case "hangs", 1:
                skipped += 1000.0
                return 0.001
            case "hangs", _:
                queue.add("good")
                await never.wait()
            case _:
                queue.close()
                never.set()
        return None

    queue.add("hangs")
    async with asyncio.timeout(1010):  # of which 1000 are skipped
        await run_workers(queue, work, 1, Backoff(), lambda key, error, _: pytest.fail(f"{key}: {error}"), slow_s=500.0)
    assert [key for key, _ in runs] == ["hangs", "hangs", "good"]
    assert runs[2][1] - runs[1][1] < 500.0, "the other key waited until the place was given"
