"""Ending exactly the processes that were meant."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from servepipe_operator.adapters.processes import descendants, end, identify

SLEEPS = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPS}"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPS!r}]); import time; time.sleep(600)"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def start(started: list[subprocess.Popen[str]], code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_a_process_ends_by_sigterm(started: list[subprocess.Popen[str]]) -> None:
    process = start(started, SLEEPS)
    found = identify(process.pid)
    assert found is not None
    assert found.alive()
    assert end([found], grace_s=30) == []
    assert process.wait() == -15
    assert not found.alive()


def test_a_stubborn_one_is_killed(started: list[subprocess.Popen[str]]) -> None:
    process = start(started, STUBBORN)
    found = identify(process.pid)
    assert found is not None
    assert end([found], grace_s=0.1) == []
    assert process.wait() == -9


def test_a_reused_pid_is_left_alone(started: list[subprocess.Popen[str]]) -> None:
    process = start(started, SLEEPS)
    found = identify(process.pid)
    assert found is not None
    other = replace(found, started=found.started + "0")
    assert not other.alive()
    assert end([other, replace(found, started="")], grace_s=0) == []
    assert process.poll() is None


def test_children_end_too(started: list[subprocess.Popen[str]]) -> None:
    process = start(started, PARENT)  # "up" is the child's
    found = identify(process.pid)
    assert found is not None
    children = descendants(process.pid)
    assert len(children) == 1
    assert end([found], grace_s=0) == []
    assert not children[0].alive()


def test_a_zombie_is_not_alive(started: list[subprocess.Popen[str]]) -> None:
    process = start(started, SLEEPS)
    found = identify(process.pid)
    assert found is not None
    process.kill()
    assert end([found], grace_s=0) == []  # not waited for yet: a zombie
    assert identify(process.pid) is None


def test_nobody_has_an_impossible_pid() -> None:
    assert identify(2**22 + 5) is None
    assert descendants(2**22 + 5) == []
