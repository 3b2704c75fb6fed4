"""A limit ends what waits too long, and costs nothing where nothing waits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from servepipe.graph.limit import Limit


async def never() -> None:
    await asyncio.Event().wait()


async def test_what_does_not_wait_needs_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def now() -> int:
        return 5

    async def bad() -> None:
        raise ValueError("bad")

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", None)
    assert await Limit(10).keep(now()) == 5
    with pytest.raises(ValueError, match="bad"):
        await Limit(10).keep(bad())


async def test_what_waits_too_long_is_cancelled() -> None:
    seen: list[str] = []

    async def slow() -> None:
        await asyncio.sleep(0)
        try:
            await never()
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    limit = Limit(0.01)
    with pytest.raises(TimeoutError):
        await limit.keep(slow())
    assert limit.expired
    assert seen == ["cancelled", "cleaned up"]
    task = asyncio.current_task()
    assert task is not None and not task.cancelling()


async def test_what_ends_in_time_is_not_disturbed_later() -> None:
    async def turns(count: int) -> int:
        for _ in range(count):
            await asyncio.sleep(0)
        return count

    limit = Limit(0.01)
    assert await limit.keep(turns(3)) == 3
    await asyncio.sleep(0.03)
    assert not limit.expired


@pytest.mark.parametrize("ends", ["answer", "error", "at once"])
async def test_what_ignores_its_end_keeps_what_it_says(ends: str) -> None:
    async def stubborn() -> str:
        try:
            await never()
        except asyncio.CancelledError:
            if ends != "at once":
                await asyncio.sleep(0)
            if ends == "error":
                raise ValueError("late") from None
        return "late"

    limit = Limit(0.01)
    if ends == "error":
        with pytest.raises(ValueError, match="late"):
            await limit.keep(stubborn())
    else:
        assert await limit.keep(stubborn()) == "late"
    assert limit.expired
    await asyncio.sleep(0)  # nothing of the cancellation is left


async def test_a_cancellation_from_outside_stays_one() -> None:
    async def keep(limit: Limit, work: Coroutine[Any, Any, None]) -> None:
        await limit.keep(work)

    limit = Limit(30)
    task = asyncio.create_task(keep(limit, never()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not limit.expired

    limit = Limit(0.01)

    async def holds_out() -> None:
        try:
            await never()
        except asyncio.CancelledError:
            inside.set()
            await never()

    inside = asyncio.Event()
    task = asyncio.create_task(keep(limit, holds_out()))
    await asyncio.wait_for(inside.wait(), 30)
    task.cancel()  # both the limit and its caller want it to end: the caller's word counts
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_limits_nest() -> None:
    async def inner() -> str:
        try:
            await Limit(0.01).keep(never())
        except TimeoutError:
            return "inner"
        return "none"

    assert await Limit(30).keep(inner()) == "inner"


def test_what_is_thrown_away_is_closed() -> None:
    seen: list[Any] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        except GeneratorExit:
            seen.append("closed")
            raise

    async def main() -> None:
        async def within() -> None:
            await Limit(10).keep(slow())

        kept = within()
        kept.send(None)
        kept.close()

    asyncio.run(main())
    assert seen == ["closed"]
