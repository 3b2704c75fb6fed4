"""What all systems have in common."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from graphbench.contestants import Contestant
from servepipe_operator.adapters.processes import Process, descendants, die_with_parent, end, identify

__all__ = ["BENCHMARKS", "ROOT", "Child", "System", "SystemFailedError", "last_chars", "output_of", "wait_for"]

T = TypeVar("T")
BENCHMARKS = Path(__file__).resolve().parents[2]
ROOT = BENCHMARKS.parent
LOOK_EVERY_S = 0.1
LAST_CHARS = 2000


class SystemFailedError(Exception):
    """A system did not start, or has ended; the message says why."""


class System(Protocol):
    """Something that serves one case until it is stopped."""

    async def start(self) -> None:
        """Until it answers. Raises `SystemFailedError`."""

    def url(self, contestant: Contestant) -> str:
        """Where the contestant answers."""

    def pids(self) -> list[int]:
        """All of its processes that are there now."""

    def why(self) -> str:
        """What it says of itself that may explain a failure; "" for nothing."""

    async def stop(self) -> None:
        """End all of its processes; safe at any time, also twice."""


async def output_of(
    process: asyncio.subprocess.Process, timeout_s: float, given: bytes | None = None
) -> tuple[bytes, bytes]:
    """What a process writes on both of its outputs until it ends; it does not live longer than this call.

    Raises `TimeoutError`: it took longer.
    """
    try:
        return await asyncio.wait_for(process.communicate(given), timeout_s)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):  # it may have ended in this moment
            process.kill()
        await process.wait()
        raise


async def wait_for(
    what: str, look: Callable[[], Awaitable[T | None]], timeout_s: float, why: Callable[[], str] = str
) -> T:
    """The first result of ``look`` that is not None. Raises `SystemFailedError` that says what was waited for."""
    deadline = time.monotonic() + timeout_s
    while (found := await look()) is None:
        if time.monotonic() > deadline:
            raise SystemFailedError(f"waited {timeout_s:.0f} s in vain for {what}\n{why()}")
        await asyncio.sleep(LOOK_EVERY_S)
    return found


def last_chars(log: Path) -> str:
    """The end of a log; "" where there is none."""
    try:
        return log.read_text(encoding="utf-8", errors="replace")[-LAST_CHARS:]
    except OSError:
        return ""


class Child:
    """A process with a log, which ends with this one.

    Args:
        words: The command.
        log: What it prints goes there.
        environment: In addition to this process's own.
    """

    def __init__(self, words: list[str], log: Path, environment: Mapping[str, str], *, cwd: Path) -> None:
        self._words, self._log, self._environment, self._cwd = words, log, environment, cwd
        self._process: asyncio.subprocess.Process | None = None
        self._seen: dict[int, Process] = {}

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                cwd=self._cwd,
                env=os.environ | self._environment,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def check(self) -> None:
        """Raises `SystemFailedError` when it has ended."""
        if self._process is None or self._process.returncode is not None:
            code = None if self._process is None else self._process.returncode
            raise SystemFailedError(f"{' '.join(self._words[:4])} ended with {code}:\n{self.last_lines()}")

    def last_lines(self) -> str:
        return last_chars(self._log)

    def pids(self) -> list[int]:
        if self._process is None or self._process.returncode is not None:
            return []
        found = descendants(self._process.pid)
        if (own := identify(self._process.pid)) is not None:
            found.append(own)
        self._seen |= {process.pid: process for process in found}
        return [process.pid for process in found]

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, after ``grace_s`` SIGKILL; then whatever of its own processes is left."""
        if self._process is None:
            return
        self.pids()
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), grace_s)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        await asyncio.to_thread(end, list(self._seen.values()), grace_s=0)


def _end_with_parent() -> None:
    die_with_parent(signal.SIGTERM)
