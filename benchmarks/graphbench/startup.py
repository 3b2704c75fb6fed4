"""The time from the first application to the last that runs, and what a replica weighs.

Each contestant has the machine for itself, turn by turn inside each round. The clock starts when Serve shows the first
application of the configuration, so that starting Ray and Serve, the same for both, does not hide the difference; it
stops when everything runs (for servepipe: the pipeline is Ready). The whole time, from a Ray that is up, is told too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from graphbench.cases import Case
from graphbench.client import DRAIN_S, order_for
from graphbench.contestants import CONTESTANTS
from graphbench.driving import drive
from graphbench.figures import Sample
from graphbench.machine import cpu_of, memory_mb
from graphbench.schedule import Pace, order, plan
from graphbench.systems.base import SystemFailedError, wait_for
from graphbench.systems.ray_serve import FLAGS, RaySystem
from graphbench.systems.up import ServepipeUp
from servepipe_operator.adapters.serve_api import RayServeApi
from servepipe_operator.ports import UnreachableError

__all__ = ["rounds"]

START_S = 600.0
USE_S = 1.0


async def rounds(
    case: Case, pace: Pace, folder: Path, say: Callable[[str], None]
) -> AsyncGenerator[list[Sample], None]:
    """The samples of each round."""
    last = len(plan(case, pace))
    for number in range(1, last + 1):
        found = []
        for name in order(case.contestants, number):
            # With a parent of its own: a run that finds the records of an earlier one is no first start.
            own = folder / f"{number}-{name}" / "run"
            own.mkdir(parents=True)
            place = (case.name, case.loads[0].name, name, number)
            try:
                figures = await (_servepipe if CONTESTANTS[name].ours else _by_hand)(case, own)
            except SystemFailedError as error:
                found.append(Sample(*place, problem=str(error)))
            else:
                found.append(Sample(*place, figures=figures))
        say(f"  round {number} of {last}: " + ", ".join(f"{s.contestant} {_told(s)}" for s in found))
        yield found


def _told(sample: Sample) -> str:
    if sample.problem:
        return "failed"
    return f"{sample.figures['running_s']:.1f} s, {sample.figures['replica_mb']:.0f} MB a replica"


async def _servepipe(case: Case, folder: Path) -> dict[str, float]:
    """`servepipe up` of eight nodes."""
    up = ServepipeUp(case, "up-separate", folder)
    try:
        started = time.perf_counter()
        await up.launch()

        async def ray_is_up() -> dict[str, Any] | None:
            run = up.run_record()
            await up.snapshot()
            return run if run and run.get("ray_dashboard") else None

        run = await wait_for("Ray's dashboard", ray_is_up, START_S)
        ray, before = time.perf_counter(), cpu_of(up.pids())
        token = await asyncio.to_thread(Path(run["ray_token_file"]).read_text)
        async with aiohttp.ClientSession() as session:
            serve = RayServeApi(session, run["ray_dashboard"], token)

            async def deploying() -> bool | None:
                try:
                    return True if await serve.applications() else None
                except UnreachableError:
                    return None

            await wait_for("the first application", deploying, START_S)
        first = time.perf_counter()
        await wait_for("eight nodes that run", up.settled, START_S)
        done = time.perf_counter()
        cpu_s = cpu_of(up.pids()) - before
        await _use(case, up.url(CONTESTANTS["separate"]))
        return _figures(started, ray, first, done, cpu_s, up.replica_pids())
    finally:
        await up.stop()


async def _by_hand(case: Case, folder: Path) -> dict[str, float]:
    """One application of eight deployments and an ingress, on a tuned Serve."""
    contestant = CONTESTANTS["serve-tuned"]
    system = RaySystem(case, [contestant], folder, flags=FLAGS["serve-tuned"], taken=list)
    try:
        started = time.perf_counter()
        await system.start_ray()
        ray, before = time.perf_counter(), cpu_of(system.pids())
        putting = asyncio.create_task(system.deploy())

        async def deploying() -> bool | None:
            if putting.done():
                putting.result()
            return True if await system.applications() else None

        try:
            await wait_for("the application", deploying, START_S)
            first = time.perf_counter()
            await putting
            await wait_for("eight deployments that run", system.running, START_S)
        finally:
            putting.cancel()
        done = time.perf_counter()
        cpu_s = cpu_of(system.pids()) - before
        await _use(case, system.url(contestant))
        return _figures(started, ray, first, done, cpu_s, system.replica_pids())
    finally:
        await system.stop()


async def _use(case: Case, url: str) -> None:
    """Some right answers: what runs answers, and a replica that was never used weighs less."""
    load = case.loads[0]
    instructions = order_for(url, load.connections, load.requests, seconds=USE_S, warmup_s=0.0)
    result = await drive(instructions, USE_S + 2 * DRAIN_S)
    if result["problem"]:
        raise SystemFailedError(result["problem"])


def _figures(started: float, ray: float, first: float, done: float, cpu_s: float, pids: list[int]) -> dict[str, float]:
    """``replica_mb`` is the proportional set size: what is shared between processes counts once."""
    memory = memory_mb(pids)
    return {
        "running_s": done - first,
        "from_ray_s": done - ray,
        "ray_s": ray - started,
        "cpu_s": cpu_s,
        "replica_mb": median(one["pss"] for one in memory),
        "replica_rss_mb": median(one["rss"] for one in memory),
        "replica_uss_mb": median(one["uss"] for one in memory),
    }
