"""The short path to the folder of a run's Ray, which tells its processes from those of others.

In a module of its own: whoever only looks for runs would pay for the imports of `LocalRay`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from servepipe_operator.adapters.processes import Process, identify

__all__ = ["haproxies", "remove_link"]


def haproxies(link: Path) -> list[Process]:
    """Every HAProxy whose files are below this path.

    It outlives a Ray that is killed, and is another process after each change of where the ingress runs.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "haproxy" and any(word.startswith(f"{link}/") for word in process.cmdline()):
                found.append(identify(process.pid))
    return [process for process in found if process is not None]


def remove_link(link: Path) -> None:
    """Remove the short path to Ray's folder, never what it points to."""
    with contextlib.suppress(OSError):
        for entry in link.iterdir():
            if entry.is_symlink():
                entry.unlink()
        link.rmdir()
