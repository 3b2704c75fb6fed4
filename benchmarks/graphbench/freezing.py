"""Holding those that wait for their turn, so that only one of them has the machine.

A Ray that does nothing still takes a tenth of a core; five of them would take from each contestant what it is measured
by, and from one that lives of several processes more than from others. So the processes of all systems but one are
stopped (SIGSTOP) while that one is measured. Nothing of theirs notices but by the clock, and all of a system stop
together. What waits for something with a deadline finds it passed when it goes on, though: a Serve that was loading a
HAProxy anew ends it then, and nobody listens any more. So everybody breathes before usual deadlines (30 s) have passed.

What is stopped cannot end by itself. A guard in a process of its own lets everything go on when this process is gone,
however it went.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

from graphbench.machine import cpu_of
from servepipe_operator.adapters.processes import Process, identify

__all__ = ["Freezer"]

#: At most so long is anybody stopped, and by then a turn that lasts longer is disturbed.
BREATHE_AFTER_S = 20.0
#: How long all of them run then.
BREATH_S = 1.0
#: A turn begins with a breath where the last one is longer ago, so that few are disturbed.
BREATHE_FIRST_S = 10.0
CALM_CORES = 0.3
WINDOW_S = 0.2
CALM_WITHIN_S = 4.0
GUARD_S = 10.0


class Freezer:
    """Lets one system run at a time. Use as a context manager; at its end everything runs."""

    def __init__(self) -> None:
        self._stopped: dict[int, Process] = {}
        self._breathed = 0.0
        self._guard: subprocess.Popen[str] | None = None

    def __enter__(self) -> Freezer:
        # In a session of its own: a Ctrl-C in the terminal is for this process.
        self._guard = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        if self._guard is None:
            return
        try:
            self._guard.communicate(timeout=GUARD_S)  # the end of its input is its end
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.communicate()

    @contextlib.asynccontextmanager
    async def turn(self, active: str, systems: Mapping[str, Iterable[int]]) -> AsyncIterator[None]:
        """Stop everybody but ``active`` meanwhile; it begins when that one has caught up with the time it was stopped.

        Args:
            systems: The processes of each.
        """
        own = list(systems[active])
        others = [pid for name, pids in systems.items() if name != active for pid in pids]
        if time.monotonic() - self._breathed > BREATHE_FIRST_S:
            await self._breathe()
        self._stop(others)
        self.release(own)
        await _calm(own)
        breathing = asyncio.create_task(self._keep_breathing(others))
        try:
            yield
        finally:
            breathing.cancel()
            await asyncio.wait([breathing])

    async def _keep_breathing(self, others: list[int]) -> None:
        while True:
            await asyncio.sleep(max(0.0, self._breathed + BREATHE_AFTER_S - time.monotonic()))
            await self._breathe()
            self._stop(others)

    async def _breathe(self) -> None:
        self.release()
        await asyncio.sleep(BREATH_S)
        self._breathed = time.monotonic()

    def release(self, pids: Iterable[int] | None = None) -> None:
        """Let these go on, or everybody."""
        for pid in list(self._stopped) if pids is None else pids:
            if (process := self._stopped.pop(pid, None)) is not None:
                _signal(process, signal.SIGCONT)

    def _stop(self, pids: Iterable[int]) -> None:
        new = [process for pid in pids if pid not in self._stopped and (process := identify(pid)) is not None]
        if new and self._guard is not None and self._guard.stdin is not None:
            # First the guard knows of them.
            self._guard.stdin.writelines(f"{process.pid} {process.started}\n" for process in new)
            self._guard.stdin.flush()
        for process in new:
            self._stopped[process.pid] = process
            _signal(process, signal.SIGSTOP)


def _signal(process: Process, number: signal.Signals) -> None:
    if process.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


async def _calm(pids: list[int]) -> None:
    """Until they use little CPU, or for as long as `CALM_WITHIN_S`."""
    started = time.perf_counter()
    while True:
        before, at = cpu_of(pids), time.perf_counter()
        await asyncio.sleep(WINDOW_S)
        now = time.perf_counter()
        if (cpu_of(pids) - before) / (now - at) < CALM_CORES or now - started > CALM_WITHIN_S:
            return


def guard(lines: Iterable[str]) -> None:
    """When the lines end, let every process in them go on that is still the one that was meant."""
    seen = dict(line.split() for line in lines)
    for pid, began in seen.items():
        _signal(Process(int(pid), began), signal.SIGCONT)


if __name__ == "__main__":
    guard(sys.stdin)
