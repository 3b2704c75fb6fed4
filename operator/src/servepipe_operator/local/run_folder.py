"""The folder of one local run, and how other processes find it.

``$XDG_STATE_HOME/servepipe/runs/<pipeline>/`` belongs to one `servepipe up` at a time: it holds a lock for as long as
it lives, however it ends. ``run.json`` says how to reach it and lists its processes, for a next start to end what is
left of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from servepipe.errors import RunError
from servepipe_operator.adapters.processes import Process, end
from servepipe_operator.adapters.short_path import haproxies, remove_link
from servepipe_operator.adapters.sockets import PortNumbers

__all__ = ["Run", "RunFolder", "RunState", "find_run", "live_runs", "runs_root"]

RunState: TypeAlias = Literal["Starting", "Running", "Stopping"]


@dataclass(frozen=True, slots=True)
class Run:
    """What ``run.json`` says. ``token`` opens the control server; ``processes`` are all that the run started."""

    pipeline: str
    state: RunState
    url: str
    control: str
    token: str
    supervisor: Process
    source: str = ""
    ports: dict[str, int] = field(default_factory=dict)
    processes: tuple[Process, ...] = ()
    link: str = ""
    ray_address: str = ""
    ray_dashboard: str = ""
    ray_token_file: str = ""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Run:
        """Raises `TypeError` or `KeyError` when the file is of another version."""
        processes = tuple(Process(**process) for process in data.pop("processes"))
        return cls(**data | {"processes": processes, "supervisor": Process(**data["supervisor"])})


class RunFolder:
    """One run's folder; see `docs/architecture.md`, "One machine"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_file = path / "run.json"
        self.resource = path / "resource.yaml"
        self.status = path / "status.json"
        self.history = path / "history"
        self.code = path / "code"
        self.ray = path / "ray"
        self._lock: int | None = None

    @classmethod
    def of(cls, pipeline: str) -> RunFolder:
        return cls(runs_root() / pipeline)

    def take(self) -> None:
        """Make the folder and hold its lock until this process ends.

        Raises:
            RunError: Another process runs this pipeline.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            run = self.read()
            raise RunError(
                f"{self.path.name!r} is running already"
                + (f" (process {run.supervisor.pid}, {run.url})" if run else ""),
                fix=f"Change it with `servepipe apply FILE -p {self.path.name}`, or end it with "
                f"`servepipe down -p {self.path.name}`.",
            ) from None
        self._lock = descriptor

    def release(self) -> None:
        """Let go of the lock; the folder stays."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def held(self) -> bool:
        """Whether some process runs this pipeline now."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def read(self) -> Run | None:
        """The run that ``run.json`` tells of, or None where there is none or it cannot be read."""
        try:
            return Run.from_json(json.loads(self.run_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def write(self, run: Run) -> None:
        """Replace ``run.json``, readable by this user only."""
        write_private(self.run_file, json.dumps(asdict(run), indent=1))

    def forget(self) -> None:
        """Remove ``run.json``: the run has ended and left nothing."""
        self.run_file.unlink(missing_ok=True)

    def end_orphans(self) -> list[Process]:
        """End what an earlier run left behind; returns what was ended. Only with the lock held.

        Raises:
            RunError: Something could not be ended.
        """
        run = self.read()
        if run is None:
            return []
        # The supervisor itself is dead, or it would hold the lock.
        orphans = [process for process in run.processes if process.alive() and process.pid != os.getpid()]
        if run.link:
            known = {process.pid for process in orphans}
            orphans += [process for process in haproxies(Path(run.link)) if process.pid not in known]
        survivors = end(orphans, grace_s=1.0)
        if survivors:
            raise RunError(
                f"Processes of an earlier run do not end: {', '.join(str(p.pid) for p in survivors)}",
                where=str(self.run_file),
                fix="End them by hand.",
            )
        if run.link:
            remove_link(Path(run.link))
        self.forget()
        return orphans


def write_private(path: Path, text: str) -> None:
    """Replace a file at once, mode 0600."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def runs_root() -> Path:
    """Where the folders of all runs are."""
    state = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification: a relative path is invalid and must be ignored.
    return (Path(state) if state.startswith("/") else Path.home() / ".local" / "state") / "servepipe" / "runs"


@contextlib.contextmanager
def ports_locked() -> Iterator[list[int]]:
    """While one run chooses its ports no other does; gives the ports that living runs have written down."""
    root = runs_root()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (root / ".ports.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield [port for run in live_runs() for port in run.ports.values()]


def live_runs() -> list[Run]:
    """Every run of this user that is going on, by name."""
    found = (folder.read() for folder in _folders() if folder.held())
    return [run for run in found if run is not None]


def _folders() -> list[RunFolder]:
    """Those of all runs that there ever were, by name."""
    try:
        return [RunFolder(path) for path in sorted(runs_root().iterdir()) if path.is_dir()]
    except OSError:
        return []


def find_run(pipeline: str | None) -> Run:
    """The run that a command addresses.

    Args:
        pipeline: Its name, or None where there is only one.

    Raises:
        RunError: There is none, or more than one and no name was given, or the one named has died.
    """
    runs = live_runs()
    if pipeline is not None:
        for run in runs:
            if run.pipeline == pipeline:
                return run
        folder = RunFolder.of(pipeline)
        if folder.held():
            raise RunError(f"{pipeline!r} is just starting or ending", fix="Try again in a moment.")
        if folder.read() is not None:
            raise RunError(
                f"The run of {pipeline!r} died without cleaning up",
                where=str(folder.path),
                fix=f"`servepipe down -p {pipeline}` or the next `servepipe up` ends what it left.",
            )
        others = f" Running now: {', '.join(run.pipeline for run in runs)}." if runs else ""
        raise RunError(f"{pipeline!r} does not run on this machine", fix=f"Start it: `servepipe up FILE`.{others}")
    if not runs:
        if unknown := [folder.path.name for folder in _folders() if folder.held()]:
            raise RunError(f"{', '.join(unknown)}: just starting or ending", fix="Try again in a moment.")
        raise RunError("Nothing runs on this machine", fix="Start a pipeline: `servepipe up FILE`.")
    if len(runs) > 1:
        raise RunError(
            f"{len(runs)} pipelines run on this machine: {', '.join(run.pipeline for run in runs)}",
            fix=f"Name one, for instance -p {runs[0].pipeline}.",
        )
    return runs[0]


def with_ports(run: Run, ports: PortNumbers) -> Run:
    """The same run, with the ports it has chosen."""
    return replace(run, ports=ports.to_json(), url=f"http://127.0.0.1:{ports.http}/")
