"""The log lines of a node's replicas, read from Ray's files on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from servepipe_operator.engine.state import Application

__all__ = ["ended_files", "read_lines", "replica_files"]

POLL_S = 0.3
CHUNK = 1 << 20
MARKERS = (b":job_id:", b":actor_name:", b":task_name:")  # Ray's own, for its log monitor


def replica_files(folder: Path, applications: Iterable[Application]) -> dict[Path, str]:
    """Log files of all replicas of these applications, each with the prefix of its lines.

    What a replica prints goes to its worker's file, found by pid; what Serve and the node's runtime log goes to a file
    named after the replica.

    Args:
        folder: ``logs`` of Ray's session.
    """
    found: dict[Path, str] = {}
    for application in applications:
        revision = application.name.rpartition("--")[2]
        for path in folder.glob(f"serve/replica_{application.name}_*.log"):
            found[path] = f"{revision}/{path.stem.rpartition('_')[2][:6]}"
        for replica in application.replicas:
            if replica.pid:
                for path in folder.glob(f"worker-*-{replica.pid}.[eo][ru][rt]"):
                    found[path] = f"{revision}/{replica.id.rpartition('#')[2][:6]}"
    return found


def ended_files(folder: Path, prefix: str, applications: Iterable[Application]) -> dict[Path, str]:
    """What replicas that have ended logged, failed ones too, of all revisions, each with the prefix of its lines.

    Args:
        folder: ``logs`` of Ray's session.
        prefix: What the names of the node's applications begin with.
        applications: Those that there are, whose replicas are left out.
    """
    living = {replica.id.rpartition("#")[2] for application in applications for replica in application.replicas}
    found: dict[Path, str] = {}
    for path in folder.glob(f"serve/replica_{prefix}*.log"):
        application, _, replica = path.stem.removeprefix("replica_").rpartition("_")
        if replica not in living:
            found[path] = f"{application.partition('_')[0].rpartition('--')[2]}/{replica[:6]}"
    return found


@dataclass
class _Tail:
    """How far one file has been read; ``rest`` is a line that has not ended yet."""

    prefix: str
    position: int = 0
    rest: bytes = field(default=b"")

    def lines(self, path: Path) -> list[str]:
        try:
            with path.open("rb") as file:
                file.seek(self.position)
                data = self.rest + file.read(CHUNK)
                self.position = file.tell()
        except OSError:
            return []
        *complete, self.rest = data.split(b"\n")
        return [f"{self.prefix} | {line.decode(errors='replace')}" for line in complete if not line.startswith(MARKERS)]


async def read_lines(files: Callable[[], dict[Path, str]], *, for_ever: bool) -> AsyncIterator[str]:
    """Lines of all files, oldest file first; with ``for_ever`` also what is written from now on, in new files too."""
    tails: dict[Path, _Tail] = {}
    while True:
        for path, prefix in sorted(files().items()):
            tails.setdefault(path, _Tail(prefix))
        quiet = True
        for path, tail in tails.items():
            for line in await asyncio.to_thread(tail.lines, path):
                quiet = False
                yield line
        if quiet:
            if not for_ever:
                break
            await asyncio.sleep(POLL_S)
    for tail in tails.values():
        if tail.rest:
            yield f"{tail.prefix} | {tail.rest.decode(errors='replace')}"
