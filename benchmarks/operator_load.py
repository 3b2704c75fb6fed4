"""What the operator costs: many pipelines applied at once, left alone for a while, then changed.

On the real API server of `tests/kube`, with simulated Serve (`operator_bed`). For each size it reports

- seconds from the first create until all are Ready, and the operator's peak memory,
- the operator's requests to the API server by verb, and Serve PUTs, per pipeline,
- requests and CPU seconds per minute once all is steady,
- seconds from the change of one node of a pipeline to its first PUT, and until the pipeline is Ready again,
- CPU seconds of operator, API server, etcd and stand-in apart: where their sum is what the machine has, the bed is
  the limit and not the operator.

The goals are printed beside the figures and fail nothing.

    python benchmarks/operator_load.py [--pipelines 200 1000] [--json FILE] [--set SERVEPIPE_API_PER_S=100]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from operator_bed import NAMESPACE, Bed, bed, peak_mb

from kuberay.api import Api  # isort: skip  (`operator_bed` has put it on the path)

Json = dict[str, Any]
PATH = f"/apis/servepipe.dev/v1alpha1/namespaces/{NAMESPACE}/servepipelines"
AT_ONCE = 16
#: Seconds until all are Ready, by the number of pipelines.
READY_GOALS_S = {200: 20.0, 1000: 60.0}
MEMORY_GOAL_MB = 150.0
CHANGE_GOAL_S = 1.0


def resource(name: str, change: int = 0) -> Json:
    """Two nodes with a replica each, side by side; ``change`` is an argument of the first."""
    nodes = {"m1": ["good", change], "m2": ["good", 0]}
    return {
        "apiVersion": "servepipe.dev/v1alpha1",
        "kind": "ServePipeline",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "image": "shop/models:1",
            "graph": {
                "steps": [{"name": f"{node}-out", "node": node, "args": [{"$input": []}]} for node in nodes],
                "output": [{"$step": f"{node}-out"} for node in nodes],
            },
            "nodes": {node: {"import": "models:Model", "args": args} for node, args in nodes.items()},
        },
    }


class Fleet:
    """The pipelines as a watch sees them. Times are seconds since the epoch, as the stand-in notes its PUTs."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.live: dict[str, Json] = {}
        self.ready_at: dict[str, float] = {}
        self._changed = asyncio.Event()

    async def follow(self) -> None:
        """For ever."""
        version = (await self._api.get(PATH))["metadata"]["resourceVersion"]
        while True:
            async for event in self._api.watch(PATH, version):
                found = event["object"]
                version = found["metadata"]["resourceVersion"]
                if event["type"] in ("ADDED", "MODIFIED"):
                    self._see(found)

    def _see(self, found: Json) -> None:
        name = found["metadata"]["name"]
        self.live[name] = found
        if condition(found, "Ready") and name not in self.ready_at:
            self.ready_at[name] = time.time()
        self._changed.set()

    async def wait(self, what: str, count: Callable[[], int], wanted: int, timeout: float) -> None:
        """Until ``count`` reaches ``wanted``. Raises SystemExit at the deadline, in seconds."""
        deadline = time.monotonic() + timeout
        told = time.monotonic()
        while (now := count()) < wanted:
            if time.monotonic() > deadline:
                raise SystemExit(f"waited {timeout:g} s for {what}: {now} of {wanted}")
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"  {what}: {now} of {wanted}", file=sys.stderr, flush=True)
            self._changed.clear()
            try:
                async with asyncio.timeout(1):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def settled(self) -> int:
        """How many are Ready with nothing under way."""
        return sum(condition(one, "Ready") and not condition(one, "Reconciling") for one in self.live.values())


def condition(live: Json, kind: str) -> bool:
    """Whether it is True of the resource as it stands."""
    for one in live.get("status", {}).get("conditions", ()):
        if one["type"] == kind:
            current: bool = one.get("observedGeneration") == live["metadata"]["generation"]
            return current and one["status"] == "True"
    return False


@dataclass(frozen=True)
class Span:
    """What a while cost.

    Args:
        requests: Of the operator to the API server, by verb and resource.
        looks: Of the operator at a pipeline.
        dashboard_gets: Of the operator to Serve's REST API, over a sample of RayClusters, per pipeline.
        cpu_s: By process.
    """

    seconds: float
    requests: dict[str, int]
    looks: int
    puts: int
    cpu_s: dict[str, float]

    @property
    def by_verb(self) -> dict[str, int]:
        """Requests by verb, the most frequent first."""
        found: Counter[str] = Counter()
        for name, count in self.requests.items():
            found[name.split()[0]] += count
        return dict(found.most_common())


class Meter:
    """Measures from now on."""

    def __init__(self, bed: Bed) -> None:
        self._bed, self._began = bed, time.monotonic()
        self._before = self._now()

    def _now(self) -> tuple[Counter[str], int, int, Counter[str]]:
        return self._bed.requests(), self._bed.looks(), sum(self._bed.puts().values()), self._bed.cpu()

    def stop(self) -> Span:
        """What it cost so far."""
        seconds = time.monotonic() - self._began
        requests, looks, puts, cpu = self._now()
        before = self._before
        used = {name: round(cpu[name] - before[3][name], 2) for name in cpu}
        return Span(round(seconds, 2), dict(requests - before[0]), looks - before[1], puts - before[2], used)


@dataclass
class Result:
    """Figures of one size. Seconds unless said otherwise.

    Args:
        ready_s: From the first create until all were Ready.
        load: From the first create until nothing was under way any more.
        to_put: p50, p99 and most from a change to the first PUT of it.
        to_ready: Likewise until the pipeline was Ready again.
    """

    pipelines: int
    settings: dict[str, str]
    applied_s: float = 0.0
    ready_s: float = 0.0
    peak_mb: float = 0.0
    load: Span = field(default_factory=lambda: Span(0, {}, 0, 0, {}))
    steady: Span = field(default_factory=lambda: Span(0, {}, 0, 0, {}))
    changes: int = 0
    change: Span = field(default_factory=lambda: Span(0, {}, 0, 0, {}))
    to_put: dict[str, float] = field(default_factory=dict)
    to_ready: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


async def measure(bed: Bed, result: Result, options: argparse.Namespace) -> None:
    """Fill ``result``."""
    async with Api(bed.plane.kubeconfig) as api, asyncio.TaskGroup() as group:
        fleet = Fleet(api)
        following = group.create_task(fleet.follow())
        names = [f"p{number:04d}" for number in range(result.pipelines)]
        await _load(bed, api, fleet, names, result, options.timeout)
        await _steady(bed, result, options.steady)
        await _change(bed, api, fleet, names[: options.changes], result, options)
        following.cancel()
    result.peak_mb = round(peak_mb(bed.operator.pid), 1)
    result.errors = _troubles(bed)


async def _load(bed: Bed, api: Api, fleet: Fleet, names: Sequence[str], result: Result, timeout: float) -> None:
    meter, began = Meter(bed), time.time()
    await _each(names, lambda name: api.create(PATH, resource(name)))
    result.applied_s = round(time.time() - began, 2)
    await fleet.wait("pipelines that were Ready", lambda: len(fleet.ready_at), len(names), timeout)
    result.ready_s = round(max(fleet.ready_at.values()) - began, 2)
    await fleet.wait("pipelines with nothing under way", fleet.settled, len(names), timeout)
    await _calm(bed, timeout)
    result.load = meter.stop()


def _troubles(bed: Bed) -> list[str]:
    """What the operator's log warns of, the most frequent first, without numbers and hashes."""
    told = Counter(
        re.sub(r"[0-9a-f]*[0-9][0-9a-f.]*", "N", f"{record['level']}: {record['message']}")[:160]
        for record in bed.operator.logs()
        if record["level"] != "info"
    )
    return [f"{count} x {text}" for text, count in told.most_common()]


async def _calm(bed: Bed, timeout: float) -> None:
    """Until the operator has written nothing for some seconds."""

    def writes() -> int:
        return sum(n for name, n in bed.requests().items() if name.split()[0] in ("create", "patch", "apply", "delete"))

    deadline, before = time.monotonic() + timeout, -1
    while before != (before := writes()):
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {timeout:g} s for the operator to write nothing for 12 s")
        await asyncio.sleep(12)  # longer than the operator waits between looks


async def _steady(bed: Bed, result: Result, seconds: float) -> None:
    meter = Meter(bed)
    await asyncio.sleep(seconds)  # it is this while that is measured
    result.steady = meter.stop()


async def _change(
    bed: Bed, api: Api, fleet: Fleet, names: Sequence[str], result: Result, options: argparse.Namespace
) -> None:
    """One node of each, at a steady rate; a PUT that comes after the change is its first."""
    meter = Meter(bed)
    changed_at: dict[str, float] = {}
    fleet.ready_at.clear()
    clusters = {name: fleet.live[name]["status"]["clusters"][0]["name"] for name in names}
    began = time.monotonic()

    async def change(number: int, name: str) -> None:
        await asyncio.sleep(max(0.0, began + number / options.changes_per_s - time.monotonic()))
        changed_at[name] = time.time()
        await api.patch(f"{PATH}/{name}", {"spec": {"nodes": {"m1": {"args": ["good", 1]}}}})

    async with asyncio.TaskGroup() as group:
        for number, name in enumerate(names):
            group.create_task(change(number, name))

    def again() -> int:
        return sum(condition(fleet.live[name], "Ready") and _after(fleet, name) for name in names)

    def _after(fleet: Fleet, name: str) -> bool:
        return fleet.live[name]["metadata"]["generation"] > 1

    await fleet.wait("changed pipelines that are Ready again", again, len(names), options.timeout)
    result.change = meter.stop()
    result.changes = len(names)
    to_put = []
    for name in names:
        puts = [put.at for put in bed.kuberay.last_puts(NAMESPACE, clusters[name]) if put.at >= changed_at[name]]
        to_put.append(min(puts) - changed_at[name])
    result.to_put = _percentiles(to_put)
    result.to_ready = _percentiles([fleet.ready_at[name] - changed_at[name] for name in names])


async def _each(names: Sequence[str], work: Callable[[str], Any]) -> None:
    """A few at once."""
    left = iter(names)

    async def worker() -> None:
        for name in left:
            await work(name)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 3)

    return {"p50": at(0.5), "p99": at(0.99), "most": at(1.0)} if ordered else {}


def report(result: Result) -> None:
    """Print it, goals beside."""
    count = result.pipelines
    goal = READY_GOALS_S.get(count)
    print(f"\n{count} pipelines of two nodes{_settings(result.settings)}")
    _line(
        "all Ready after", f"{result.ready_s:.1f} s", f"{goal:g} s" if goal else "", f"applied in {result.applied_s} s"
    )
    _line("operator's peak memory", f"{result.peak_mb:.0f} MB", f"{MEMORY_GOAL_MB:g} MB")
    if result.to_put:
        told = f"p50 {result.to_put['p50']:.2f} s, most {result.to_put['most']:.2f} s; {result.changes} changes"
        _line("change to first PUT, p99", f"{result.to_put['p99']:.2f} s", f"{CHANGE_GOAL_S:g} s", told)
        told = f"p50 {result.to_ready['p50']:.2f} s, most {result.to_ready['most']:.2f} s"
        _line("change to Ready again, p99", f"{result.to_ready['p99']:.2f} s", "", told)
    load, steady, change = result.load, result.steady, result.change
    verbs = ", ".join(f"{verb} {n / count:.1f}" for verb, n in load.by_verb.items() if n >= count / 20)
    _line("API requests per pipeline", f"{sum(load.requests.values()) / count:.1f}", "", verbs)
    _line("Serve PUTs per pipeline", f"{load.puts / count:.2f}", "", f"{load.looks / count:.1f} looks")
    if result.changes:
        verbs = ", ".join(f"{v} {n / result.changes:.1f}" for v, n in change.by_verb.items() if n >= count / 20)
        _line("API requests per change", f"{sum(change.requests.values()) / result.changes:.1f}", "", verbs)
        _line("Serve PUTs per change", f"{change.puts / result.changes:.2f}")
    per_minute = 60 / (steady.seconds or math.inf)
    verbs = ", ".join(f"{verb} {n * per_minute:.0f}" for verb, n in steady.by_verb.items())
    _line("steady: API requests per min", f"{sum(steady.requests.values()) * per_minute:.0f}", "", verbs)
    told = f"{steady.puts} PUTs, {steady.looks * per_minute:.0f} looks"
    _line("steady: operator's CPU per min", f"{steady.cpu_s.get('operator', 0) * per_minute:.1f} s", "", told)
    for name, span in (("load", load), ("steady", steady), ("changes", change)):
        used = ", ".join(f"{who} {s:.1f}" for who, s in span.cpu_s.items())
        share = sum(span.cpu_s.values()) / ((span.seconds or math.inf) * (os.cpu_count() or 1))
        _line(f"CPU seconds, {name}", f"{share:.0%}", "", f"of the machine in {span.seconds:.0f} s: {used}")
    for line in result.errors[:5]:
        _line("the operator's log has", "", "", line)


def _settings(settings: dict[str, str]) -> str:
    return "".join(f", {name}={value}" for name, value in settings.items())


def _line(what: str, value: str, goal: str = "", told: str = "") -> None:
    print(f"  {what:<31}{value:>9}  {'goal ' + goal if goal else '':<12}{told}".rstrip())


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} has to be NAME=VALUE")
    return name, value


def main() -> int:
    parser = argparse.ArgumentParser(description="What the operator costs on a real API server with simulated Serve.")
    parser.add_argument("--pipelines", type=int, nargs="+", default=[200, 1000], help="sizes (default 200 1000)")
    parser.add_argument("--steady", type=float, default=60, metavar="S", help="to watch the steady state (default 60)")
    parser.add_argument("--changes", type=int, default=200, metavar="N", help="pipelines to change (default 200)")
    parser.add_argument("--changes-per-s", type=float, default=5.0, metavar="N", help="(default 5)")
    parser.add_argument("--timeout", type=float, default=900, metavar="S", help="for each wait (default 900)")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", dest="settings")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the logs of all processes there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as JSON")
    options = parser.parse_args()
    if sys.platform != "linux":
        print("operator_load: left out, its figures come from /proc of Linux")
        return 0
    results = []
    for count in options.pipelines:
        with ExitStack() as stack:
            folder = (
                options.logs / str(count) if options.logs else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            )
            folder.mkdir(parents=True, exist_ok=True)
            result = Result(count, dict(options.settings))
            asyncio.run(measure(stack.enter_context(bed(folder, result.settings)), result, options))
        report(result)
        results.append(result)
    if options.json:
        figures = {
            "benchmark": "operator",
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "goals": {"ready_s": READY_GOALS_S, "peak_mb": MEMORY_GOAL_MB, "change_to_put_p99_s": CHANGE_GOAL_S},
            "results": [asdict(result) for result in results],
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
