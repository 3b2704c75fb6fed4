"""The compiled graph as data: expressions and steps.

An expression stands where a value is needed; a step has a name and computes something. Steps never nest: branches of a
switch, the body of a map and the options of a fallback are expressions that refer to other steps, and evaluation is by
need. So the graph stays a flat list that a person can read and diff, and a step that branches share is one step.

The classes hold no behaviour. `wire` turns them into JSON and back, `checks` says what is wrong with them, `program`
prepares them for `interpreter`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = [
    "Attr",
    "Call",
    "Const",
    "DictOf",
    "Expr",
    "Fallback",
    "First",
    "Graph",
    "InputRef",
    "ItemRef",
    "Key",
    "ListOf",
    "Map",
    "NodeRef",
    "Path",
    "Split",
    "Step",
    "StepRef",
    "Switch",
    "TupleOf",
    "operands",
    "parts",
]


@dataclass(frozen=True, slots=True)
class Attr:
    """A path element written ``value.name``: the key of a mapping, else the attribute."""

    name: str


Key: TypeAlias = int | str | Attr
Path: TypeAlias = tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Const:
    """A constant: any JSON value (None, bool, int, finite float, str, and lists and dicts of these)."""

    value: Any


@dataclass(frozen=True, slots=True)
class InputRef:
    """The request's input, or the part of it at ``path``; see `program.read_input` for what each element means."""

    path: Path = ()


@dataclass(frozen=True, slots=True)
class StepRef:
    """What ``step`` returned, or the part of it at ``path``."""

    step: str
    path: Path = ()


@dataclass(frozen=True, slots=True)
class ItemRef:
    """The item that the `Map` step ``map`` is looking at, or the part of it at ``path``."""

    map: str
    path: Path = ()


@dataclass(frozen=True, slots=True)
class NodeRef:
    """A handle to ``node``: it calls whichever revision answers the request."""

    node: str


@dataclass(frozen=True, slots=True)
class ListOf:
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class TupleOf:
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class DictOf:
    """An object; keys are strings, in the order in which they were written."""

    items: tuple[tuple[str, Expr], ...]


Expr: TypeAlias = Const | InputRef | StepRef | ItemRef | NodeRef | ListOf | TupleOf | DictOf


@dataclass(frozen=True, slots=True)
class Call:
    """Call a node. ``method`` is None for a function node (or an object's ``__call__``).

    ``timeout_s`` bounds one attempt in seconds (None: no bound of its own); ``retries`` is the number of further
    attempts after a failed one.
    """

    name: str
    node: str
    method: str | None = None
    args: tuple[Expr, ...] = ()
    kwargs: tuple[tuple[str, Expr], ...] = ()
    timeout_s: float | None = None
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Switch:
    """Evaluate ``on``, then the first case whose ``when`` equals it in type and value, else ``default``.

    Without a default a value that no case names is an error of this step.
    """

    name: str
    on: Expr
    cases: tuple[tuple[str | int | bool, Expr], ...]
    default: Expr | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """Evaluate one of the branches, chosen by weight (integers, together 100).

    With ``on`` the choice is a stable hash of its value, so that the same value always takes the same branch; without
    it the choice is drawn anew for each request.
    """

    name: str
    branches: tuple[tuple[int, Expr], ...]
    on: Expr | None = None


@dataclass(frozen=True, slots=True)
class Map:
    """Evaluate ``each`` once per item of ``over`` (any iterable); the result is a list in the same order.

    ``concurrency`` bounds how many items are under way at once (None: all).
    """

    name: str
    over: Expr
    each: Expr
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Fallback:
    """Evaluate the options one after the other until one succeeds; the last one's error is the step's error."""

    name: str
    options: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class First:
    """Evaluate all options at once; the first that succeeds wins and the others are cancelled."""

    name: str
    options: tuple[Expr, ...]


Step: TypeAlias = Call | Switch | Split | Map | Fallback | First


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole graph.

    Args:
        steps: In an order in which every step stands after the steps that it refers to.
        output: What the graph answers.
        preprocessor: ``"module:function"`` that turns an HTTP request into the single argument, or None.
        postprocessor: ``"module:function"`` that turns the output into the HTTP answer, or None.
        preprocessor_code: Digest of the preprocessor's sources, or None where they are not a project's.
        postprocessor_code: Digest of the postprocessor's sources, likewise.
    """

    steps: tuple[Step, ...]
    output: Expr
    preprocessor: str | None = None
    postprocessor: str | None = None
    preprocessor_code: str | None = None
    postprocessor_code: str | None = None


def operands(step: Step) -> Iterator[Expr]:
    """The expressions that stand directly in ``step``, in the order of the wire form."""
    match step:
        case Call():
            yield from step.args
            for _, value in step.kwargs:
                yield value
        case Switch():
            yield step.on
            for _, then in step.cases:
                yield then
            if step.default is not None:
                yield step.default
        case Split():
            for _, then in step.branches:
                yield then
            if step.on is not None:
                yield step.on
        case Map():
            yield step.over
            yield step.each
        case Fallback() | First():
            yield from step.options


def parts(expr: Expr) -> Iterator[Expr]:
    """``expr`` and every expression inside it, outermost first. Iterative: containers may nest deeply."""
    stack = [expr]
    while stack:
        current = stack.pop()
        yield current
        match current:
            case ListOf() | TupleOf():
                stack.extend(reversed(current.items))
            case DictOf():
                stack.extend(value for _, value in reversed(current.items))
