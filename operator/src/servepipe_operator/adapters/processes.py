"""Processes told apart by more than their number.

A pid is reused; a pid together with the moment at which its process started is not. Whatever ends processes of an
earlier run goes through `Process`, so that a stranger who got an old number is never touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Process", "adopt_orphans", "descendants", "die_with_parent", "end", "identify"]

POLL_S = 0.05
HAS_PROC = Path("/proc/self/stat").exists()


@dataclass(frozen=True, slots=True)
class Process:
    """One process: ``started`` identifies the start on this boot of the machine, ``name`` is for people."""

    pid: int
    started: str
    name: str = ""

    def alive(self) -> bool:
        """Whether exactly this process still runs. A zombie does not: it holds nothing any more."""
        return self.started != "" and _started(self.pid) == self.started


def identify(pid: int) -> Process | None:
    """The process with this pid, or None when it is gone."""
    started = _started(pid)
    if not started:
        return None
    try:
        name = " ".join(psutil.Process(pid).cmdline())[:120] or psutil.Process(pid).name()
    except psutil.Error:
        name = ""
    return Process(pid, started, name)


def _started(pid: int) -> str:
    """What no other process with the same pid shares, "" for a process that is gone or a zombie.

    On Linux the kernel's own clock ticks: psutil's start times move when the wall clock is set.
    """
    if HAS_PROC:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else f"{_boot_id()}:{fields[19]}"
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return ""


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def descendants(pid: int) -> list[Process]:
    """Every living process below ``pid``, children before their own children."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    return [found for child in children if (found := identify(child.pid)) is not None]


def end(processes: Iterable[Process], *, grace_s: float, kill_s: float = 10.0) -> list[Process]:
    """End these processes and what is below them: SIGTERM, after ``grace_s`` SIGKILL. Returns who survived.

    Processes that appear below them meanwhile (a supervisor of their own restarting children) are ended as well.
    """
    targets = {p.pid: p for p in processes if p.alive()}
    for parent in list(targets.values()):
        targets.update((p.pid, p) for p in descendants(parent.pid))
    targets.pop(os.getpid(), None)
    if grace_s > 0:
        _signal(targets.values(), signal.SIGTERM)
        _wait(targets.values(), time.monotonic() + grace_s)
    deadline = time.monotonic() + kill_s
    while True:
        for parent in [p for p in targets.values() if p.alive()]:
            targets.update((p.pid, p) for p in descendants(parent.pid))
        _signal(targets.values(), signal.SIGKILL)
        if _wait(targets.values(), min(deadline, time.monotonic() + 1.0)) or time.monotonic() >= deadline:
            return [p for p in targets.values() if p.alive()]


def _signal(processes: Iterable[Process], number: signal.Signals) -> None:
    for process in processes:
        if process.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, number)


def _wait(processes: Iterable[Process], deadline: float) -> bool:
    waiting = list(processes)
    while waiting := [p for p in waiting if p.alive()]:
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send this process ``number`` when the thread that started it ends (Linux only)."""
    _prctl(1, int(number))  # PR_SET_PDEATHSIG


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that they can still be found (Linux only)."""
    _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
