"""What is wrong with a graph, as data with a path into the resource: for authoring, the command line and the operator.

`problems` finds everything at once. It needs no user code: nodes are their names and constructor arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from servepipe.errors import GraphError, GraphTooLargeError
from servepipe.graph.fields import did_you_mean
from servepipe.graph.ir import (
    Call,
    DictOf,
    Expr,
    Fallback,
    First,
    Graph,
    InputRef,
    ItemRef,
    ListOf,
    Map,
    NodeRef,
    Split,
    Step,
    StepRef,
    Switch,
    TupleOf,
    operands,
    parts,
)
from servepipe.graph.structure import find_cycle, free_items, scopes, step_refs, topological
from servepipe.graph.values import at_index, at_key

__all__ = ["MAX_NODES", "MAX_STEPS", "Kind", "NodeArguments", "Problem", "located", "problems", "require_runnable"]

MAX_STEPS = 128
"""Steps that a resource may have; in process there is no bound."""
MAX_NODES = 128
"""Nodes that a resource may have."""


class NodeArguments(Protocol):
    """What `problems` needs to know of a node; `calls.NodeDefinition` has it."""

    @property
    def args(self) -> tuple[Expr, ...]: ...

    @property
    def kwargs(self) -> tuple[tuple[str, Expr], ...]: ...


class Kind(Enum):
    """What sort of problem it is; ``UNUSED_STEP`` and ``TOO_LARGE`` do not keep a graph from running in process."""

    EMPTY = "empty graph"
    DUPLICATE_NAME = "duplicate name"
    UNKNOWN_STEP = "unknown step"
    UNKNOWN_NODE = "unknown node"
    STEP_CYCLE = "cycle of steps"
    HANDLE_CYCLE = "cycle through handles"
    UNUSED_STEP = "unused step"
    ITEM_SCOPE = "item used outside its map"
    MISPLACED = "an expression where it cannot be"
    BAD_VALUE = "a number or list out of bounds"
    TOO_LARGE = "too many steps or nodes"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Args:
        kind: What sort of problem it is.
        path: Where, in the resource: ``spec.graph.steps[3].args[0]``.
        what: What is wrong, one sentence without a full stop.
        fix: What to do about it; may be empty.
        names: The steps or nodes that it is about.
    """

    kind: Kind
    path: str
    what: str
    fix: str = ""
    names: tuple[str, ...] = ()

    def as_error(self, where: str = "") -> GraphError:
        """The problem as an exception, at ``where`` (default: its path)."""
        error = GraphTooLargeError if self.kind is Kind.TOO_LARGE else GraphError
        return error(self.what, where=where or self.path, fix=self.fix)


def require_runnable(graph: Graph) -> None:
    """Raise the first problem that keeps ``graph`` itself, whatever its nodes are, from running."""
    for problem in _graph_problems(graph):
        if problem.kind is not Kind.UNUSED_STEP:
            raise problem.as_error()


def problems(graph: Graph, nodes: Mapping[str, NodeArguments], *, bounded: bool = True) -> list[Problem]:
    """Everything that is wrong with ``graph`` and ``nodes``, in the order of the resource.

    Args:
        graph: The graph.
        nodes: All nodes by name.
        bounded: Whether the resource's bounds on the number of steps and nodes apply.
    """
    found = list(_graph_problems(graph))
    found += _unknown_nodes(graph, nodes)
    found += _handle_problems(nodes)
    if bounded:
        found += _size_problems(graph, nodes)
    return found


def located(expr: Expr, path: str) -> Iterator[tuple[str, Expr]]:
    """``expr`` and every expression inside it with their paths in the resource, outermost first."""
    stack = [(path, expr)]
    while stack:
        here, current = stack.pop()
        yield here, current
        match current:
            case ListOf(items):
                inside = [(at_index(here, index), item) for index, item in enumerate(items)]
            case TupleOf(items):
                inside = [(at_index(at_key(here, "$tuple"), index), item) for index, item in enumerate(items)]
            case DictOf(items):
                inside = [(at_key(here, key), item) for key, item in items]
            case _:
                continue
        stack.extend(reversed(inside))


def _operand_paths(step: Step, path: str) -> Iterator[str]:
    """Where the operands of ``step`` stand, in the order of `operands`."""
    match step:
        case Call(args=args, kwargs=kwargs):
            yield from (at_index(f"{path}.args", index) for index in range(len(args)))
            yield from (at_key(f"{path}.kwargs", key) for key, _ in kwargs)
        case Switch(cases=cases):
            yield f"{path}.switch.on"
            yield from (f"{path}.switch.cases[{index}].then" for index in range(len(cases)))
            yield f"{path}.switch.default"
        case Split(branches=branches):
            yield from (f"{path}.split.branches[{index}].then" for index in range(len(branches)))
            yield f"{path}.split.on"
        case Map():
            yield from (f"{path}.map.over", f"{path}.map.each")
        case Fallback(options=options) | First(options=options):
            word = "fallback" if isinstance(step, Fallback) else "first"
            yield from (f"{path}.{word}[{index}]" for index in range(len(options)))


def _step_path(index: int) -> str:
    return f"spec.graph.steps[{index}]"


def _tops(graph: Graph) -> Iterator[tuple[str, Expr]]:
    """Every operand of every step and the output, with their paths."""
    for index, step in enumerate(graph.steps):
        yield from zip(_operand_paths(step, _step_path(index)), operands(step), strict=False)
    yield "spec.graph.output", graph.output


def _graph_problems(graph: Graph) -> Iterator[Problem]:
    names: dict[str, int] = {}
    for index, step in enumerate(graph.steps):
        first = names.setdefault(step.name, index)
        if first != index:
            yield Problem(
                Kind.DUPLICATE_NAME,
                f"{_step_path(index)}.name",
                f"two steps are named {step.name!r}",
                f"{_step_path(first)} has the name already; rename one of them.",
                (step.name,),
            )
        yield from _bad_values(step, _step_path(index))
    if not graph.steps:
        yield Problem(Kind.EMPTY, "spec.graph.steps", "the graph has no steps", "Let it call at least one node.")
    maps = [step.name for step in graph.steps if isinstance(step, Map)]
    for top_path, top in _tops(graph):
        for path, part in located(top, top_path):
            yield from _unknown_names(part, path, names, maps)
    yield from _shape_problems(graph, names)


def _unknown_names(part: Expr, path: str, steps: Mapping[str, int], maps: Collection[str]) -> Iterator[Problem]:
    match part:
        case StepRef(name) if name not in steps:
            fix = _suggestion(name, steps)
            yield Problem(Kind.UNKNOWN_STEP, path, f"there is no step {name!r}", fix, (name,))
        case ItemRef(name) if name not in maps:
            what = f"step {name!r} is not a map" if name in steps else f"there is no map step {name!r}"
            yield Problem(Kind.UNKNOWN_STEP, path, what, _suggestion(name, maps), (name,))
        case NodeRef(name):
            what = f"a handle to node {name!r} cannot be an argument of a step"
            fix = "Give the node to another node's constructor, or call it in a step of its own."
            yield Problem(Kind.MISPLACED, path, what, fix, (name,))


def _shape_problems(graph: Graph, index_of: Mapping[str, int]) -> Iterator[Problem]:
    edges = {step.name: [ref for ref in step_refs(*operands(step)) if ref in index_of] for step in graph.steps}
    if cycle := find_cycle(edges):
        way = " -> ".join([*cycle, cycle[0]])
        path = _step_path(index_of[cycle[0]])
        yield Problem(Kind.STEP_CYCLE, path, f"these steps wait for each other: {way}", names=tuple(cycle))
        return  # what follows makes sense only without cycles
    yield from _item_problems(graph, index_of)
    used = set(step_refs(graph.output))
    for name in reversed(topological(edges)):  # users first
        if name in used:
            used.update(edges[name])
        else:
            path = _step_path(index_of[name])
            fix = "Use what it returns, or remove it."
            yield Problem(Kind.UNUSED_STEP, path, f"nothing needs step {name!r}", fix, (name,))


def _item_problems(graph: Graph, index_of: Mapping[str, int]) -> Iterator[Problem]:
    scope_of = scopes(graph)
    for step in graph.steps:
        if isinstance(step, Map) and step.name in free_items([step.over], scope_of):
            path = f"{_step_path(index_of[step.name])}.map.over"
            what = f"the list that map {step.name!r} goes over depends on the map's own item"
            yield Problem(Kind.ITEM_SCOPE, path, what, names=(step.name,))
    open_maps = free_items([graph.output], scope_of)
    if not open_maps:
        return
    # The item is free in the output; the place to name is where it is read outside its map.
    name = min(open_maps, key=lambda name: index_of.get(name, -1))
    user, path = _user_of_item(graph, name, scope_of)
    yield Problem(
        Kind.ITEM_SCOPE,
        path,
        f"{user} depends on the item of map {name!r} and is needed outside of it",
        f"Use the item only in what {name!r} evaluates for each item.",
        (name,),
    )


def _user_of_item(graph: Graph, name: str, scope_of: Mapping[str, frozenset[str]]) -> tuple[str, str]:
    """Follow the item of map ``name`` from the output inwards to the step that reads it."""
    user, path, exprs = "the output", "spec.graph.output", [graph.output]
    by_name = {step.name: (index, step) for index, step in enumerate(graph.steps)}
    while True:
        refs = [ref for ref in step_refs(*exprs) if name in scope_of.get(ref, ())]
        if not refs or any(isinstance(part, ItemRef) and part.map == name for top in exprs for part in parts(top)):
            return user, path
        index, step = by_name[refs[0]]
        user, path, exprs = f"step {step.name!r}", _step_path(index), list(operands(step))


def _bad_values(step: Step, path: str) -> Iterator[Problem]:
    def bad(field: str, what: str, fix: str = "") -> Problem:
        return Problem(Kind.BAD_VALUE, f"{path}.{field}", what, fix, (step.name,))

    match step:
        case Call(timeout_s=timeout_s, retries=retries):
            if timeout_s is not None and timeout_s <= 0:
                yield bad("timeout", f"a timeout of {timeout_s:g} s never lets the step answer", "Make it positive.")
            if retries < 0:
                yield bad("retries", f"{retries} retries are not possible", "0 is the least.")
        case Switch(cases=cases):
            if not cases:
                yield bad("switch.cases", "the switch has no cases")
            seen = set()
            for index, (when, _) in enumerate(cases):
                if (type(when), when) in seen:
                    yield bad(f"switch.cases[{index}].when", f"an earlier case already takes {when!r}")
                seen.add((type(when), when))
        case Split(branches=branches):
            weights = [weight for weight, _ in branches]
            for index, weight in enumerate(weights):
                if not 0 <= weight <= 100:
                    yield bad(f"split.branches[{index}].weight", f"a weight of {weight} is not between 0 and 100")
            if sum(weights) != 100:
                shown = " + ".join(map(str, weights)) or "no branches"
                yield bad("split.branches", f"the weights do not sum to 100: {shown} = {sum(weights)}")
        case Map(concurrency=concurrency):
            if concurrency is not None and concurrency < 1:
                yield bad("map.concurrency", f"a concurrency of {concurrency} lets no item run", "1 is the least.")
        case Fallback(options=options) | First(options=options):
            if not options:
                yield bad("fallback" if isinstance(step, Fallback) else "first", "there are no options")


def _unknown_nodes(graph: Graph, nodes: Mapping[str, NodeArguments]) -> Iterator[Problem]:
    unused = set(nodes) - {step.node for step in graph.steps if isinstance(step, Call)}
    unused -= {part.node for node in nodes.values() for part in _held(node)}
    for index, step in enumerate(graph.steps):
        if isinstance(step, Call) and step.node not in nodes:
            path = f"{_step_path(index)}.node"
            fix = _suggestion(step.node, nodes)
            if any(fix == f'Did you mean "{name}"?' for name in unused):
                fix += " Nothing uses that node: either name may be the misspelt one, write both alike."
            yield Problem(Kind.UNKNOWN_NODE, path, f"there is no node {step.node!r}", fix, (step.node,))


def _held(node: NodeArguments) -> Iterator[NodeRef]:
    for top in (*node.args, *(value for _, value in node.kwargs)):
        yield from (part for _, part in located(top, "") if isinstance(part, NodeRef))


def _handle_problems(nodes: Mapping[str, NodeArguments]) -> Iterator[Problem]:
    edges: dict[str, list[str]] = {name: [] for name in nodes}
    for name, node in nodes.items():
        base = at_key("spec.nodes", name)
        tops = [(at_index(f"{base}.args", index), arg) for index, arg in enumerate(node.args)]
        tops += [(at_key(f"{base}.kwargs", key), arg) for key, arg in node.kwargs]
        for path, part in (found for top_path, top in tops for found in located(top, top_path)):
            match part:
                case NodeRef(held) if held in nodes:
                    edges[name].append(held)
                case NodeRef(held):
                    fix = _suggestion(held, nodes)
                    yield Problem(Kind.UNKNOWN_NODE, path, f"there is no node {held!r}", fix, (name, held))
                case InputRef() | StepRef() | ItemRef():
                    what = f"a constructor of node {name!r} cannot receive what belongs to one request"
                    fix = "Give it to a method instead: the node is built once, before any request."
                    yield Problem(Kind.MISPLACED, path, what, fix, (name,))
    if cycle := find_cycle(edges):
        way = " -> ".join([*cycle, cycle[0]])
        what = f"these nodes hold handles to each other: {way}"
        fix = "Let one of them receive what it needs as an argument of the call."
        yield Problem(Kind.HANDLE_CYCLE, at_key("spec.nodes", cycle[0]), what, fix, tuple(cycle))


def _size_problems(graph: Graph, nodes: Mapping[str, NodeArguments]) -> Iterator[Problem]:
    for path, count, most, word in (
        ("spec.graph.steps", len(graph.steps), MAX_STEPS, "steps"),
        ("spec.nodes", len(nodes), MAX_NODES, "nodes"),
    ):
        if count > most:
            what = f"the graph has {count} {word}; a ServePipeline holds at most {most}"
            yield Problem(Kind.TOO_LARGE, path, what, "Split it into several pipelines, or move steps into a node.")


def _suggestion(word: str, known: Collection[str]) -> str:
    return did_you_mean(word, known) if known else ""
