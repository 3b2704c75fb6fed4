"""Takes a cluster away, from its record alone: in the process that made it, or in any later one."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

from bed.processes import wait_for

from machine import host, policy, record
from machine.layout import Layout
from machine.record import Record

Say = Callable[[str], None]
#: In this order: who would start containers again ends before the containers, who holds their files after them.
FIRST = ("kubelet", "kube-scheduler", "kube-controller-manager")


def down(layout: Layout, say: Say) -> bool:
    """Ends and undoes everything that the record names; leaves logs. Says whether there was something.

    Raises DeadlineError where something does not end. It can be called again.
    """
    found = record.load(layout.record)
    if found is None:
        return False
    if found.boot == record.boot_id():
        _end_processes(layout, found, say)
        host.unmount_below(layout.folder)
        host.remove_bridge(found.bridge)
        host.remove_chains()
        policy.remove_sets()
        host.remove_cgroups()
        host.restore(found.sysctls)
    for socket in shim_sockets(layout):
        host.remove(socket)
    host.remove_outside(found.absent, layout.folder)
    for path in layout.folder.iterdir():
        if path not in (layout.logs, layout.record):
            host.remove(path)
    layout.record.unlink()
    say(f"machine: down; nothing is left but {layout.logs}")
    return True


def shim_sockets(layout: Layout) -> list[Path]:
    """Where the shims listened: below /run/containerd, wherever containerd's own state is."""
    found = []
    for file in layout.containerd.glob("state/io.containerd.runtime.v2.task/*/*/address"):
        scheme, _, path = file.read_text().strip().partition("://")
        if scheme == "unix" and path.startswith("/run/containerd/s/"):
            found.append(Path(path))
    return found


def _end_processes(layout: Layout, found: Record, say: Say) -> None:
    first = [found.processes[name].pid for name in FIRST if name in found.processes and _runs(found, name)]
    _end("kubelet and controllers", lambda: [pid for pid in first if record.started_at(pid) is not None])
    # Only while our kubelet was the machine's only one could a cluster come up: see `up`.
    _end("containers", lambda: host.pids_of_pods() if _has_kubelet(found) else ())
    rest = [each.pid for name, each in found.processes.items() if _runs(found, name)]
    _end(
        "daemons and containerd's shims",
        lambda: {*(pid for pid in rest if record.started_at(pid) is not None), *record.marked(layout.folder)},
    )
    say("machine: all processes ended")


def _runs(found: Record, name: str) -> bool:
    return record.runs(found.processes[name])


def _has_kubelet(found: Record) -> bool:
    return "kubelet" in found.processes


def _end(what: str, pids: Callable[[], Iterable[int]]) -> None:
    """Kills until none is left: a shim or a container may have been on its way.

    Those that it killed count until they ended: one that is ending has no environment any more to be found by.
    """

    killed: dict[int, int | None] = {}

    def gone() -> bool:
        left = set(pids())
        for pid in left:
            killed.setdefault(pid, record.started_at(pid))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in killed:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # where it is this process's child
        return not left and not ending()

    def ending() -> list[int]:
        return [pid for pid, since in killed.items() if since is not None and record.started_at(pid) == since]

    def evidence() -> str:
        return "\n".join(f"{pid}: {_command(pid)}" for pid in (*pids(), *ending()))

    wait_for(f"the end of {what}", gone, 30, evidence)


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return "ended"
