"""Which steps and nodes an output needs, and whether they can stand in one graph.

Every walk is iterative: a graph may be a chain of thousands of steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from servepipe.authoring.combinators import MapStep
from servepipe.authoring.nodes import ClassNode, Method, RemoteClass, RemoteFunction
from servepipe.authoring.steps import CallStep, Step, StepPart
from servepipe.authoring.values import InputPart, Item, ServeInputNode, Value, leaves
from servepipe.errors import GraphError

__all__ = ["Discovery", "Node"]

Node: TypeAlias = ClassNode | RemoteFunction
Part: TypeAlias = Step | ClassNode | RemoteFunction

_NOT_AN_OUTPUT = (ClassNode, RemoteClass, RemoteFunction, Method)


class Discovery:
    """The steps and nodes that an output needs, each after what it needs itself."""

    def __init__(self, output: Any, where: str) -> None:
        self.steps: list[Step] = []
        self.nodes: list[Node] = []
        self.input: ServeInputNode | None = None
        self._functions: dict[int, list[RemoteFunction]] = {}
        self._free: dict[int, dict[int, Item]] = {}
        roots: list[Part] = []
        for leaf in leaves(output):
            if isinstance(leaf, _NOT_AN_OUTPUT):
                raise GraphError(
                    f"{leaf!r} is not the output of a step",
                    where=where,
                    fix="Pass what .bind(...) of a method or function gave.",
                )
            if (part := self._part(leaf)) is not None:
                roots.append(part)
        for part in self._postorder(roots):
            if isinstance(part, Step):
                self.steps.append(part)
                self._check_input(part)
                self._find_free_items(part)
            else:
                self.nodes.append(part)
        if not self.steps:
            raise GraphError(
                "the graph is empty: its output needs no step", where=where, fix="Pass what .bind(...) of a step gave."
            )
        for item in self._free_items(output).values():
            raise GraphError(
                f"{item!r} of the map at {item._of._place} is used outside of that map",
                where=str(item._place),
                fix="Use the map's output there, or move the step into the map.",
            )
        for leaf in leaves(output):
            if isinstance(leaf, InputPart):
                self._same_input(leaf, where)

    def node(self, node: Node) -> Node:
        """The one that stands for it: a function with the same options is one node."""
        if isinstance(node, ClassNode):
            return node
        alike = self._functions.setdefault(id(node._target), [])
        for other in alike:
            if (other._name, other._fields) == (node._name, node._fields):
                return other
        alike.append(node)
        return node

    def _part(self, leaf: Any) -> Part | None:
        if isinstance(leaf, StepPart):
            return leaf._step
        if isinstance(leaf, RemoteFunction):
            return self.node(leaf)
        return leaf if isinstance(leaf, Step | ClassNode) else None

    def _needs(self, part: Part) -> Iterator[Part]:
        if isinstance(part, Step):
            for leaf in leaves(part._operands):
                if isinstance(leaf, ClassNode | RemoteFunction):
                    raise _handle_in_step(part, leaf)
                found = self._part(leaf)
                if found is not None:
                    yield found
            if isinstance(part, CallStep):
                yield self.node(part._node)
        elif isinstance(part, ClassNode):
            for leaf in leaves((part._args, part._kwargs)):
                if isinstance(leaf, Value):
                    raise _needs_a_request(part, leaf)
                found = self._part(leaf)
                if found is not None:
                    yield found

    def _postorder(self, roots: Iterable[Part]) -> Iterator[Part]:
        done: set[int] = set()
        path: dict[int, Part] = {}
        stack: list[tuple[Part | None, Iterator[Part]]] = [(None, iter(roots))]
        while stack:
            part, needs = stack[-1]
            for needed in needs:
                if id(needed) in path:
                    raise _cycle(needed, path)
                if id(needed) not in done:
                    path[id(needed)] = needed
                    stack.append((needed, self._needs(needed)))
                    break
            else:
                stack.pop()
                if part is not None:
                    del path[id(part)]
                    done.add(id(part))
                    yield part

    def _check_input(self, step: Step) -> None:
        self._same_input(step, str(step._place))
        for leaf in leaves(step._operands):
            if isinstance(leaf, InputPart):
                self._same_input(leaf, str(step._place))

    def _same_input(self, value: Value, where: str) -> None:
        if value._owner is None:
            return
        if self.input is None:
            self.input = value._owner
        elif self.input is not value._owner:
            raise GraphError(
                f"{value._label()} belongs to another graph: to the ServeInputNode of {value._owner._place}, "
                f"while others use that of {self.input._place}",
                where=where,
                fix="Bind all steps of a graph to one ServeInputNode; nodes may be shared.",
            )

    def _find_free_items(self, step: Step) -> None:
        free = self._free_items(step._operands)
        if isinstance(step, MapStep):
            free.pop(id(step), None)
        self._free[id(step)] = free

    def _free_items(self, value: Any) -> dict[int, Item]:
        free: dict[int, Item] = {}
        for leaf in leaves(value):
            if isinstance(leaf, Item):
                free.setdefault(id(leaf._of), leaf)
            elif isinstance(leaf, Step | StepPart):
                step = leaf._step if isinstance(leaf, StepPart) else leaf
                free = self._free[id(step)] | free
        return free


def _needs_a_request(node: ClassNode, value: Value) -> GraphError:
    if isinstance(value, InputPart | Item):
        what = f"{value._label()} is given to the constructor of {node._target.__qualname__}"
        fix = "A constructor runs before any request: pass the input to a method instead."
    else:
        what = f"{value._label()} is given to the constructor of {node._target.__qualname__}"
        fix = "A constructor runs before any request: pass the output to a method, or the node itself for a handle."
    return GraphError(what, where=str(node._place), fix=fix)


def _handle_in_step(step: Step, node: Node) -> GraphError:
    return GraphError(
        f"{node!r} is given to the step {step!r}",
        where=str(step._place),
        fix="Pass the node to another node's constructor, which gets a handle, or bind one of its methods.",
    )


def _cycle(start: Part, path: Mapping[int, Part]) -> GraphError:
    parts = list(path.values())
    parts = [*parts[parts.index(start) :], start]
    nodes = isinstance(start, ClassNode)
    return GraphError(
        f"a cycle through {'handles' if nodes else 'steps'}: {' → '.join(map(repr, parts))}",
        where="" if isinstance(start, RemoteFunction) else str(start._place),
        fix="Let one of them get the other's handle as an argument of a method." if nodes else "Take one of them out.",
    )
