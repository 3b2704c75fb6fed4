"""The operator is killed at every write, and nothing of it is to be seen in the end.

A pipeline goes through a change with an operator that sends SIGKILL to itself once its k-th write was answered, and one
more that dies before its first; then another operator is started. What is there between a write and the next one is
the same whether the process dies after the one or before the other: nothing of it but the writes survives. So these
are the deaths before and after each of them. All are real processes that die of SIGKILL (see `crash_operator`).
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from bed.control_plane import ControlPlane
from crash_points import WAIT_S, Chain, Kill, Operators, Reference, Scenario
from kuberay.control import KubeRay
from pipelines import Pipelines

Json = dict[str, Any]

AT_ONCE = 8
#: Status is written as often as it changes between looks, so that one run has some writes more or less than another:
#: this many of a short one, a quarter of a long one.
SLACK = 3


def model(*args: Any, **more: Any) -> Json:
    # Small, so that all of them share one pod.
    return {"import": "models:Model", "args": list(args), "resources": {"cpu": "500m"}, **more}


def spec(nodes: Json, image: str, **more: Any) -> Json:
    graph = {
        "steps": [{"name": f"{node}-out", "node": node, "args": [{"$input": []}]} for node in nodes],
        "output": [{"$step": f"{node}-out"} for node in nodes],
    }
    return {"image": image, "graph": graph, "nodes": nodes, "ingress": {"replicas": 2}, **more}


def settled(live: Json) -> bool:
    """Ready, and nothing is under way."""
    ready = Pipelines.condition(live, "Ready")
    current = ready.get("observedGeneration") == live["metadata"]["generation"]
    return current and ready.get("status") == "True" and not Pipelines.condition(live, "Reconciling")


def suspended(live: Json) -> bool:
    cluster = Pipelines.condition(live, "ClusterReady")
    current = cluster.get("observedGeneration") == live["metadata"]["generation"]
    return current and cluster.get("reason") == "Suspended" and not Pipelines.condition(live, "Reconciling")


def scenarios() -> list[Scenario]:
    """After the first in the order of their writes, most first: a chain ends where it had fewer than it wanted."""
    first, second = "shop/models:1", "shop/models:2"
    two = {"m1": model("good", 1), "m2": model("good", 2)}
    changed = {**two, "m1": model("good", 7)}
    three = {**changed, "m3": model("good", 3)}
    scaled = {**three, "m1": model("good", 7, replicas=3)}
    return [
        Scenario("create", spec(two, first), settled),
        Scenario("image", spec(two, second), settled, callers=True),
        Scenario("node", spec(changed, second), settled, callers=True),
        Scenario("graph", spec(three, second), settled, callers=True),
        Scenario("suspend", spec(three, second, suspend=True), suspended),
        Scenario("resume", spec(three, second), settled),
        Scenario("scale", spec(scaled, second), settled, callers=True),
    ]


@pytest.fixture(scope="module")
def operators(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operators]:
    running = Operators(tmp_path_factory.mktemp("operators"), control_plane)
    yield running
    running.close()


class Matrix:
    """All chains: that of the uninterrupted run, and one for each k, as many at once as `AT_ONCE`."""

    def __init__(self, plane: ControlPlane, kuberay: KubeRay, operators: Operators) -> None:
        self._plane, self._kuberay, self._operators = plane, kuberay, operators
        self.steps = scenarios()
        self.references = {step.name: Reference() for step in self.steps}
        self.killed: set[tuple[str, Kill]] = set()
        self.whole: dict[str, list[int]] = {step.name: [] for step in self.steps}
        """How many writes the runs had in which nobody was killed."""
        self.failures: list[str] = []
        self.deleting: list[str] = []
        later = ((number, "after") for number in itertools.count(1))
        self._kills: Iterator[Kill] = itertools.chain([(1, "before")], later)
        self._lock = threading.Lock()

    def run(self) -> None:
        with ThreadPoolExecutor(AT_ONCE + 1) as pool:
            running = [pool.submit(self._chain, None), *(pool.submit(self._chains) for _ in range(AT_ONCE))]
        for one in running:
            one.result()

    def _chains(self) -> None:
        while True:
            with self._lock:
                kill = next(self._kills)
            if kill[0] > AT_ONCE and kill[0] > self._most() + 1:
                return
            self._chain(kill)

    def _most(self) -> int:
        """Writes of the longest steps, which are the first two; 0 where that is not to be had."""
        try:
            return max(map(self._writes, self.steps[:2]))
        except (AssertionError, TimeoutError):
            return 0  # the uninterrupted run tells why

    def _writes(self, step: Scenario) -> int:
        """How many the uninterrupted run had."""
        return len(self.references[step.name].writes.result(WAIT_S))

    def _chain(self, kill: Kill | None) -> None:
        try:
            chain = Chain(self._operators, self._plane, self._kuberay, kill)
            for at, step in enumerate(self.steps):
                if kill and at and kill[0] > self._writes(step) + 1:
                    return  # what comes after this one has fewer still
                chain.run(step, self.references[step.name])
                if kill and step.name in chain.killed:
                    self.killed.add((step.name, kill))
                else:
                    self.whole[step.name].append(chain.whole[step.name])
            self.deleting += chain.remove()
        except Exception as error:
            self.failures.append(f"killed at {kill}: {error}")
            if kill is None:  # nobody has anything to compare with
                for reference in self.references.values():
                    for future in (reference.writes, reference.objects):
                        if not future.done():
                            future.set_exception(AssertionError("the uninterrupted run failed"))


def test_killed_at_every_write(
    control_plane: ControlPlane, kuberay: KubeRay, operators: Operators, summary: list[str]
) -> None:
    matrix = Matrix(control_plane, kuberay, operators)
    matrix.run()

    points = Counter(step for step, _ in matrix.killed)
    told = ", ".join(f"{step.name} {points[step.name]}" for step in matrix.steps)
    summary.append(f"the operator was killed at {len(matrix.killed)} points between writes: {told}")
    assert not matrix.failures, f"{len(matrix.failures)} chains failed; the first:\n" + "\n\n".join(matrix.failures[:3])
    for step in matrix.steps:
        # Each was tried up to one more than the uninterrupted run had, and every run had the fewest at least.
        count, fewest = len(matrix.references[step.name].writes.result()), min(matrix.whole[step.name])
        assert fewest >= count - max(SLACK, count // 4), (step.name, matrix.whole[step.name])
        wanted: set[Kill] = {(1, "before"), *((number, "after") for number in range(1, min(fewest, count) + 1))}
        assert wanted <= {kill for name, kill in matrix.killed if name == step.name}, step.name
    # What a pipeline owns is taken away by the garbage collector. A look that was under way can put something back,
    # which goes likewise, as its owner is gone; each chain has waited until nothing was left.
    count = len(matrix.deleting)
    summary.append(f"while pipelines were deleted, looks under way wrote {count} times; nothing was left of them")
