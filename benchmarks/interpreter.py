"""What the interpreter itself costs per step.

Each graph of async methods runs through the interpreter and as the hand-written coroutines that do the same, turn by
turn in one process; the difference of the medians, divided by the number of steps, is the interpreter's own cost, in
microseconds of CPU. A chain of sync methods runs against as many bare calls of `loop.run_in_executor`, by the clock;
what counts is the ratio per round. The targets are 20 us and 1.3 times.

    python benchmarks/interpreter.py [--rounds 60] [--json FILE] [--at-most 20] [--sync-at-most 1.3]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from results_file import save

from servepipe.graph.calls import NodeDefinition, RequestContext
from servepipe.graph.inprocess import InProcessCaller
from servepipe.graph.interpreter import run
from servepipe.graph.ir import Call, Expr, Graph, InputRef, ItemRef, ListOf, Map, StepRef, Switch
from servepipe.graph.program import Program


class Node:
    """The least that an async method can do without waiting."""

    async def step(self, *values: Any) -> Any:
        return values[0]


class SyncNode:
    """The least that a thread can do."""

    def step(self, value: Any) -> Any:
        return value


class Bare:
    """A caller without threads, bounds and building: what is left is the interpreter."""

    def __init__(self, node: Node) -> None:
        self.step = node.step

    async def call(
        self, node: str, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], context: RequestContext
    ) -> Any:
        return await self.step(*args)


def call(name: str, *args: Expr) -> Call:
    return Call(name, "n", "step", args)


def chain(length: int) -> Graph:
    steps = [call("s0", InputRef()), *(call(f"s{n}", StepRef(f"s{n - 1}")) for n in range(1, length))]
    return Graph(tuple(steps), StepRef(steps[-1].name))


async def chain_by_hand(node: Node, value: Any, length: int) -> Any:
    for _ in range(length):
        value = await node.step(value)
    return value


def fan(width: int) -> Graph:
    names = [f"s{n}" for n in range(width)]
    steps = [call(name, InputRef()) for name in names]
    return Graph((*steps, call("all", *(StepRef(name) for name in names))), StepRef("all"))


async def fan_by_hand(node: Node, value: Any, width: int) -> Any:
    return await node.step(*await asyncio.gather(*(node.step(value) for _ in range(width))))


def diamonds(count: int) -> Graph:
    """REP-001's diamond again and again: two side by side, one that joins them."""
    steps: list[Call] = []
    value: Expr = InputRef()
    for n in range(count):
        steps += [call(f"a{n}", value), call(f"b{n}", value), call(f"c{n}", StepRef(f"a{n}"), StepRef(f"b{n}"))]
        value = StepRef(f"c{n}")
    return Graph(tuple(steps), value)


async def diamonds_by_hand(node: Node, value: Any, count: int) -> Any:
    for _ in range(count):
        value = await node.step(*await asyncio.gather(node.step(value), node.step(value)))
    return value


def mapped(_: int) -> Graph:
    return Graph((call("each", ItemRef("m")), Map("m", InputRef(), StepRef("each"))), StepRef("m"))


async def mapped_by_hand(node: Node, values: Any, _: int) -> Any:
    return await asyncio.gather(*(node.step(value) for value in values))


def switches(length: int) -> Graph:
    steps: list[Any] = []
    value: Expr = InputRef()
    for n in range(length):
        steps += [call(f"s{n}", value), Switch(f"w{n}", StepRef(f"s{n}"), ((0, ListOf(())),), StepRef(f"s{n}"))]
        value = StepRef(f"w{n}")
    return Graph(tuple(steps), value)


async def switches_by_hand(node: Node, value: Any, length: int) -> Any:
    for _ in range(length):
        value = await node.step(value)
        value = [] if value == 0 else value
    return value


@dataclass(frozen=True)
class Case:
    name: str
    graph: Graph
    by_hand: Callable[[Node, Any, int], Awaitable[Any]]
    size: int
    value: Any
    steps: int


CASES = (
    Case("one step", chain(1), chain_by_hand, 1, 1, 1),
    Case("diamond", diamonds(1), diamonds_by_hand, 1, 1, 3),
    Case("chain of 100", chain(100), chain_by_hand, 100, 1, 100),
    Case("chain of 1500", chain(1500), chain_by_hand, 1500, 1, 1500),
    Case("fan of 100", fan(100), fan_by_hand, 100, 1, 101),
    Case("fan of 1000", fan(1000), fan_by_hand, 1000, 1, 1001),
    Case("33 diamonds", diamonds(33), diamonds_by_hand, 33, 1, 99),
    Case("50 switches", switches(50), switches_by_hand, 50, 1, 100),
    Case("map over 100", mapped(0), mapped_by_hand, 0, list(range(100)), 100),
    Case("map over 1000", mapped(0), mapped_by_hand, 0, list(range(1000)), 1000),
)


SYNC_CASES = ((1, 1), (10, 1), (10, 32))
"""Steps, and requests at a time."""


@dataclass(frozen=True)
class Result:
    """Medians in microseconds: of a whole request by hand and by the interpreter, and its own cost per step.

    ``in_process_us_per_step`` is the same with `InProcessCaller`, as ``execute`` uses it. ``rounds`` has all
    measurements: by hand, interpreter, in process.
    """

    name: str
    steps: int
    by_hand_us: float
    interpreter_us: float
    own_us_per_step: float
    in_process_us_per_step: float
    rounds: list[list[float]]


async def measure(case: Case, rounds: int) -> Result:
    node, context, program = Node(), RequestContext("benchmark"), Program(case.graph)
    bare = Bare(node)
    in_process = InProcessCaller({"n": NodeDefinition("n", Node, max_ongoing_requests=100_000)})
    args = (case.value,)
    ways: tuple[Callable[[], Awaitable[Any]], ...] = (
        lambda: case.by_hand(node, case.value, case.size),
        lambda: run(program, args, {}, bare, context),
        lambda: run(program, args, {}, in_process, context),
    )
    answers = [await way() for way in ways]
    if answers[1:] != answers[:-1]:
        raise SystemExit(f"{case.name}: the ways do not agree")
    repeat = max(1, 200 // case.steps)
    times: list[list[float]] = [[], [], []]
    gc.collect()
    for _ in range(rounds):
        for taken, way in zip(times, ways, strict=True):
            started = time.thread_time()
            for _ in range(repeat):
                await way()
                await asyncio.sleep(0)  # tasks that are left have their turn
            taken.append(round((time.thread_time() - started) / repeat * 1e6, 2))
    by_hand, interpreter, whole = (statistics.median(taken) for taken in times)
    await in_process.close()
    return Result(
        case.name,
        case.steps,
        round(by_hand, 1),
        round(interpreter, 1),
        round((interpreter - by_hand) / case.steps, 2),
        round((whole - by_hand) / case.steps, 2),
        times,
    )


@dataclass(frozen=True)
class SyncResult:
    """A chain of sync steps, so many requests at a time. Microseconds per step: medians of the bare calls and of the
    graph, the median and the quartiles of their ratios per round. ``rounds``: both in each round.
    """

    name: str
    steps: int
    at_once: int
    bare_us: float
    graph_us: float
    ratio: float
    quartiles: tuple[float, float]
    rounds: list[list[float]]


async def measure_sync(steps: int, at_once: int, rounds: int) -> SyncResult:
    node, context, program = SyncNode(), RequestContext("benchmark"), Program(chain(steps))
    in_process = InProcessCaller({"n": NodeDefinition("n", SyncNode, max_ongoing_requests=at_once)})
    loop = asyncio.get_running_loop()

    async def bare() -> Any:
        value: Any = 1
        for _ in range(steps):
            value = await loop.run_in_executor(pool, node.step, value)
        return value

    async def graph() -> Any:
        return await run(program, (1,), {}, in_process, context)

    times: list[list[float]] = []
    repeat = max(1, 100 // steps // at_once)
    with ThreadPoolExecutor(at_once) as pool:
        for number in range(rounds + 3):
            taken = []
            for way in (bare, graph) if number % 2 else (graph, bare):
                started = time.perf_counter()
                for _ in range(repeat):
                    answers = await asyncio.gather(*(way() for _ in range(at_once)))
                    if answers != [1] * at_once:
                        raise SystemExit(f"sync: {answers}")
                taken.append(round((time.perf_counter() - started) / (repeat * at_once * steps) * 1e6, 2))
            times.append(taken if number % 2 else taken[::-1])
    times = times[3:]  # the first ones start the threads
    await in_process.close()
    lower, middle, upper = statistics.quantiles((graph_us / bare_us for bare_us, graph_us in times), n=4)
    bare_us, graph_us = (statistics.median(column) for column in zip(*times, strict=True))
    name = f"{steps} sync step{'s' if steps > 1 else ''}"
    return SyncResult(
        name, steps, at_once, bare_us, graph_us, round(middle, 2), (round(lower, 2), round(upper, 2)), times
    )


async def measure_all(rounds: int) -> list[Result]:
    return [await measure(case, rounds) for case in CASES]


def main() -> int:
    parser = argparse.ArgumentParser(description="What the interpreter itself costs per step.")
    parser.add_argument("--rounds", type=int, default=60, help="measurements of each way (default 60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as JSON")
    parser.add_argument("--at-most", type=float, default=20.0, metavar="US", help="fail above this (default 20)")
    parser.add_argument("--sync-at-most", type=float, default=1.3, metavar="TIMES", help="fail above it (default 1.3)")
    options = parser.parse_args()
    results = asyncio.run(measure_all(options.rounds))
    print(f"{'graph':<15}{'steps':>6}{'by hand':>12}{'interpreter':>13}{'own/step':>10}{'in process':>12}   (us)")
    for result in results:
        print(
            f"{result.name:<15}{result.steps:>6}{result.by_hand_us:>12.1f}{result.interpreter_us:>13.1f}"
            f"{result.own_us_per_step:>10.2f}{result.in_process_us_per_step:>12.2f}"
        )
    sync = [asyncio.run(measure_sync(*case, options.rounds)) for case in SYNC_CASES]
    print(
        f"\n{'graph':<15}{'at once':>8}{'run_in_executor':>18}{'graph':>8}{'ratio':>8}{'quartiles':>14}   (us per step)"
    )
    for each in sync:
        quartiles = f"{each.quartiles[0]:.2f} to {each.quartiles[1]:.2f}"
        print(
            f"{each.name:<15}{each.at_once:>8}{each.bare_us:>18.1f}{each.graph_us:>8.1f}{each.ratio:>8.2f}{quartiles:>14}"
        )
    if options.json:
        figures = {"results": [asdict(result) for result in results], "sync": [asdict(result) for result in sync]}
        save(options.json, "interpreter", rounds=options.rounds, **figures)
    failed = [
        f"{result.name}: {result.in_process_us_per_step} us per step, more than {options.at_most:g}"
        for result in results
        if result.in_process_us_per_step > options.at_most
    ]
    failed += [
        f"{each.name}, {each.at_once} at once: {each.ratio} times run_in_executor, more than {options.sync_at_most:g}"
        for each in sync
        if each.steps > 1 and each.ratio > options.sync_at_most  # one step pays for the request by itself
    ]
    print("\n".join(failed), end="\n" if failed else "", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
