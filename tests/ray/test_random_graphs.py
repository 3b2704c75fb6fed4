"""Random graphs mean on real Ray Serve what plain Python says they mean: the same graphs as in process, more slowly.

Each graph is deployed as the engine would do it: classes as applications of their own, plain functions Inline. All
graphs call their nodes ``n0``, ``n1`` and so on, so here each graph is a *revision* of them: from one graph to the next
only the ingress's table changes, in place, with all the nodes of all the graphs running.

What two processes leave open is left open here as well, and nothing else:

- A timeout of 5 ms may pass before the call has reached its node: such a step is not sure to be counted there.
- Over HTTP an answer is JSON: a tuple arrives as a list. And not every call can be written as a JSON body: a list as
  the only argument would be taken for several, an object for keywords. Such graphs are asked over the handle.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from random_graphs import KINDS, RandomGraph, expect, random_graph

from servepipe.graph import ir
from servepipe.graph.calls import RequestContext
from servepipe.graph.expressions import dump_expr, dump_list
from servepipe.graph.failures import failed_step
from servepipe.graph.wire import dump_graph

pytestmark = pytest.mark.ray

SIZES = [size for size in range(1, 41) if size % 3]
CANDIDATES = 8
DEDICATED = ((1,), (1,), (2,))
"""How many Dedicated nodes a graph may have, in turn: each is a process, whose start takes seconds of a processor."""
LARGE, MANY_DEDICATED = 31, (4,)
"""The graph of this size has more of them: requests that go through several processes."""
AT_ONCE = 12
"""So many applications start at the same time: Serve builds each in a process of its own."""
SLOTS = 1000
REQUEST_TIMEOUT_S = 60
SHORT_S = 1.0


@cache
def examples() -> dict[str, RandomGraph]:
    """By revision: for each size the graph that adds the most to what the smaller ones have; every sixth fails."""
    chosen: dict[str, RandomGraph] = {}
    seen: set[str] = set()
    for index, size in enumerate(SIZES):
        numbers = MANY_DEDICATED if size == LARGE else DEDICATED[index % len(DEDICATED)]
        fitting = (
            example
            for example in (random_graph(seed, size) for seed in itertools.count())
            if len(example.graph.steps) == size
            and len(classes(example)) in numbers
            and (index % 6 != 5 or not expect(example, example.load()).ok)
        )
        best = max(itertools.islice(fitting, CANDIDATES), key=lambda example: len(example.kinds.keys() - seen))
        seen |= best.kinds.keys()
        chosen[f"g{size}"] = best
    return chosen


def classes(example: RandomGraph) -> list[str]:
    """The nodes that Auto makes Dedicated: those with a constructor. Every generated class has arguments."""
    return [name for name, (_, args, _) in example.nodes.items() if args]


@dataclass
class Failure:
    """A request that failed: the HTTP status that says so, the step that it names, and what it says."""

    status: int
    step: str
    message: str


def failure_status(step: ir.Step) -> int:
    """Steps of random graphs raise, are a switch without the case, or take too long; nothing is ever not ready."""
    return 504 if isinstance(step, ir.Call) and step.method == "hang" else 500


@dataclass
class Deployed:
    """All graphs' nodes, running, and the ingress in front of them."""

    serve: Any
    folder: Path
    nodes: list[dict[str, Any]]
    handle: Any
    """One Serve handle to the ingress for all tests: each has a router that learns of every change by itself."""

    def ingress(self, revision: str) -> dict[str, Any]:
        example = examples()[revision]
        dedicated = set(classes(example))
        entries: dict[str, Any] = {
            name: revision if name in dedicated else [self.inline(revision, f"{example.module_name}:{target}")]
            for name, (target, _, _) in example.nodes.items()
        }
        entries["census"] = [self.inline("c1", "census:count_here")]
        return self.serve.ingress(
            dump_graph(example.graph), entries, path=self.folder, table=revision, timeout_s=REQUEST_TIMEOUT_S
        )

    def inline(self, revision: str, target: str) -> dict[str, Any]:
        spec = {"import": target, "args": [], "kwargs": {}, "maxOngoingRequests": SLOTS}
        return {"revision": revision, "weight": 100, "inline": spec}

    def switch_to(self, revision: str) -> None:
        self.serve.put(*self.nodes, self.ingress(revision))
        self.serve.wait_for(
            f"the ingress to have graph {revision}", lambda: self.serve.get("/-/graph").json["table"] == revision
        )

    def ask(self, example: RandomGraph) -> Any:
        """Run the graph in force once: what it answers, or a `Failure`."""
        body = body_of(example)
        if body is not None:
            answer = self.serve.ask(body, timeout=REQUEST_TIMEOUT_S + 10)
            if answer.status == 200:
                return answer.json
            return Failure(answer.status, answer.json["error"].get("step", ""), answer.json["error"]["message"])
        response = self.handle.options(method_name="run").remote(*example.args, **example.kwargs)
        try:
            return response.result(timeout_s=REQUEST_TIMEOUT_S + 10)
        except Exception as error:
            cause = getattr(error, "cause", error)
            return Failure(getattr(cause, "status", 500), failed_step(cause).step, f"{type(cause).__name__}: {cause}")

    def call(self, node: str, method: str | None, *args: Any) -> Any:
        """Call a node of the graph in force, as the interpreter does it."""
        handle = self.handle.options(method_name="call")
        return handle.remote(node, method, args, {}, RequestContext()).result(timeout_s=REQUEST_TIMEOUT_S)

    def counted(self, revision: str) -> Counter[str]:
        """The calls that the nodes of a graph have counted, in all their processes."""
        example = examples()[revision]
        total = Counter(self.call("census", None, example.module_name)["calls"])
        for name in classes(example):
            total.update(self.call(name, "counts"))
        return total

    def wait_until_nothing_hangs(self, revision: str) -> None:
        """Nothing goes on for a request that has been answered: losers are cancelled, and the rest of what failed."""
        for name in classes(examples()[revision]):
            self.serve.wait_for(
                f"{name} of {revision} to hear that nobody waits for its calls",
                lambda name=name: not self.call(name, "hanging"),
                timeout=30,
            )

    def pids(self) -> dict[str, list[int]]:
        return {
            name: [replica["pid"] for each in application["deployments"].values() for replica in each["replicas"]]
            for name, application in self.serve.applications().items()
        }


@pytest.fixture(scope="module")
def deployed(serve_session: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("random_graphs")
    shutil.copy(Path(__file__).parent / "code" / "census.py", folder)
    nodes = []
    for revision, example in examples().items():
        example.write(folder)
        for name in classes(example):
            target, args, kwargs = example.nodes[name]
            held = sorted({part.node for arg in args for part in ir.parts(arg) if isinstance(part, ir.NodeRef)})
            nodes.append(
                serve_session.node(
                    name,
                    f"{example.module_name}:{target}",
                    *dump_list(args, "args"),
                    kwargs={key: dump_expr(value) for key, value in kwargs},
                    revision=revision,
                    routes={node: [{"revision": revision, "weight": 100}] for node in held},
                    path=folder,
                    max_ongoing_requests=SLOTS,
                    health_check_period_s=10,
                )
            )
    for count in range(AT_ONCE, len(nodes), AT_ONCE):
        serve_session.deploy(*nodes[:count])
    from servepipe.runtime.serve_caller import ingress_handle  # Serve reads the session's flags when it is imported

    deployed = Deployed(serve_session, folder, nodes, ingress_handle())
    serve_session.deploy(*nodes, deployed.ingress(next(iter(examples()))))
    yield deployed
    serve_session.deploy()


def test_the_graphs_have_everything_that_a_graph_can_have() -> None:
    kinds: Counter[str] = Counter()
    for example in examples().values():
        kinds.update(example.kinds)
        kinds["answer" if expect(example, example.load()).ok else "failure"] += 1
    ways = Counter("HTTP" if body_of(example) is not None else "handle" for example in examples().values())
    dedicated = [len(classes(example)) for example in examples().values()]
    print(
        f"{len(dedicated)} graphs of {min(SIZES)} to {max(SIZES)} steps with {sum(dedicated)} Dedicated nodes; {ways}"
    )
    for kind, count in sorted(kinds.items()):
        print(f"{count:8} {kind}")
    assert len(dedicated) >= 25
    assert [kind for kind in KINDS if not kinds[kind]] == []
    assert ways["HTTP"] and ways["handle"]


def test_every_dedicated_node_has_a_process_of_its_own(deployed: Deployed) -> None:
    pids = deployed.pids()
    expected = {f"{name}--{revision}" for revision, example in examples().items() for name in classes(example)}
    assert pids.keys() == {"ingress", *expected}
    assert [name for name, found in pids.items() if len(found) != 1] == []
    assert len({found[0] for found in pids.values()}) == len(pids)
    census = deployed.call("census", None, "census")
    assert [census["pid"]] == pids["ingress"]


@pytest.mark.parametrize("revision", [f"g{size}" for size in SIZES])
def test_a_random_graph_means_what_plain_python_says(revision: str, deployed: Deployed) -> None:
    example = examples()[revision]
    print(f"random_graph({example.seed}, {example.size})")
    expected = expect(example, example.load())
    deployed.switch_to(revision)
    assert sum(deployed.counted(revision).values()) == 0

    answer = deployed.ask(example)
    if expected.ok:
        assert answer == (json.loads(json.dumps(expected.value)) if body_of(example) is not None else expected.value)
    else:
        assert isinstance(answer, Failure), answer
        assert answer.step in expected.failed_steps
        (failed,) = (step for step in example.graph.steps if step.name == answer.step)
        assert answer.status == failure_status(failed), answer

    deployed.wait_until_nothing_hangs(revision)
    counted = deployed.counted(revision)
    least = expected.least
    for step in example.graph.steps:
        if isinstance(step, ir.Call) and step.timeout_s is not None and step.timeout_s < SHORT_S:
            del least[step.name]
    for key in counted.keys() | expected.most.keys():
        assert least[key] <= counted[key] <= expected.most[key], key


def body_of(example: RandomGraph) -> Any:
    """The JSON body that stands for the request; None where there is none."""
    if example.kinds["input: one value"]:
        return example.args[0]
    return list(example.args) if example.kinds["input: several positional"] else None
