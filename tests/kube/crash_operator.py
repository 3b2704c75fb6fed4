"""Operators that die of SIGKILL at their k-th write: forks of one process that has imported everything.

Each of them is the real operator in a process of its own: `servepipe_operator.controller` with its own settings. A fork
costs milliseconds where a start of Python costs a second, so that hundreds of deaths can be tried. The one place where
requests to the API server leave, and the one where a configuration leaves to Serve, count what they write, and send
SIGKILL to their own process before the request leaves or after it was answered. The Lease, and dry runs, do not count.

Commands come in lines of JSON::

    {"start": NAME, "env": {...}, "log": PATH, "writes": PATH, "kill": [K, "before" or "after"] or null, "program": ""}
    {"stop": NAME}

and ``{"ended": NAME, "signal": 9, "code": 0}`` goes out for each end. ``writes`` gets a line per write.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

# Everything is imported here, and in no fork.
from servepipe_operator.adapters.kube import Kube, Resource
from servepipe_operator.adapters.serve_api import RayServeApi
from servepipe_operator.controller.app import main as run
from servepipe_operator.controller.pipeline import PipelineReconciler

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class Writes:
    """Counts, and kills.

    Args:
        path: Where to write a line about each.
        kill: At which write, and whether before it leaves or after it was answered; None: never.
    """

    def __init__(self, path: str, kill: tuple[int, str] | None) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._kill = kill
        self._count = 0

    def begin(self, what: str) -> int:
        self._count += 1
        os.write(self._file, f"{what}\n".encode())
        self._die_at(self._count, "before")
        return self._count

    def end(self, number: int) -> None:
        self._die_at(number, "after")

    def _die_at(self, number: int, when: str) -> None:
        if self._kill == (number, when):
            os.kill(os.getpid(), signal.SIGKILL)


def install(writes: Writes) -> None:
    """Let every write of this process be counted."""
    once, request = Kube._once, RayServeApi._request

    async def counted_once(
        self: Kube,
        verb: str,
        resource: Resource,
        path: str,
        method: str,
        query: Mapping[str, str],
        body: Any,
        kind: str,
    ) -> Any:
        if method == "GET" or resource.plural == "leases" or query.get("dryRun"):
            return await once(self, verb, resource, path, method, query, body, kind)
        number = writes.begin(f"{verb} {resource.plural}{'/status' if path.endswith('/status') else ''}")
        try:
            return await once(self, verb, resource, path, method, query, body, kind)
        finally:
            writes.end(number)

    async def counted_request(self: RayServeApi, method: str, timeout_s: float, body: Any = None) -> Any:
        if method == "GET":
            return await request(self, method, timeout_s, body)
        number = writes.begin("put serve")
        try:
            return await request(self, method, timeout_s, body)
        finally:
            writes.end(number)

    Kube._once = counted_once  # type: ignore[method-assign]
    RayServeApi._request = counted_request  # type: ignore[method-assign]


def operate(command: Mapping[str, Any]) -> NoReturn:
    """Be an operator; in a fork."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(command["env"])
    kill = command["kill"]
    install(Writes(command["writes"], (kill[0], kill[1]) if kill else None))
    if command.get("program"):
        module, _, function = command["program"].partition(":")
        getattr(importlib.import_module(module), function)()
    run(PipelineReconciler, [])


def main() -> None:
    names: dict[int, str] = {}
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    gc.freeze()  # what the forks share stays shared
    rest = b""
    while True:
        readable, _, _ = select.select([0, woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
            _reap(names)
        if 0 in readable:
            chunk = os.read(0, 1 << 16)
            if not chunk:
                return  # forks end with this process
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                _obey(json.loads(line), names)


def _obey(command: Mapping[str, Any], names: dict[int, str]) -> None:
    if "stop" in command:
        for pid in [pid for pid, name in names.items() if name == command["stop"]]:
            os.kill(pid, signal.SIGKILL)
        return
    pid = os.fork()
    if pid == 0:
        try:
            operate(command)
        finally:
            os._exit(70)
    names[pid] = command["start"]


def _reap(names: dict[int, str]) -> None:
    while names:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        ended = {"ended": names.pop(pid), "signal": status & 127, "code": status >> 8}
        os.write(1, json.dumps(ended).encode() + b"\n")


if __name__ == "__main__":
    main()
