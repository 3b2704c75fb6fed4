"""Slots are handed on in turn, and none is lost or made, whoever leaves when."""

from __future__ import annotations

import asyncio
import random

from servepipe.graph.slots import Slots


async def test_who_waits_gets_the_next_one_in_turn() -> None:
    slots = Slots(1)
    got: list[int] = []

    async def take(number: int) -> None:
        await slots.acquire()
        got.append(number)

    await slots.acquire()
    waiting = [asyncio.create_task(take(number)) for number in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    for _ in range(2):
        slots.release()
        assert not slots.free  # nobody can overtake those who wait
    await asyncio.gather(*waiting, return_exceptions=True)
    assert got == [1, 2]
    slots.release()
    assert slots.free == 1


async def test_one_that_is_given_and_refused_in_the_same_turn_goes_to_the_next() -> None:
    slots = Slots(1)
    await slots.acquire()
    first, second = asyncio.create_task(slots.acquire()), asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)

    slots.release()
    first.cancel()

    await asyncio.wait_for(second, 10)
    assert first.cancelled()
    slots.release()
    assert slots.free == 1


async def test_whatever_happens_the_number_stays() -> None:
    dice = random.Random(7)
    slots, inside, most = Slots(3), 0, 0

    async def work() -> None:
        nonlocal inside, most
        if slots.free:
            slots.free -= 1
        else:
            await slots.acquire()
        inside += 1
        most = max(most, inside)
        try:
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
        finally:
            inside -= 1
            slots.release()

    tasks = []
    for _ in range(2000):
        tasks.append(asyncio.create_task(work()))
        if dice.random() < 0.3:
            await asyncio.sleep(0)
        if dice.random() < 0.4:
            dice.choice(tasks[-20:]).cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
    assert (slots.free, inside, most) == (3, 0, 3)
    assert not slots._waiting
