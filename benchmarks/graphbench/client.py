"""The load: a closed loop over keep-alive connections, in a process of its own.

    python -m graphbench.client < order.json > figures.json

Each connection sends the next request as soon as the answer to the one before has come, as raw bytes on an asyncio
protocol; every answer is checked. What the client itself takes is in its figures, and what it can do at most is
measured against a server that answers without looking (`graphbench.reference`).
"""

from __future__ import annotations

import asyncio
import base64
import gc
import itertools
import json
import resource
import sys
import time
from collections.abc import Iterable
from typing import Any, cast
from urllib.parse import urlsplit

from graphbench.cases import Request
from graphbench.figures import percentile
from graphbench.responses import Answers, BadResponseError, parse, request_bytes

__all__ = ["order_for", "run"]

#: How long the last answers are waited for; an answer that takes longer than this is none.
DRAIN_S = 60.0
CONNECT_S = 10.0


def order_for(
    url: str, connections: int, requests: Iterable[Request], *, seconds: float, warmup_s: float, noop: bool = False
) -> dict[str, Any]:
    """What a client is given to do, as JSON."""
    return {
        "url": url,
        "connections": connections,
        "seconds": seconds,
        "warmup_s": warmup_s,
        "noop": noop,
        "requests": [
            {
                "body": base64.b64encode(one.body).decode(),
                "answer": one.answer,
                "noop": one.noop,
                "label": one.label,
                "partly": one.partly,
            }
            for one in requests
        ],
    }


class Run:
    """What all connections share.

    Args:
        order: See `order_for`.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        address = urlsplit(order["url"])
        self.host, self.port = address.hostname or "127.0.0.1", address.port or 80
        path = address.path or "/"
        kinds = []
        for one in order["requests"]:
            request = Request(**(one | {"body": base64.b64decode(one["body"])}))
            wire = request_bytes(f"{self.host}:{self.port}", path, request.body)
            kinds.append((wire, Answers(request, order["noop"])))
        self._kinds = itertools.cycle(kinds)
        now = time.perf_counter()
        self.begin = now + order["warmup_s"]
        self.end = self.begin + order["seconds"]
        self.window_s: float = order["seconds"]
        self.latencies: dict[str, list[float]] = {}
        self.requests = self.failed = self.reconnected = 0
        self.problem = ""
        self.open = 0
        self.done = asyncio.Event()

    def next(self) -> tuple[bytes, Answers]:
        return next(self._kinds)

    def answered(self, answers: Answers, sent: float, now: float, status: int, body: bytes) -> None:
        self.requests += 1
        if problem := answers.problem(status, body):
            self.fail(problem)
        elif self.begin <= now < self.end:
            self.latencies.setdefault(answers.request.label, []).append(now - sent)

    def fail(self, problem: str) -> None:
        self.failed += 1
        self.problem = self.problem or problem

    def broken(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error of the client itself, which would otherwise leave a connection waiting for ever."""
        self.fail(f"{context['message']}: {context.get('exception')!r}")
        self.done.set()

    def ended(self) -> None:
        self.open -= 1
        if self.open == 0:
            self.done.set()

    def figures(self) -> dict[str, float]:
        """In milliseconds and per second; nothing when nothing was answered in time."""
        everything = sorted(itertools.chain.from_iterable(self.latencies.values()))
        if not everything:
            return {}
        found = {"throughput": len(everything) / self.window_s} | _percentiles(everything, "")
        for label, values in self.latencies.items():
            if label:
                found |= _percentiles(sorted(values), f" {label}")
        return found


def _percentiles(ordered: list[float], suffix: str) -> dict[str, float]:
    return {f"p{q}{suffix}": percentile(ordered, q) * 1000 for q in (50, 99)}


class Connection(asyncio.Protocol):
    """One keep-alive connection. One that the server closed before it answered is opened again, and counted."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._asked: tuple[bytes, Answers] | None = None
        self._sent = 0.0
        self._tries = 0
        self._again: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self._buffer.clear()
        self._send(self._asked or self._run.next())

    def _send(self, asked: tuple[bytes, Answers]) -> None:
        assert self._transport is not None
        self._asked = asked
        self._sent = time.perf_counter()
        self._transport.write(asked[0])

    def data_received(self, data: bytes) -> None:
        try:
            if self._buffer:
                self._buffer += data
                response = parse(self._buffer)
            else:
                response = parse(data)
                if response is None:
                    self._buffer += data
        except (BadResponseError, ValueError) as error:
            self._run.fail(str(error))
            self._finish()
            return
        if response is None or self._asked is None:
            return
        now = time.perf_counter()
        self._buffer.clear()
        self._tries = 0
        answers, self._asked = self._asked[1], None
        self._run.answered(answers, self._sent, now, response.status, response.body)
        if now >= self._run.end:
            self._finish()
        elif not response.closes:
            self._send(self._run.next())

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is None:  # finished
            return
        self._transport = None
        if self._asked is not None:
            self._tries += 1
            self._run.reconnected += 1
        if self._tries > 1:
            self._run.fail(f"the connection was closed without an answer ({error})")
            self._run.ended()
            return
        self._again = asyncio.ensure_future(connect(self._run, self))

    def _finish(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
            self._run.ended()


async def connect(run: Run, connection: Connection) -> None:
    """Open the connection; one that cannot be opened is a failure and ends."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_S):
            await loop.create_connection(lambda: connection, run.host, run.port)
    except OSError as error:  # TimeoutError is one
        run.fail(f"no connection to {run.host}:{run.port}: {error or type(error).__name__}")
        run.ended()


async def run(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out an order; the figures, and what went wrong."""
    this = Run(order)
    this.open = order["connections"]
    asyncio.get_running_loop().set_exception_handler(this.broken)
    started, before = time.perf_counter(), _cpu_s()
    await asyncio.gather(*(connect(this, Connection(this)) for _ in range(order["connections"])))
    try:
        async with asyncio.timeout(order["warmup_s"] + order["seconds"] + DRAIN_S):
            await this.done.wait()
    except TimeoutError:
        this.fail(f"{this.open} answers did not come within {DRAIN_S:.0f} s after the end")
    return {
        "figures": this.figures(),
        "problem": this.problem,
        "requests": this.requests,
        "failed": this.failed,
        "reconnected": this.reconnected,
        "cpu_s": _cpu_s() - before,
        "whole_cpu_s": _cpu_s(),
        "wall_s": time.perf_counter() - started,
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    import uvloop

    order = json.load(sys.stdin)
    gc.disable()  # a run is short; a collection in the middle would be taken for the server's
    json.dump(uvloop.run(run(order)), sys.stdout)


if __name__ == "__main__":
    main()
