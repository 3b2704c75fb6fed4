"""How the steps of a graph hang together: order, what can reach what, and which maps each step runs inside of.

Everything here is iterative: a graph may be a chain of thousands of steps.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from servepipe.graph.ir import Expr, Graph, ItemRef, Map, Step, StepRef, operands, parts

__all__ = ["find_cycle", "free_items", "scopes", "step_refs", "topological"]

K = TypeVar("K", bound=Hashable)


def step_refs(*exprs: Expr) -> tuple[str, ...]:
    """Names of the steps that ``exprs`` refer to, each once, in the order in which they are written."""
    return tuple(dict.fromkeys(part.step for expr in exprs for part in parts(expr) if isinstance(part, StepRef)))


def topological(edges: Mapping[K, Sequence[K]]) -> list[K]:
    """The keys so that each stands after those that it points to; keys on a cycle, or behind one, are left out."""
    missing = {key: sum(1 for target in set(targets) if target in edges) for key, targets in edges.items()}
    users: dict[K, list[K]] = {key: [] for key in edges}
    for key, targets in edges.items():
        for target in set(targets):
            if target in users:
                users[target].append(key)
    order = [key for key, count in missing.items() if not count]
    for key in order:  # grows while it is read
        for user in users[key]:
            missing[user] -= 1
            if not missing[user]:
                order.append(user)
    return order


def find_cycle(edges: Mapping[K, Sequence[K]]) -> list[K]:
    """A shortest way around one cycle, from its first key in the order of ``edges``; empty where there is none."""
    fine: list[K] = topological(edges)
    rest = set(edges) - set(fine)
    for start in edges:
        if start not in rest:
            continue
        came_from: dict[K, K] = {}
        reached = [start]
        for key in reached:  # breadth first; grows while it is read
            for target in edges[key]:
                if target == start:
                    cycle = [key]
                    while cycle[-1] != start:
                        cycle.append(came_from[cycle[-1]])
                    return cycle[::-1]
                if target in rest and target not in came_from:
                    came_from[target] = key
                    reached.append(target)
    return []


def free_items(exprs: Iterable[Expr], scope_of: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """The maps whose items ``exprs`` depend on, directly or through the steps that they refer to.

    An item of a map that itself runs once per item of an outer map depends on the outer item too.
    """
    found: set[str] = set()
    for expr in exprs:
        for part in parts(expr):
            match part:
                case StepRef(step):
                    found |= scope_of.get(step, frozenset())
                case ItemRef(name):
                    found |= {name} | scope_of.get(name, frozenset())
    return frozenset(found)


def scopes(graph: Graph) -> dict[str, frozenset[str]]:
    """For each step the maps whose items it depends on: it runs once per item of the innermost of them.

    The result is a least fixed point: a map's own scope follows from its body, whose scope contains the map's.
    """
    steps = {step.name: step for step in graph.steps}
    order = topological({name: step_refs(*operands(step)) for name, step in steps.items()})
    scope_of: dict[str, frozenset[str]] = {name: frozenset() for name in order}
    changed = any(isinstance(part, ItemRef) for step in graph.steps for top in operands(step) for part in parts(top))
    while changed:
        changed = False
        for name in order:
            scope = _scope(steps[name], scope_of)
            if scope != scope_of[name]:
                scope_of[name] = scope
                changed = True
    return scope_of


def _scope(step: Step, scope_of: Mapping[str, frozenset[str]]) -> frozenset[str]:
    inside = free_items(operands(step), scope_of)
    return inside - {step.name} if isinstance(step, Map) else inside
