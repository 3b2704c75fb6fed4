"""What the interpreter costs without Ray: per step of async methods, and for a call of a sync one.

Both are of a chain of 100 steps, with the caller that ``execute`` uses. The async figure is that of
``benchmarks/interpreter.py``: CPU time, less what the hand-written coroutines take. The sync one is wall time, beside
100 calls of `loop.run_in_executor` with the same function.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import interpreter

from graphbench.cases import Case
from graphbench.figures import Sample
from graphbench.schedule import Pace
from servepipe.graph.calls import NodeDefinition, RequestContext
from servepipe.graph.inprocess import InProcessCaller
from servepipe.graph.interpreter import run
from servepipe.graph.program import Program

__all__ = ["rounds"]

STEPS = 100
TURNS = 15
ASYNC_ROUNDS = 30


async def rounds(case: Case, pace: Pace) -> AsyncGenerator[list[Sample], None]:
    """The samples of each round."""
    chosen = {load.name for load in case.loads}
    for number in range(1, pace.rounds + 1):
        found = []
        if "async" in chosen:
            us = await _async_us()
            found.append(Sample(case.name, "async", "interpreter", number, {"us_per_step": us}))
        if "sync" in chosen:
            for contestant, us in (await _sync_us()).items():
                found.append(Sample(case.name, "sync", contestant, number, {"us_per_call": us}))
        yield [sample for sample in found if sample.contestant in case.contestants]


async def _async_us() -> float:
    case = next(one for one in interpreter.CASES if one.name == f"chain of {STEPS}")
    return (await interpreter.measure(case, ASYNC_ROUNDS)).in_process_us_per_step


class Sync:
    """The least that a sync method can do."""

    def step(self, value: int) -> int:
        return value


async def _sync_us() -> dict[str, float]:
    """Microseconds for one call, each after the other; turn by turn, so that both see the same machine."""
    loop = asyncio.get_running_loop()
    caller = InProcessCaller({"n": NodeDefinition("n", Sync, max_ongoing_requests=100)})
    program, context = Program(interpreter.chain(STEPS)), RequestContext("benchmark")
    node = Sync()
    with ThreadPoolExecutor(5) as threads:

        async def by_hand() -> int:
            value = 1
            for _ in range(STEPS):
                value = await loop.run_in_executor(threads, node.step, value)
            return value

        ways: dict[str, Callable[[], Awaitable[int]]] = {
            "interpreter": lambda: run(program, (1,), {}, caller, context),
            "by-hand": by_hand,
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            assert await way() == 1
        gc.collect()
        for _ in range(TURNS):
            for name, way in ways.items():
                started = time.perf_counter()
                await way()
                times[name].append(time.perf_counter() - started)
    await caller.close()
    return {name: statistics.median(values) / STEPS * 1e6 for name, values in times.items()}
