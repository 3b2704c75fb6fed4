"""Leader election: one writer, also after a stop that was longer than the Lease."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from fake_kube import FakeKube, serving, status

from servepipe_operator.adapters.kube import Kube, Resource
from servepipe_operator.controller.lease import Elector, LeaseLostError, LeaseTimes

TIMES = LeaseTimes(duration_s=15, margin_s=3, renew_s=5, retry_s=2)
PODS = Resource("v1", "Pod", "pods")


@dataclass
class Clock:
    """Time that passes only when a test says so; who sleeps is woken then."""

    now: float = 0.0
    sleepers: list[tuple[float, asyncio.Event]] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        self.sleepers.append((self.now + seconds, event))
        await event.wait()

    async def advance(self, seconds: float) -> None:
        self.now += seconds
        for due, event in self.sleepers:
            if due <= self.now:
                event.set()
        self.sleepers = [s for s in self.sleepers if s[0] > self.now]


def elector(kube: Kube, name: str, clock: Clock, times: LeaseTimes = TIMES) -> Elector:
    return Elector(kube, "ns", "servepipe", name, times, clock=clock, sleep=clock.sleep, chance=lambda: 0.0)


async def asleep(clock: Clock, task: asyncio.Task[None] | None = None) -> None:
    """Until an elector waits for the clock, or ``task`` has ended."""
    async with asyncio.timeout(10):
        while not clock.sleepers and not (task and task.done()):  # noqa: ASYNC110 - nothing here could tell
            await asyncio.sleep(0.001)


async def test_the_second_waits_and_takes_over_only_after_the_whole_duration() -> None:
    clock, waits = Clock(), []
    async with serving(FakeKube()) as kube:
        first, second = elector(kube, "one", clock), elector(kube, "two", clock)
        await first.acquire()
        assert first.holds()
        running = asyncio.create_task(second.acquire(waits.append))
        while not running.done():
            await asleep(clock)
            assert not (first.holds() and second.holds())
            assert clock.now < 3 * TIMES.duration_s, "the second never takes over"
            await clock.advance(2)
            if clock.now < TIMES.duration_s:
                assert not second.holds()
            await asleep(clock, running)
        await running
        assert clock.now >= TIMES.duration_s
        assert second.holds()
        assert not first.holds()
        with pytest.raises(LeaseLostError, match="one"):
            first.require()
    assert "held by one" in waits[0]


async def test_renewals_keep_it_and_an_unreachable_server_ends_it_before_others_may_begin() -> None:
    clock, fake = Clock(), FakeKube()
    async with serving(fake) as kube:
        leader = elector(kube, "one", clock)
        await leader.acquire()
        keeping = asyncio.create_task(leader.keep())
        for _ in range(20):
            await asleep(clock)
            await clock.advance(5)
            await asleep(clock)
            assert leader.holds()
        renewed = clock.now
        fake.faults.append(lambda method, path: status(503, "", "down"))
        while not keeping.done():
            await clock.advance(1)
            await asleep(clock, keeping)
            assert clock.now < renewed + TIMES.duration_s, "the right to write should have ended"
        with pytest.raises(LeaseLostError):
            await keeping
        assert not leader.holds()


async def test_a_process_that_was_stopped_writes_nothing_after_it_continues() -> None:
    """As after SIGSTOP: no timer of the leader fires; the clock has moved on when its next write begins."""
    clock, fake = Clock(), FakeKube()
    async with serving(fake) as plain:
        old, new = elector(plain, "old", clock), elector(plain, "new", clock)
        await old.acquire()
        async with serving(fake, allowed=old.require) as guarded:
            body: dict[str, Any] = {"metadata": {"name": "a", "namespace": "ns"}}
            await guarded.create(PODS, body)
            assert not await new._try()  # sees the Lease for the first time
            clock.now += TIMES.duration_s
            await new.acquire()
            before = list(fake.writes)
            with pytest.raises(LeaseLostError):
                await guarded.apply(PODS, body)
            assert fake.writes == before
            clock.now -= TIMES.duration_s  # not even a clock that goes wrong brings it back
            assert not old.holds()
        keeping = asyncio.create_task(old.keep())
        await asleep(clock)
        await clock.advance(TIMES.renew_s)
        with pytest.raises(LeaseLostError):
            await keeping
        assert fake.writes == before, "the old leader renewed"


async def test_of_two_that_begin_at_once_one_wins() -> None:
    clock = Clock()
    async with serving(FakeKube()) as kube:
        electors = [elector(kube, name, clock) for name in "abc"]
        await asyncio.gather(*(one._try() for one in electors))
        assert sum(one.holds() for one in electors) == 1


async def test_a_renewal_with_a_late_answer_counts_from_its_begin() -> None:
    clock, fake = Clock(), FakeKube()

    def slow(method: str, path: str) -> None:
        clock.now += 4

    async with serving(fake) as kube:
        one = elector(kube, "one", clock)
        fake.faults.append(slow)  # type: ignore[arg-type]
        await one.acquire()
        assert clock.now == 8
        clock.now = 11.9
        assert one.holds()
        clock.now = 12
        assert not one.holds()


async def test_whoever_finds_another_holder_at_renewal_stops() -> None:
    clock, fake = Clock(), FakeKube()
    async with serving(fake) as kube:
        one = elector(kube, "one", clock)
        await one.acquire()
        next(iter(fake.objects.values()))["spec"]["holderIdentity"] = "thief"
        keeping = asyncio.create_task(one.keep())
        await asleep(clock)
        await clock.advance(5)
        with pytest.raises(LeaseLostError, match="thief"):
            await keeping


async def test_a_lease_that_someone_annotated_in_the_middle_of_a_renewal_is_kept() -> None:
    clock, fake = Clock(), FakeKube()
    async with serving(fake) as kube:
        one = elector(kube, "one", clock)
        await one.acquire()
        fake.fail_once("PUT", status(409, "Conflict", "the object has been modified"))
        keeping = asyncio.create_task(one.keep())
        for seconds in (5, 2):
            await asleep(clock)
            await clock.advance(seconds)
        await asleep(clock, keeping)
        assert one.holds()
        clock.now = 7 + TIMES.duration_s - TIMES.margin_s - 0.1
        assert one.holds(), "the second attempt should have renewed it"
        keeping.cancel()


async def test_a_release_lets_the_next_in_at_once() -> None:
    clock = Clock()
    async with serving(FakeKube()) as kube:
        one, two = elector(kube, "one", clock), elector(kube, "two", clock)
        await one.acquire()
        await one.release()
        assert not one.holds()
        await two.acquire()
        assert two.holds()
        assert clock.now == 0


@pytest.mark.parametrize("times", [{"duration_s": 5}, {"retry_s": 0}, {"renew_s": 25.0}, {"margin_s": -1}])
def test_durations_that_do_not_fit_are_refused(times: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="lease durations do not fit"):
        LeaseTimes(**times)
