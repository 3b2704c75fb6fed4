"""A node's code by itself: what replicas use of it and graphs in process do not."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from servepipe.errors import NodeError
from servepipe.graph.background import BackgroundLoop
from servepipe.graph.instance import NodeInstance

DEADLINE_S = 30.0


async def test_health_is_what_the_class_says() -> None:
    class Sick:
        def check_health(self) -> None:
            raise ConnectionError("no GPU")

    sick, well = NodeInstance("n", Sick), NodeInstance("n", object)
    await sick.build((), {})
    await well.build((), {})

    await well.check_health()
    with pytest.raises(ConnectionError, match="no GPU"):
        await sick.check_health()
    await asyncio.gather(sick.close(), well.close())


async def test_a_new_limit_counts_from_now_on() -> None:
    lock, first, full, go_on = threading.Lock(), threading.Event(), threading.Event(), threading.Event()
    inside = 0

    def work() -> None:
        nonlocal inside
        with lock:
            inside += 1
            first.set()
            if inside == 3:
                full.set()
        assert go_on.wait(DEADLINE_S)

    instance = NodeInstance("n", work, max_ongoing_requests=1)
    calls = [asyncio.create_task(instance.call(None, (), {})) for _ in range(2)]
    assert await asyncio.to_thread(first.wait, DEADLINE_S)
    instance.limit_calls(2)
    instance.limit_calls(2)

    calls += [asyncio.create_task(instance.call(None, (), {})) for _ in range(3)]

    assert await asyncio.to_thread(full.wait, DEADLINE_S)
    assert inside == 3  # one by the old limit, two by the new
    go_on.set()
    await asyncio.gather(*calls)
    assert inside == 5
    await instance.close()


async def test_a_closed_node_takes_no_calls_and_keeps_no_slot() -> None:
    instance = NodeInstance("n", len, max_ongoing_requests=1)
    assert await instance.call(None, ([1, 2],), {}) == 2
    await instance.close()

    for _ in range(3):
        with pytest.raises(RuntimeError, match="cannot schedule new futures"):
            await instance.call(None, ([],), {})


async def test_a_thread_that_ends_after_its_loop_is_no_error() -> None:
    go_on, ended = threading.Event(), threading.Event()

    def slow() -> None:
        assert go_on.wait(DEADLINE_S)

    def in_a_loop_of_its_own() -> None:
        async def leave() -> None:
            instance = NodeInstance("n", slow)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await instance.call(None, (), {})
            instance._threads.submit(ended.set)

        asyncio.run(leave())

    await asyncio.to_thread(in_a_loop_of_its_own)
    go_on.set()
    assert await asyncio.to_thread(ended.wait, DEADLINE_S)


def test_a_background_loop_ends_with_what_runs_on_it() -> None:
    background = BackgroundLoop()
    background.end()  # nothing has run: nothing to end
    closed: list[str] = []
    cancelled = threading.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def start() -> asyncio.Task[None]:
        assert background.is_current()
        task = asyncio.create_task(hang())
        await asyncio.sleep(0)
        return task

    async def close() -> None:
        closed.append("closed")

    background.at_end(close)
    task = background.run(start)
    loop = background.loop()
    assert not background.is_current()

    background.end()

    assert (closed, cancelled.is_set(), task.cancelled(), loop.is_closed()) == (["closed"], True, True, True)
    assert background.loop() is not loop
    background.end()


def test_user_code_that_does_not_end_does_not_keep_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servepipe.graph.background.END_WITHIN_S", 0.01)
    background = BackgroundLoop()
    go_on = asyncio.Event()

    async def endless() -> None:
        await go_on.wait()

    background.at_end(endless)
    loop = background.loop()
    background.end()
    background.forget()

    deadline: Any = threading.Event()
    for _ in range(3000):
        if loop.is_closed():
            break
        deadline.wait(0.01)
    assert loop.is_closed()


@pytest.mark.parametrize("blocking", [None, False, True])
@pytest.mark.parametrize("hook", ["__init__", "setup", "reconfigure", "check_health", "close"])
@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError()], ids=["exit", "cancelled"])
async def test_a_hook_that_would_end_the_event_loop_fails_instead(
    blocking: bool | None, hook: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    async def fail_async(*_: object) -> None:
        raise error

    for function in (fail, fail_async):
        if hook == "__init__" and function is fail_async:
            continue
        instance = NodeInstance("n", type("Odd", (), {hook: function}), blocking=blocking)
        with pytest.raises(NodeError, match=type(error).__name__):
            await instance.build([], {})
            await instance.reconfigure({} if hook == "reconfigure" else None)
            await instance.check_health()
            await instance.close()
