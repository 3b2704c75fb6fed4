"""One system at a time: the others are stopped, and go on afterwards whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from graphbench import freezing
from graphbench.freezing import Freezer
from graphbench.systems.base import BENCHMARKS

PATIENCE_S = 20.0


@contextlib.contextmanager
def sleeper() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "60"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def sleepers() -> Iterator[dict[str, list[int]]]:
    with sleeper() as a, sleeper() as b, sleeper() as c:
        yield {"a": [a], "b": [b, c]}


def stopped(pids: list[int]) -> list[bool]:
    return [psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in pids]


def wait_until_stopped(pids: list[int], *, is_so: bool) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while stopped(pids) != [is_so] * len(pids):
        assert time.monotonic() < deadline, f"{pids} are not {'stopped' if is_so else 'running'}: {stopped(pids)}"
        time.sleep(0.01)


async def test_one_runs_while_the_others_are_stopped(sleepers: dict[str, list[int]]) -> None:
    with Freezer() as freezer:
        async with freezer.turn("a", sleepers):
            wait_until_stopped(sleepers["b"], is_so=True)
            assert stopped(sleepers["a"]) == [False]
        async with freezer.turn("b", sleepers):
            wait_until_stopped(sleepers["a"], is_so=True)
            wait_until_stopped(sleepers["b"], is_so=False)
    wait_until_stopped(sleepers["a"], is_so=False)


async def test_nobody_is_stopped_for_so_long_that_it_takes_itself_for_lost(
    sleepers: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezing, "BREATHE_AFTER_S", 0.3)
    monkeypatch.setattr(freezing, "BREATH_S", 0.3)

    async def changed(*, to: bool) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while stopped(sleepers["b"]) != [to] * 2:
            assert time.monotonic() < deadline, f"they are not {'stopped' if to else 'running'}"
            await asyncio.sleep(0.01)

    with Freezer() as freezer:
        async with freezer.turn("a", sleepers):
            for _ in range(2):
                await changed(to=True)
                await changed(to=False)
    wait_until_stopped(sleepers["b"], is_so=False)


async def test_one_that_has_ended_meanwhile_does_no_harm(sleepers: dict[str, list[int]]) -> None:
    with Freezer() as freezer:
        async with freezer.turn("a", sleepers | {"gone": [2**22 + 1]}):
            os.kill(sleepers["b"][0], signal.SIGKILL)
        async with freezer.turn("b", {"a": sleepers["a"], "b": sleepers["b"][1:]}):
            pass
    wait_until_stopped(sleepers["b"][1:], is_so=False)


def test_when_this_process_is_killed_everything_goes_on(sleepers: dict[str, list[int]], tmp_path: Path) -> None:
    code = f"""
import asyncio, time
from graphbench.freezing import Freezer
async def hold(freezer):
    async with freezer.turn("a", {sleepers!r}):
        print("frozen", flush=True)
        time.sleep(60)
with Freezer() as freezer:
    asyncio.run(hold(freezer))
"""
    words = [sys.executable, "-c", code]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=BENCHMARKS)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "frozen\n"
    wait_until_stopped(sleepers["b"], is_so=True)
    holder.kill()
    holder.communicate()
    wait_until_stopped(sleepers["b"], is_so=False)
