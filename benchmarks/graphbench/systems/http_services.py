"""Models as uvicorn services behind a gateway (`peers.http_model`, `peers.http_gateway`), and the reference server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from pathlib import Path

from peers import triage_graph

from graphbench.cases import Case
from graphbench.contestants import Contestant
from graphbench.systems.base import BENCHMARKS, Child, wait_for

__all__ = ["MODELS", "HttpSystem", "ReferenceSystem", "free_ports"]

START_S = 60.0
STOP_S = 10.0
KEEP_ALIVE_S = 120
"""Longer than the gateway keeps an idle connection, so that it never sends on one that is being closed."""

#: glibc gives a block of more than 32 MiB back to the system at once, and each page of the next one costs a fault: most
#: of the time that it takes to read 64 MiB. As mallopt(3) says, it may keep them.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1024**3), "MALLOC_TRIM_THRESHOLD_": str(1024**3)}

#: Model and argument, in the order in which the gateway calls them; replicas are models of their own.
MODELS: dict[str, tuple[tuple[str, str], ...]] = {
    "noop": (("echo", ""),),
    "diamond": (("scale", "1"), ("scale", "2"), ("ensemble", "")),
    "chain": (("increment", ""),) * 5,
    "fan": (*(("scale", str(factor)) for factor in range(1, 9)), ("total", "")),
    "mixture": (("work", ""),) * 2,
    "values": (("source", "1"), ("source", "2"), ("measure", "")),
    "batch": (("kernel", ""),) * 2,
    "triage": tuple(("triage", name) for name in triage_graph.MODELS),
}


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody had a moment ago, all different."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


async def accepts(port: int) -> bool | None:
    """Whether somebody listens there; None instead of False, for `wait_for`."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return None
    writer.close()
    return True


class _Servers:
    """Servers on ports of loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[Child] = []

    async def _start(self, name: str, port: int, words: list[str], environment: dict[str, str]) -> None:
        paths = {"PYTHONPATH": str(BENCHMARKS)}
        child = Child([sys.executable, "-m", *words], self._folder / f"{name}.log", environment | paths, cwd=BENCHMARKS)
        self._children.append(child)
        await child.start()

        async def listens() -> bool | None:
            child.check()
            return await accepts(port)

        await wait_for(f"{name} on port {port}", listens, START_S, child.last_lines)

    def pids(self) -> list[int]:
        return [pid for child in self._children for pid in child.pids()]

    def why(self) -> str:
        return "\n".join(lines for child in self._children if (lines := child.last_lines()))

    async def stop(self) -> None:
        await asyncio.gather(*(child.stop(STOP_S) for child in self._children))


class HttpSystem(_Servers):
    """Each model a process of its own, and the gateway."""

    def __init__(self, case: Case, folder: Path) -> None:
        super().__init__(folder)
        self._graph = case.name
        self._port = 0

    async def start(self) -> None:
        """Until all of them listen. Raises `SystemFailedError`."""
        models = MODELS[self._graph]
        self._port, *ports = free_ports(1 + len(models))
        for number, ((model, argument), port) in enumerate(zip(models, ports, strict=True)):
            environment = {"MODEL": model, "ARGUMENT": argument} | MEMORY
            await self._start(f"model-{number}", port, _uvicorn("peers.http_model:app", port), environment)
        urls = ",".join(f"http://127.0.0.1:{port}/" for port in ports)
        environment = {"GRAPH": self._graph, "MODELS": urls} | MEMORY
        await self._start("gateway", self._port, _uvicorn("peers.http_gateway:app", self._port), environment)

    def url(self, contestant: Contestant) -> str:
        return f"http://127.0.0.1:{self._port}/"


def _uvicorn(app: str, port: int) -> list[str]:
    fast = ["--loop", "uvloop", "--http", "httptools", "--ws", "none", "--no-access-log", "--log-level", "warning"]
    return ["uvicorn", app, "--port", str(port), *fast, "--timeout-keep-alive", str(KEEP_ALIVE_S)]


class ReferenceSystem(_Servers):
    """The server that answers without looking; it always says what is right for the case's first request."""

    def __init__(self, case: Case, folder: Path) -> None:
        super().__init__(folder)
        self._answer = json.dumps(case.loads[0].requests[0].answer)
        self._port = 0

    async def start(self) -> None:
        """Until it listens. Raises `SystemFailedError`."""
        (self._port,) = free_ports(1)
        await self._start("reference", self._port, ["graphbench.reference", str(self._port), self._answer], {})

    def url(self, contestant: Contestant) -> str:
        return f"http://127.0.0.1:{self._port}/"
