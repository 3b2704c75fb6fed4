"""A network of its own for pods: a network namespace that this machine reaches by one route and not by loopback.

    this machine (API server, tests) ──veth── pods (addresses of `PodNetwork.ip`) ──veth── operator (a client's own)

Each namespace is held by a process and ends with it, and with a namespace end its interfaces: nothing stays behind,
also when the tests are killed. Needs root on Linux, and iproute2.
"""

from __future__ import annotations

import ctypes
import functools
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Literal

from bed.processes import Process, wait_for

Family = Literal[socket.AddressFamily.AF_INET, socket.AddressFamily.AF_INET6]

CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """Why there can be no such network here; "" where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for command in (["unshare", "--net", "--mount", "true"], ["nsenter", "--version"], ["ip", "-V"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            return f"there is no command {command[0]}"
        if done.returncode:
            return f"{' '.join(command)}: {done.stderr.strip()}"
    return ""


class PodNetwork:
    """Args:
    folder: For the logs of the processes that hold the namespaces.
    """

    def __init__(self, folder: Path) -> None:
        self._pods = Process("pods", ["unshare", "--net", "sleep", "infinity"], folder / "pods.log")
        self._operator = Process("operator", ["unshare", "--net", "sleep", "infinity"], folder / "operator.log")
        # Another run on this machine has another process id. 198.18.0.0/15 is set aside for tests of networks.
        number = os.getpid()
        self._v4 = f"198.{18 + (number >> 8) % 2}.{number % 256}."
        self._v6 = f"fd73:7670:{number >> 16:x}:{number % 65536:x}::"
        self._name = f"svp{number % 10**8}"
        self.ipv6 = Path("/proc/net/if_inet6").exists()
        """Whether the kernel has it."""

    def start(self) -> None:
        """The namespaces with their interfaces, ready for `sockets`."""
        for process in (self._pods, self._operator):
            process.start()
            wait_for(f"a namespace for {process.name}", functools.partial(_apart, process), evidence=process.tail)
            _ip(process, "link", "set", "lo", "up")
        self._connect(f"{self._name}h", None, "1", "2")
        self._connect(f"{self._name}o", self._operator, "5", "6")

    def stop(self) -> None:
        """End the namespaces. The kernel takes the interfaces down a moment later, which is waited for."""
        for process in (self._operator, self._pods):
            process.kill()
        left = Path(f"/sys/class/net/{self._name}h")
        wait_for(f"the end of the interface {left.name}", lambda: not left.exists())

    def _connect(self, name: str, other: Process | None, near: str, far: str) -> None:
        """``other`` (None: this machine) with the pods, by a pair of interfaces with these addresses."""
        _ip(None, "link", "add", name, "type", "veth", "peer", "name", name, "netns", str(self._pods.pid))
        if other is not None:
            _ip(None, "link", "set", name, "netns", str(other.pid))
        for process, number in ((other, near), (self._pods, far)):
            _ip(process, "addr", "add", f"{self._v4}{number}/30", "dev", name)
            if self.ipv6:
                _ip(process, "addr", "add", f"{self._v6}{number}/126", "dev", name, "nodad")
            _ip(process, "link", "set", name, "up")
        _ip(other, "route", "add", f"{self._v4}16/28", "via", f"{self._v4}{far}")
        if self.ipv6:
            _ip(other, "route", "add", f"{self._v6}10/124", "via", f"{self._v6}{far}")

    # -- pods

    def pod(self, number: int, family: Family = socket.AF_INET) -> str:
        """The address of a pod, which is there from now on. ``number``: 0 to 15."""
        address = self.nowhere(number, family)
        _ip(self._pods, "addr", "replace", f"{address}/{32 if family == socket.AF_INET else 128}", "dev", "lo")
        return address

    def nowhere(self, number: int, family: Family = socket.AF_INET) -> str:
        """An address of this network to which packets go and vanish, until it is a `pod`'s."""
        return f"{self._v4}{16 + number}" if family == socket.AF_INET else f"{self._v6}{16 + number:x}"

    def cut_off(self, address: str) -> None:
        """From now on packets to this pod vanish, also those of connections that are open."""
        _ip(self._pods, "addr", "del", address, "dev", "lo")

    def listen(self, address: str, port: int) -> socket.socket:
        """A socket that listens in the pods' namespace, for whoever serves it."""
        made: list[socket.socket | Exception] = []

        def make() -> None:
            # A socket stays in the namespace in which its thread was when it was made.
            try:
                with Path(f"/proc/{self._pods.pid}/ns/net").open() as namespace:
                    if _LIBC.setns(namespace.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                made.append(socket.create_server((address, port), family=family))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        found = made[0]
        if isinstance(found, Exception):
            raise found
        return found

    def beside_the_pods(self, *command: str) -> list[str]:
        """``command`` in the operator's namespace, with mounts of its own."""
        return ["nsenter", f"--net=/proc/{self._operator.pid}/ns/net", "unshare", "--mount", *command]


def _apart(process: Process) -> bool:
    if not process.running():
        raise RuntimeError(process.tail())
    return Path(f"/proc/{process.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()


def _ip(process: Process | None, *arguments: str) -> None:
    """``ip`` in the namespace of a process; None: this one."""
    command = ["ip", *(["-6"] if any(":" in argument for argument in arguments) else []), *arguments]
    if process is not None:
        command = ["nsenter", f"--net=/proc/{process.pid}/ns/net", *command]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
