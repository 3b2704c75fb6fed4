"""Child processes that never outlive the tests, and waiting with a deadline."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Loaded before any fork: nothing but the call itself may happen between fork and exec.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1
# Those that outlive this process: Python warns of a running process that it forgets.
_OUTLIVING: list[subprocess.Popen[bytes]] = []


class DeadlineError(AssertionError):
    """A deadline passed; the message says what was waited for and what was seen last."""


def wait_for(
    what: str,
    check: Callable[[], T | None],
    timeout: float = 30.0,
    evidence: Callable[[], str] = lambda: "",
    pause: float = 0.02,
) -> T:
    """The first truthy value of `check`, asked every `pause` seconds until `timeout` seconds have passed.

    Its AssertionErrors and OSErrors mean: not yet. Raises DeadlineError.
    """
    deadline = time.monotonic() + timeout
    seen: object = None
    while True:
        try:
            seen = value = check()
            if value:
                return value
        except (AssertionError, OSError) as error:
            seen = error
        if time.monotonic() > deadline:
            raise DeadlineError(f"waited {timeout:g} s for {what}; last seen: {seen!r}\n{evidence()}")
        time.sleep(pause)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Process:
    """A daemon with its log. It dies with the process that started it, also when that one is killed.

    Args:
        env: Its environment; None: that of this process.
        outlives: It goes on when the process that started it ends, which therefore has to note its `pid`.
    """

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None, outlives: bool = False
    ) -> None:
        self.name, self.argv, self.log, self.env, self.outlives = name, list(argv), log, env, outlives
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self.name} was not started"
        return self._popen.pid

    def start(self) -> None:
        """Starts it (again); the log goes on where it was."""

        def die_with_parent() -> None:
            if _LIBC is not None:
                _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

        with self.log.open("ab") as log:
            # A session of its own: ctrl-C reaches the tests only, which then stop the daemons in order.
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=None if self.env is None else dict(self.env),
                preexec_fn=None if self.outlives else die_with_parent,
            )
        if self.outlives:
            _OUTLIVING.append(self._popen)

    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; frozen ones die too."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()

    def tail(self, lines: int = 25) -> str:
        """The end of its log, and its exit code where it ended."""
        ended = "" if self._popen is None or self._popen.poll() is None else f" (ended with {self._popen.returncode})"
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"--- {self.name}{ended}, the end of {self.log}:\n" + "\n".join(text.splitlines()[-lines:])
