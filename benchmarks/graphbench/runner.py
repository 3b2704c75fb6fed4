"""Runs the cases: starts what takes part, lets everybody take turns under load, and ends it all."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from graphbench import startup, steps
from graphbench.cases import Case, Load
from graphbench.client import DRAIN_S, order_for
from graphbench.contestants import CONTESTANTS, Contestant
from graphbench.driving import drive, filled
from graphbench.figures import Sample
from graphbench.freezing import Freezer
from graphbench.machine import CpuUse, cpu_of
from graphbench.schedule import Pace, Selection, order, plan, systems_of, window_s
from graphbench.systems.base import System, SystemFailedError
from graphbench.systems.http_services import HttpSystem, ReferenceSystem
from graphbench.systems.ray_serve import FLAGS, RaySystem
from graphbench.systems.up import PLACEMENTS, ServepipeUp

__all__ = ["Say", "run_all"]

Say = Callable[[str], None]
MARGIN_S = 30.0
SILENT_AT_MOST = 3


async def run_all(selection: Selection, pace: Pace, say: Say, keep: Callable[[list[Sample]], None]) -> list[Sample]:
    """Every case, one after the other; SIGINT and SIGTERM end it with everything that it started.

    A case that breaks off fails all who take part in it, and the next one follows.

    Args:
        keep: Given all samples so far after each round, so that what was measured is not lost.

    Raises:
        asyncio.CancelledError: It was interrupted.
    """
    here = asyncio.current_task()
    assert here is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, here.cancel)
    samples: list[Sample] = []
    for case in selection.cases:
        say(f"{case.name}: {case.title}")
        with tempfile.TemporaryDirectory(prefix="svb-", ignore_cleanup_errors=True) as folder:
            try:
                async with contextlib.aclosing(_rounds(case, pace, Path(folder), say)) as rounds:
                    async for found in rounds:
                        samples += found
                        keep(samples)
            except (Exception, SystemExit) as error:
                traceback.print_exc()
                say(f"  {case.name} broke off: {error!r}")
                samples += _broken_off(case, samples, repr(error))
                keep(samples)
    return samples


def _broken_off(case: Case, samples: Sequence[Sample], problem: str) -> list[Sample]:
    """A failure of everybody in the round that was not finished."""
    last = max((sample.round for sample in samples if sample.case == case.name), default=0)
    return [
        Sample(case.name, load.name, name, last + 1, problem=f"the case broke off: {problem}")
        for load in case.loads
        for name in case.contestants
    ]


def _rounds(case: Case, pace: Pace, folder: Path, say: Say) -> AsyncGenerator[list[Sample], None]:
    match case.kind:
        case "startup":
            return startup.rounds(case, pace, folder, say)
        case "steps":
            return steps.rounds(case, pace)
        case _:
            return _Turns(case, pace, folder, say).rounds()


class _Turns:
    """One case whose contestants are up together."""

    def __init__(self, case: Case, pace: Pace, folder: Path, say: Say) -> None:
        self._case, self._pace, self._folder, self._say = case, pace, folder, say
        self._systems: dict[str, System] = {}
        self._broken: dict[str, str] = {}
        self._failed: set[str] = set()
        self._silent: dict[str, int] = {}
        self._given_up: dict[str, str] = {}
        self._freezer: Freezer | None = None
        self._ending = contextlib.ExitStack()

    async def rounds(self) -> AsyncGenerator[list[Sample], None]:
        """The samples of each round. A system that does not start fails its contestants, and nobody else."""
        try:
            self._freezer = self._ending.enter_context(Freezer()) if self._pace.freeze else None
            for name in systems_of(self._case):
                await self._start(name)
            rounds = plan(self._case, self._pace)
            for number, loads in enumerate(rounds, 1):
                turns = order(self._case.contestants, number)
                found = [await self._measure(load, CONTESTANTS[name], number) for load in loads for name in turns]
                self._say(f"  round {number} of {len(rounds)}: {_short(found, self._case, loads[-1])}")
                yield found
        finally:
            self._ending.close()
            ends = [system.stop() for system in self._systems.values()]
            for error in await _finish(asyncio.gather(*ends, return_exceptions=True)):
                if error is not None:
                    self._say(f"  at the end: {error!r}")

    async def _start(self, name: str) -> None:
        folder = self._folder / name
        folder.mkdir()
        self._systems[name] = system = self._make(name, folder)
        try:
            async with self._turn(name):
                began = time.perf_counter()
                await system.start()
                self._say(f"  {name} is up after {time.perf_counter() - began:.0f} s")
                await self._first_warmup(name)
        except SystemFailedError as error:
            self._broken[name] = str(error)
            self._say(f"  {name} did not start: {error}")

    def _make(self, name: str, folder: Path) -> System:
        if name in PLACEMENTS:
            return ServepipeUp(self._case, name, folder)
        if name == "http":
            return HttpSystem(self._case, folder)
        if name == "reference":
            return ReferenceSystem(self._case, folder)
        return RaySystem(self._case, self._mine(name), folder, flags=FLAGS[name], taken=self._taken)

    def _taken(self) -> list[int]:
        rays = [system for system in self._systems.values() if isinstance(system, RaySystem)]
        return [port for ray in rays for port in ray.ports()]

    async def _first_warmup(self, name: str) -> None:
        """Connections, caches and code that is used for the first time are not what is measured; and what a system has
        still to do after its start is done before it is stopped for the first time.
        """
        largest = max(self._case.loads, key=lambda load: load.connections)
        for contestant in self._mine(name):
            await self._load(contestant, largest, self._pace.first_warmup_s, 0.0)

    def _mine(self, name: str) -> list[Contestant]:
        """The contestants that run on a system."""
        return [CONTESTANTS[one] for one in self._case.contestants if CONTESTANTS[one].system == name]

    @contextlib.asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[dict[str, list[int]]]:
        """Give the machine to a system; the processes of all."""
        pids = {one: system.pids() for one, system in self._systems.items()}
        async with self._freezer.turn(name, pids) if self._freezer else contextlib.nullcontext():
            yield pids

    async def _measure(self, load: Load, contestant: Contestant, number: int) -> Sample:
        place = (self._case.name, load.name, contestant.name, number)
        if problem := self._broken.get(contestant.system) or self._given_up.get(contestant.name):
            return Sample(*place, problem=problem)
        async with self._turn(contestant.system) as pids:
            before = {name: cpu_of(found) for name, found in pids.items()}
            machine, began = CpuUse.now(), time.perf_counter()
            result = await self._load(contestant, load, window_s(load, self._pace.seconds), self._pace.warmup_s)
            used, wall_s = CpuUse.now().since(machine), time.perf_counter() - began
        spent = {name: cpu_of(found) - before[name] for name, found in pids.items()}
        details = _details(result, spent, contestant.system, used, wall_s)
        self._look_at(contestant, load, result)
        return Sample(*place, figures=result["figures"], problem=result["problem"], details=details)

    def _look_at(self, contestant: Contestant, load: Load, result: dict[str, Any]) -> None:
        """Tell the first failure of each, and give up on one that answers nothing again and again: each time takes as
        long as answers are waited for.
        """
        if result["problem"] and contestant.name not in self._failed:
            self._failed.add(contestant.name)
            why = self._systems[contestant.system].why()
            self._say(f"  {contestant.name} failed at {load.name!r}: {result['problem']}\n{why}".rstrip())
        if result["figures"]:
            self._silent.pop(contestant.name, None)
            return
        self._silent[contestant.name] = self._silent.get(contestant.name, 0) + 1
        if self._silent[contestant.name] >= SILENT_AT_MOST:
            self._given_up[contestant.name] = f"given up: {result['problem']}"
            self._say(f"  {contestant.name}: {self._given_up[contestant.name]}")

    async def _load(self, contestant: Contestant, load: Load, seconds: float, warmup_s: float) -> dict[str, Any]:
        reference = contestant.system == "reference"
        instructions = order_for(
            self._systems[contestant.system].url(contestant),
            load.connections,
            [filled(one) for one in (load.requests[:1] if reference else load.requests)],
            seconds=seconds,
            warmup_s=warmup_s,
            noop=contestant.name == "noop",
        )
        return await drive(instructions, seconds + warmup_s + DRAIN_S + MARGIN_S)


def _details(
    result: dict[str, Any], spent: dict[str, float], system: str, used: CpuUse, wall_s: float
) -> dict[str, Any]:
    requests = result.get("requests", 0)
    if not requests:
        return {}
    foreign = used.busy_s - sum(spent.values()) - result["whole_cpu_s"]
    idle = sum(seconds for name, seconds in spent.items() if name != system)
    return {
        "requests": requests,
        "failed": result["failed"],
        "reconnected": result["reconnected"],
        "system_cpu_ms_per_request": round(spent[system] / requests * 1000, 4),
        "client_cpu_ms_per_request": round(result["cpu_s"] / requests * 1000, 4),
        # In cores: those that only wait for their turn, everybody else's, and what the hypervisor gave to others.
        "waiting_cores": round(idle / wall_s, 3),
        "foreign_cores": round(max(0.0, foreign) / wall_s, 3),
        "stolen_cores": round(used.stolen_s / wall_s, 3),
    }


def _short(samples: Iterable[Sample], case: Case, load: Load) -> str:
    shown = [s for s in samples if s.load == load.name]
    words = [
        f"{s.contestant} " + ("failed" if s.problem else f"{s.figures['throughput']:.0f}/s")
        for s in sorted(shown, key=lambda s: case.contestants.index(s.contestant))
    ]
    return f"[{load.name}] " + ", ".join(words)


async def _finish(stopping: asyncio.Future[list[Any]]) -> list[Any]:
    """Through to the end, also when this is cancelled meanwhile: nothing may be left behind."""
    while not stopping.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(stopping)
    return stopping.result()
