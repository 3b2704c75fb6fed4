"""A Redis beside the cluster on this machine, for GCS fault tolerance: Debian's, unpacked, not installed.

Installing it would start one that belongs to the machine.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from bed.build import cache
from bed.processes import Process, free_ports, wait_for
from machine.layout import MachineError

Make = Callable[[str, list[str], Path], Process]
PACKAGES = ("redis-server", "redis-tools", "liblzf1", "libjemalloc2", "liblua5.1-0", "libatomic1")


def unpacked(folder: Path | None = None) -> Path:
    """The root below which Debian's Redis is. Raises MachineError with what apt said."""
    folder = folder or cache() / "redis"
    root = folder / "root"
    if root.exists():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    _run("apt-get", "--quiet", "update", cwd=folder)
    _run("apt-get", "--quiet", "download", *PACKAGES, cwd=folder)
    unfinished = folder / f"root.{os.getpid()}"
    for package in sorted(folder.glob("*.deb")):
        _run("dpkg-deb", "--extract", str(package), str(unfinished), cwd=folder)
        package.unlink()
    unfinished.replace(root)
    return root


class RedisProcess:
    """One that keeps nothing on disk.

    Args:
        address: Where it listens, such as the address of the machine's cluster, which pods reach.
        folder: For its log.
        make: As in `StandInProcess`.
    """

    def __init__(self, address: str, folder: Path, make: Make = Process) -> None:
        self.address = address
        (self.port,) = free_ports(1)
        root = unpacked()
        self._libraries = os.pathsep.join(sorted({str(path.parent) for path in root.rglob("*.so.*")}))
        self._programs = root / "usr/bin"
        argv = ["redis-server", "--bind", address, "--port", str(self.port), "--save", "", "--protected-mode", "no"]
        self._process = make("redis", self._command(*argv, "--dir", str(folder)), folder / "redis.log")

    @property
    def host_and_port(self) -> str:
        return f"{self.address}:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        self._process.start()
        wait_for("Redis to answer", lambda: self.ask("PING") == "PONG", 30, self._process.tail)

    def stop(self) -> None:
        self._process.kill()

    def ask(self, *words: str) -> str:
        """The answer to a command, "" where there is none."""
        command = self._command("redis-cli", "-h", self.address, "-p", str(self.port), *words)
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()

    def _command(self, program: str, *arguments: str) -> list[str]:
        return ["env", f"LD_LIBRARY_PATH={self._libraries}", str(self._programs / program), *arguments]


def _run(*argv: str, cwd: Path) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise MachineError(f"`{' '.join(argv)}` failed:\n{(done.stdout + done.stderr)[-2000:]}")
