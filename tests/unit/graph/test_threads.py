"""Answers of threads reach the loop, each once, however many end at the same time."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from servepipe.graph.slots import Slots
from servepipe.graph.threads import NoThreadsError, Threads

WITHIN_S = 30.0


async def test_every_call_gets_its_own_answer() -> None:
    threads = Threads(8, "t")
    answers = await asyncio.wait_for(asyncio.gather(*(threads.call(divmod, (n, 7)) for n in range(5000))), WITHIN_S)
    assert answers == [divmod(n, 7) for n in range(5000)]
    threads.shutdown()


async def test_many_that_end_at_once_wake_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(4, "t")
    loop = asyncio.get_running_loop()
    woken = 0
    wake = loop.call_soon_threadsafe

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal woken
        woken += 1
        return wake(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    calls = [asyncio.ensure_future(threads.call(len, ("abc",))) for _ in range(200)]
    await asyncio.sleep(0)
    # The loop looks away until all have ended.
    assert threads.submit(lambda: None).result(WITHIN_S) is None
    threads.shutdown(wait=True)
    assert await asyncio.wait_for(asyncio.gather(*calls), WITHIN_S) == [3] * 200
    assert woken == 1


async def test_the_slot_comes_back_when_the_code_ends_not_when_its_caller_leaves() -> None:
    threads, slots, go_on, inside = Threads(1, "t"), Slots(2), threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        assert go_on.wait(WITHIN_S)

    await slots.acquire()
    running = asyncio.create_task(threads.call(slow, (), {}, slots))
    assert await asyncio.to_thread(inside.wait, WITHIN_S)
    await slots.acquire()
    queued = asyncio.create_task(threads.call(slow, (), {}, slots))
    await asyncio.sleep(0)

    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    assert slots.free == 1  # it had not begun
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert slots.free == 1
    go_on.set()
    await asyncio.wait_for(slots.acquire(), WITHIN_S)
    await asyncio.wait_for(slots.acquire(), WITHIN_S)

    threads.shutdown()
    with pytest.raises(NoThreadsError, match="cannot schedule new futures"):
        await threads.call(len, ("",), {}, slots)
    assert slots.free == 1


async def test_exceptions_and_context_go_along() -> None:
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("here")
    threads = Threads(1, "t")

    def stop() -> None:
        raise StopIteration

    assert await threads.call(variable.get) == "here"
    with pytest.raises(ZeroDivisionError):
        await threads.call(divmod, (1, 0))
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        await threads.call(stop)
    threads.shutdown()
