"""Daemons that outlive who started them, each noted in the record with its command line."""

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from bed.processes import Process, wait_for

from machine import record
from machine.layout import Layout, MachineError
from machine.record import Record, Started


class Daemons:
    """The processes of one cluster, by name; see `Record.processes`."""

    def __init__(self, layout: Layout, noted: Record, environ: Mapping[str, str] = os.environ) -> None:
        self._layout, self._record = layout, noted
        self._env = record.environment(environ, layout.folder)

    def make(self, name: str, argv: list[str], log: Path) -> Process:
        """One that is not yet started."""
        return _Daemon(self, name, argv, log, self._env)

    def start(self, name: str, *argv: str) -> Process:
        process = self.make(name, list(argv), self._layout.logs / f"{name}.log")
        process.start()
        return process

    def note(self, process: Process) -> None:
        since = record.started_at(process.pid)
        if since is None:
            raise MachineError(process.tail())
        self._record.processes[process.name] = Started(process.pid, since, tuple(process.argv), str(process.log))
        self._record.save(self._layout.record)

    def pid(self, name: str) -> int:
        """Raises MachineError where it does not run."""
        started = self._record.processes.get(name)
        if started is None or not record.runs(started):
            raise MachineError(f"{name} of the cluster in {self._layout.folder} does not run")
        return started.pid

    def start_again(self, name: str) -> Process:
        """Starts one that ended, as it was. Raises MachineError where it runs or never did."""
        started = self._record.processes.get(name)
        if started is None or record.runs(started):
            raise MachineError(f"{name} of the cluster in {self._layout.folder} {'runs' if started else 'never ran'}")
        process = self.make(name, list(started.argv), Path(started.log))
        process.start()
        return process

    def end(self, name: str, seconds: float = 30.0) -> None:
        """SIGTERM, and SIGKILL where it has not ended after `seconds`."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGTERM)

        def ended() -> bool:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            return record.started_at(pid) is None

        try:
            wait_for(f"{name} to end", ended, seconds)
        except AssertionError:
            os.kill(pid, signal.SIGKILL)
            wait_for(f"{name} to end when killed", ended, 10)


class _Daemon(Process):
    def __init__(self, daemons: Daemons, name: str, argv: list[str], log: Path, env: Mapping[str, str]) -> None:
        super().__init__(name, argv, log, env, outlives=True)
        self._daemons = daemons

    def start(self) -> None:
        super().start()
        self._daemons.note(self)
