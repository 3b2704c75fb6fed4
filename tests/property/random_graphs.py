"""Random graphs, with Python source text that says what each of them means.

`random_graph(seed, steps)` gives a compiled graph, its nodes and a request, always the same ones for the same numbers.
The source text has two halves. The first are the node classes, importable from a file (`write`), so that the graph can
run on Ray too; they count their calls themselves. The second, `reference`, computes the answer in plain Python, one
function per step, and knows which calls must happen, may happen, or must not: it shares no code with servepipe.

What concurrency leaves open is kept out of the answers: of the options of a `first` exactly one can succeed while the
others fail or never end, and a split without `on` has one branch with all the weight.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from random_graph_maker import Maker

from servepipe.graph import ir
from servepipe.graph.calls import NodeDefinition

KINDS = (
    *("call: f", "call: g", "call: function", "call: bad", "call: flaky", "call: hang", "call: timeout"),
    *("function node", "async function node", "holder of a handle", "holder of a list", "holder of a dict"),
    *("switch", "switch with default", "split", "split by value", "map", "map in a map", "map with concurrency"),
    *("fallback", "first with losers that fail", "first with a loser that never ends", "retries", "timeout"),
    *("input: one value", "input: nested mapping", "input: one list", "input: several positional"),
    *("input: with keywords", "input read", "part of a step", "item", "part of an item", "constant"),
    *("list of expressions", "tuple of expressions", "dict of expressions", "unused step", "answer", "failure"),
)
"""All that a graph can have, and the two ways in which it can end."""


@dataclass
class RandomGraph:
    """A random graph with what it takes to run it and to know what is right.

    Args:
        seed: With ``size`` all that is needed to make it again.
        graph: The compiled graph.
        nodes: Per node the name of its target in the module and its constructor arguments.
        source: The module's text.
        args: The request's positional arguments.
        kwargs: Its keyword arguments.
        attempts: For each step the calls that one run of it makes, by key: the step's own, ``step/held`` of handles.
        kinds: How many there are of each sort of thing that a graph can have.
    """

    seed: int
    size: int
    graph: ir.Graph
    nodes: dict[str, tuple[str, tuple[ir.Expr, ...], tuple[tuple[str, ir.Expr], ...]]]
    source: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attempts: dict[str, dict[str, int]]
    kinds: Counter[str]

    @property
    def module_name(self) -> str:
        return f"random_graph_{self.seed}_{self.size}"

    def write(self, folder: Path) -> Path:
        """Write the module into ``folder``, importable as `module_name`."""
        path = folder / f"{self.module_name}.py"
        path.write_text(self.source)
        return path

    def load(self, path: Path | None = None) -> ModuleType:
        """The module, fresh: from a file that `write` made, or without one."""
        if path is None:
            module = ModuleType(self.module_name)
            exec(compile(self.source, f"<{self.module_name}>", "exec"), module.__dict__)
            return module
        spec = importlib.util.spec_from_file_location(self.module_name, path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[self.module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def definitions(self, module: ModuleType) -> dict[str, NodeDefinition]:
        """The nodes, with slots enough: a call that never ends keeps one, and timeouts count the wait for one."""
        return {
            name: NodeDefinition(name, getattr(module, target), args, kwargs, max_ongoing_requests=1000)
            for name, (target, args, kwargs) in self.nodes.items()
        }


@dataclass
class Expected:
    """What `reference` says: the answer or the steps that may have failed, and bounds on the calls by key."""

    ok: bool
    value: Any
    failed_steps: frozenset[str]
    least: Counter[str]
    most: Counter[str]


def expect(example: RandomGraph, module: ModuleType) -> Expected:
    """Run the plain Python. A step is sure to be called where the chain of those who need it cannot break before."""
    output = module.reference(*example.args, **example.kwargs)
    sure = {id(output)}
    waiting = [output]
    for reached in waiting:
        for surely, group in reached.groups:
            failed = [each for each in group if not each.ok]
            if surely and len(failed) <= 1:
                for each in failed or group:
                    if id(each) not in sure:
                        sure.add(id(each))
                        waiting.append(each)
    least: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for reached in module.REACHED:
        calls = example.attempts.get(reached.name, {})
        # A call whose arguments are not there is not made.
        if any(not each.ok for _, group in reached.groups for each in group):
            continue
        most.update(calls)
        if id(reached) in sure:
            least.update(calls)
    return Expected(output.ok, output.value, output.steps, least, most)


def random_graph(seed: int, size: int) -> RandomGraph:
    """A graph of at most ``size`` steps (at least one); the same for the same numbers on every machine."""
    maker = Maker(seed, size)
    graph, source = maker.make()
    kinds = Counter({kind: count for kind, count in maker.kinds.items() if count})
    return RandomGraph(seed, size, graph, maker.nodes, source, maker.args, maker.kwargs, maker.attempts, kinds)
