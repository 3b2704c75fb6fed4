"""What the ingress adds to a request whose nodes all run inside it.

The ingress's ASGI app is called directly, without a server, and so is an app that only reads the same JSON body and
answers the same JSON by the same library: turn by turn in one process, alone and 32 at a time, in microseconds of CPU.
The difference is what reading, routing, running the graph, counting and answering cost.

    python benchmarks/inline_requests.py [--rounds 60] [--json FILE] [--at-most 60]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import uvloop
from results_file import save

from servepipe.runtime.ingress import Ingress

App = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


class Node:
    """What all nodes of these graphs are: the least that an async method can do without waiting."""

    async def first(self, *values: Any) -> Any:
        return values[0]


class Local(Ingress):  # type: ignore[misc]
    """The ingress without Serve around it."""

    def __init__(self) -> None:
        self._set_up("benchmark", "ingress")

        async def keep_only(applications: Any) -> None:
            pass

        self._serve_caller = SimpleNamespace(keep_only=keep_only)  # type: ignore[assignment]


def step(name: str, *args: Any) -> dict[str, Any]:
    return {"name": name, "node": name, "method": "first", "args": list(args)}


def ref(name: str) -> dict[str, str]:
    return {"$step": name}


INPUT = {"$input": []}
DIAMOND = [step("m1", INPUT), step("m2", INPUT), step("ensemble", ref("m1"), ref("m2"))]
CHAIN = [step("s0", INPUT), *(step(f"s{n}", ref(f"s{n - 1}")) for n in range(1, 5))]
FAN = [*(step(f"f{n}", INPUT) for n in range(8)), step("all", *(ref(f"f{n}") for n in range(8)))]
SMALL = b'{"x":5}'
LARGE = msgspec.json.encode(
    {"rows": [{"id": n, "text": f"text number {n}", "scores": [0.5, n / 7]} for n in range(150)]}
)
CASES = (
    ("one step", [step("s0", INPUT)], SMALL),
    ("diamond", DIAMOND, SMALL),
    ("chain of five", CHAIN, SMALL),
    ("fan-out of eight", FAN, SMALL),
    ("diamond, 8 KiB", DIAMOND, LARGE),
)


def table(steps: list[dict[str, Any]]) -> dict[str, Any]:
    inline = {"import": f"{__name__}:Node", "args": [], "kwargs": {}, "code": None, "maxOngoingRequests": 1000}
    route = {"revision": "r1", "weight": 100, "inline": inline}
    return {
        "table": "t",
        "graph": {"steps": steps, "output": ref(steps[-1]["name"])},
        "nodes": {each["node"]: {"routes": [route]} for each in steps},
        "requestTimeoutSeconds": 60,
    }


_decode, _encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """The floor: reads the body and answers what is in it."""
    message = await receive()
    body = _encode(_decode(message["body"]))
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def ask(app: App, body: bytes) -> bytes:
    headers = [
        (b"host", b"127.0.0.1:8000"),
        (b"accept", b"*/*"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", b"5f0c6a4e-3b1d-4c57-9a53-0f9a2f3f6f3b"),
    ]
    scope = {"type": "http", "method": "POST", "path": "/", "root_path": "", "headers": headers}
    answer = b""

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal answer
        answer += message.get("body", b"")

    await app(scope, receive, send)
    return answer


@dataclass(frozen=True)
class Result:
    """Medians in microseconds of CPU per request, and the median of the differences per round with its quartiles.
    ``rounds``: no-op and ingress in each round.
    """

    name: str
    steps: int
    at_once: int
    nothing_us: float
    ingress_us: float
    added_us: float
    quartiles: tuple[float, float]
    rounds: list[list[float]]


async def measure(name: str, steps: list[dict[str, Any]], body: bytes, at_once: int, rounds: int) -> Result:
    ingress = Local()
    await ingress.reconfigure(table(steps))
    apps: tuple[App, App] = (nothing, ingress.__serve_build_asgi_app__())
    answers = [await ask(app, body) for app in apps]
    if answers != [body, body]:
        raise SystemExit(f"{name}: {answers}")
    repeat = max(1, 200 // at_once)
    times = []
    gc.collect()
    for _ in range(rounds):
        taken = []
        for app in apps:
            started = time.thread_time()
            for _ in range(repeat):
                if at_once == 1:
                    await ask(app, body)
                    await asyncio.sleep(0)  # tasks that are left have their turn
                else:
                    await asyncio.gather(*(ask(app, body) for _ in range(at_once)))
            taken.append(round((time.thread_time() - started) / (repeat * at_once) * 1e6, 2))
        times.append(taken)
    lower, middle, upper = statistics.quantiles((ours - floor for floor, ours in times), n=4)
    floor, ours = (round(statistics.median(column), 1) for column in zip(*times, strict=True))
    return Result(name, len(steps), at_once, floor, ours, round(middle, 1), (round(lower, 1), round(upper, 1)), times)


async def measure_all(rounds: int) -> list[Result]:
    return [await measure(*case, at_once, rounds) for case in CASES for at_once in (1, 32)]


def main() -> int:
    parser = argparse.ArgumentParser(description="What the ingress adds to a request whose nodes all run inside it.")
    parser.add_argument("--rounds", type=int, default=60, help="measurements of each way (default 60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as JSON")
    parser.add_argument("--at-most", type=float, default=60.0, metavar="US", help="fail above this (default 60)")
    options = parser.parse_args()
    results = uvloop.run(measure_all(options.rounds))
    print(f"{'graph':<18}{'steps':>6}{'at once':>9}{'no-op':>8}{'ingress':>9}{'added':>8}{'quartiles':>16}   (us)")
    for each in results:
        quartiles = f"{each.quartiles[0]:.1f} to {each.quartiles[1]:.1f}"
        print(
            f"{each.name:<18}{each.steps:>6}{each.at_once:>9}{each.nothing_us:>8.1f}{each.ingress_us:>9.1f}"
            f"{each.added_us:>8.1f}{quartiles:>16}"
        )
    if options.json:
        save(options.json, "inline requests", rounds=options.rounds, results=[asdict(result) for result in results])
    # Of large bodies the JSON is the most, and that depends on what is in them.
    worst = max((each for each in results if "KiB" not in each.name), key=lambda result: result.added_us)
    if worst.added_us > options.at_most:
        print(f"{worst.name}: {worst.added_us} us added, more than {options.at_most:g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
