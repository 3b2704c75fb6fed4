"""What `up` did to the machine, written to a file before or as soon as it is done: `down` needs nothing else.

A process is known by its id and the moment that it started, so that one which got the same id later is left alone. All
that a daemon starts has its environment, and with it a mark that names the folder of the cluster: so are containerd's
shims found, which outlive it, and a daemon whose starter was killed before it could write.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

MARK = "SERVEPIPE_MACHINE_FOLDER"
PROC = Path("/proc")


@dataclass(frozen=True)
class Started:
    """A daemon: its process id, the clock ticks from boot to its start, and how to start it again."""

    pid: int
    since: int
    argv: tuple[str, ...]
    log: str


@dataclass
class Record:
    """The content of the file.

    Attributes:
        boot: The kernel's boot id: after a reboot no process and no interface is left.
        bridge: The interface that was made.
        sysctls: What kernel settings were before, by path below /proc/sys.
        absent: Paths outside the folder that were not there before.
        processes: The daemons by name.
    """

    boot: str
    bridge: str
    sysctls: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    processes: dict[str, Started] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(asdict(self), indent=1))
        unfinished.replace(path)


def load(path: Path) -> Record | None:
    """The record, or None where there is none."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    processes = {
        name: Started(each["pid"], each["since"], tuple(each["argv"]), each["log"])
        for name, each in content.pop("processes").items()
    }
    return Record(**content, processes=processes)


def boot_id() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def stat_of(text: str) -> tuple[str, int]:
    """State and start of a process, from its /proc/PID/stat: the name before them may hold anything."""
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def started_at(pid: int) -> int | None:
    """The clock ticks from boot to the start of a process that runs; None where it ended, also if nobody waited."""
    try:
        state, since = stat_of((PROC / str(pid) / "stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else since


def runs(process: Started) -> bool:
    return started_at(process.pid) == process.since


def marked(folder: Path) -> Iterator[int]:
    """The ids of all processes that run with the mark of this cluster."""
    wanted = f"{MARK}={folder}".encode()
    for path in PROC.iterdir():
        if path.name.isdecimal():
            try:
                environ = (path / "environ").read_bytes()
            except OSError:
                continue
            if wanted in environ.split(b"\0") and started_at(int(path.name)) is not None:
                yield int(path.name)


def environment(base: Mapping[str, str], folder: Path) -> dict[str, str]:
    """For daemons: nothing of the caller's but where programs are, and the mark."""
    path = base.get("PATH", "") or "/usr/bin:/bin"
    return {"PATH": f"{path}:/usr/local/sbin:/usr/sbin:/sbin", "HOME": str(folder), MARK: str(folder)}
