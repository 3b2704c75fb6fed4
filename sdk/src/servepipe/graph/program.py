"""A graph prepared for running: done once, so that a request only follows numbers and closures.

Values of a request live in frames. The root frame holds the steps that run once per request; each item of a map has a
frame of its own, whose parent is the frame in which the map runs, for the steps that depend on the item. Where a step
lives is static: a number of frames to climb and a slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from servepipe.errors import BadRequestError, RequestError
from servepipe.graph.checks import require_runnable
from servepipe.graph.containers import reader
from servepipe.graph.inputs import read_input, refuse, take, written
from servepipe.graph.ir import (
    Call,
    Const,
    Expr,
    Fallback,
    First,
    Graph,
    InputRef,
    ItemRef,
    Map,
    Path,
    Split,
    Step,
    StepRef,
    Switch,
    operands,
    parts,
)
from servepipe.graph.structure import scopes, step_refs, topological

__all__ = ["ExprPlan", "Frame", "Inputs", "Program", "Reader", "StepPlan"]


class Inputs:
    """The input of one request; each distinct path is read once."""

    __slots__ = ("args", "kwargs", "values")

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any], values: list[Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self.values = values


class Frame:
    """The steps of one request, or of one item of a map: ``cells[slot]`` is made when the step is first needed."""

    __slots__ = ("cells", "inputs", "item", "parent")

    def __init__(self, width: int, inputs: Inputs, parent: Frame | None = None, item: Any = None) -> None:
        self.cells: list[Any] = [None] * width
        self.inputs = inputs
        self.parent = parent
        self.item = item

    def up(self, hops: int) -> Frame:
        """The frame ``hops`` maps further out."""
        frame = self
        for _ in range(hops):
            assert frame.parent is not None
            frame = frame.parent
        return frame


Reader: TypeAlias = Callable[[Frame], Any]


@dataclass(slots=True, eq=False)
class ExprPlan:
    """An expression.

    Args:
        deps: The steps that it refers to: how many frames to climb, and which step there.
        read: Reads it once these are done.
        reach: All steps that it may need, directly or through others, a bit each.
    """

    deps: tuple[tuple[int, StepPlan], ...]
    read: Reader
    reach: int


@dataclass(slots=True, eq=False)
class StepPlan:
    """A step: where it lives and what it needs.

    Args:
        step: The step.
        depth: How many maps' items it depends on.
        slot: Its place in a frame of that depth.
        bit: Its bit in ``reach``.
        first: What it needs before anything else: all arguments of a call, ``on`` of a switch, ``over`` of a map.
        later: What it may need after that: branches, options, the body of a map.
        width: For a map: slots of its items' frames.
        nth: For a switch: the branch of each value, by type and value; the default is the last branch.
    """

    step: Step
    depth: int
    slot: int
    bit: int
    first: ExprPlan
    later: tuple[ExprPlan, ...] = ()
    width: int = 0
    nth: dict[tuple[type, Any], int] = field(default_factory=dict)

    @property
    def reach(self) -> int:
        reach = self.bit | self.first.reach
        for plan in self.later:
            reach |= plan.reach
        return reach


class Program:
    """A graph, checked and prepared.

    Args:
        graph: The graph.

    Raises:
        GraphError: The graph refers to what it does not have, runs in a circle, or is wrong in itself (`checks`).
    """

    def __init__(self, graph: Graph) -> None:
        require_runnable(graph)
        self.graph = graph
        self.input_paths: tuple[Path, ...]
        """The distinct paths at which the graph reads its input."""
        self.output: ExprPlan
        self.steps: dict[str, StepPlan]
        """The steps that the output may need."""
        self.width: int
        """Slots of the root frame."""
        _Preparation(self)
        self._required = tuple(self._required_inputs())

    def read_inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
        """The inputs that every request needs, read at once; those of branches are read when the branch runs.

        Raises:
            BadRequestError: Some are missing; the message names all that the graph reads and the request lacks.
        """
        values: list[Any] = [_UNREAD] * len(self.input_paths)
        try:
            for slot in self._required:
                values[slot] = read_input(self.input_paths[slot], args, kwargs)
        except BadRequestError:
            refuse(self.missing_inputs(args, kwargs), args, kwargs)
        return Inputs(args, kwargs, values)

    def missing_inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Path]:
        """The paths that the graph reads somewhere and these arguments do not have."""
        missing = []
        for path in self.input_paths:
            try:
                read_input(path, args, kwargs)
            except BadRequestError:
                missing.append(path)
        return missing

    def _required_inputs(self) -> Iterator[int]:
        """Slots of the inputs that are read whatever branches are taken."""
        seen = {id(self.output)}
        plans = [self.output]
        required: set[Path] = set(_input_paths([self.graph.output]))
        for plan in plans:  # grows while it is read
            for _, step in plan.deps:
                if id(step.first) not in seen:
                    seen.add(id(step.first))
                    plans.append(step.first)
                    required.update(_input_paths(_first_needed(step.step)))
        return (slot for slot, path in enumerate(self.input_paths) if path in required)


_UNREAD = object()


class _Preparation:
    """Fills a `Program`; lives only for that time."""

    def __init__(self, program: Program) -> None:
        graph = program.graph
        self.steps: dict[str, StepPlan] = {}
        self.scope_of = scopes(graph)
        by_name = {step.name: step for step in graph.steps}
        edges = {name: step_refs(*operands(step)) for name, step in by_name.items()}
        needed = dict.fromkeys(step_refs(graph.output))
        waiting = list(needed)
        for name in waiting:  # grows while it is read
            fresh = [ref for ref in edges[name] if ref not in needed]
            needed.update(dict.fromkeys(fresh))
            waiting.extend(fresh)
        order = [name for name in topological(edges) if name in needed]
        tops = [graph.output, *(top for name in order for top in operands(by_name[name]))]
        program.input_paths = tuple(dict.fromkeys(_input_paths(tops)))
        self.input_slot = {path: slot for slot, path in enumerate(program.input_paths)}
        self.widths: dict[str | None, int] = {None: 0}
        for number, name in enumerate(order):
            self.steps[name] = self.step(by_name[name], 1 << number)
        for plan in self.steps.values():
            plan.width = self.widths.get(plan.step.name, 0)
        program.steps = self.steps
        program.output = self.expr([graph.output], 0, self.reader(graph.output, 0))
        program.width = self.widths[None]

    def step(self, step: Step, bit: int) -> StepPlan:
        scope = self.scope_of[step.name]
        depth = len(scope)
        home = max(scope, key=lambda name: len(self.scope_of[name])) if scope else None
        slot = self.widths.setdefault(home, 0)
        self.widths[home] += 1
        nth: dict[tuple[type, Any], int] = {}
        match step:
            case Call(args=args, kwargs=kwargs):
                first = self.expr(operands(step), depth, self.arguments(args, kwargs, depth))
                return StepPlan(step, depth, slot, bit, first)
            case Switch(on=on, cases=cases, default=default):
                later = [then for _, then in cases] + ([default] if default is not None else [])
                for index, (when, _) in enumerate(cases):
                    nth.setdefault((type(when), when), index)
            case Split(on=on, branches=branches):
                later = [then for _, then in branches]
            case Map(over=on, each=each):
                first, body = self.plan(on, depth), self.plan(each, depth + 1)
                return StepPlan(step, depth, slot, bit, first, (body,))
            case Fallback(options=options) | First(options=options):
                on, later = None, list(options)
        first = self.plan(Const(None) if on is None else on, depth)
        return StepPlan(step, depth, slot, bit, first, tuple(self.plan(then, depth) for then in later), nth=nth)

    def plan(self, expr: Expr, depth: int) -> ExprPlan:
        return self.expr([expr], depth, self.reader(expr, depth))

    def expr(self, exprs: Iterable[Expr], depth: int, read: Reader) -> ExprPlan:
        needed = [self.steps[name] for name in step_refs(*exprs)]
        reach = 0
        for step in needed:
            reach |= step.reach
        return ExprPlan(tuple((depth - step.depth, step) for step in needed), read, reach)

    def arguments(self, args: Sequence[Expr], kwargs: Sequence[tuple[str, Expr]], depth: int) -> Reader:
        """Reads all arguments of a call: a list of positional ones and a dict of keyword ones."""
        readers = tuple(self.reader(arg, depth) for arg in args)
        named = tuple((key, self.reader(value, depth)) for key, value in kwargs)
        if not named:
            match readers:  # most calls have one or two
                case (one,):
                    return lambda frame: ([one(frame)], {})
                case (one, two):
                    return lambda frame: ([one(frame), two(frame)], {})
            return lambda frame: ([read(frame) for read in readers], {})
        return lambda frame: ([read(frame) for read in readers], {key: read(frame) for key, read in named})

    def reader(self, expr: Expr, depth: int) -> Reader:
        """Reads ``expr`` in a frame of ``depth``."""
        return reader(expr, lambda leaf: self.leaf(leaf, depth))

    def leaf(self, expr: Expr, depth: int) -> Reader:
        match expr:
            case Const(value):
                return lambda frame: value
            case InputRef(path):
                return _input_reader(path, self.input_slot[path])
            case StepRef(name, path):
                step = self.steps[name]
                return _along(_step_reader(depth - step.depth, step.slot), path, f"step {name}", "returned")
            case ItemRef(name, path):
                hops = depth - len(self.scope_of[name]) - 1
                return _along(lambda frame: frame.up(hops).item, path, f"an item of {name}", "is")
            case _:
                raise AssertionError(f"{type(expr).__name__} is no leaf of a step")


def _first_needed(step: Step) -> Iterator[Expr]:
    """The operands of ``step`` that are evaluated whenever it runs."""
    match step:
        case Call():
            yield from operands(step)
        case Switch(on=on) | Split(on=on) if on is not None:
            yield on
        case Map(over=over):
            yield over


def _input_paths(exprs: Iterable[Expr]) -> Iterator[Path]:
    return (part.path for expr in exprs for part in parts(expr) if isinstance(part, InputRef))


def _input_reader(path: Path, slot: int) -> Reader:
    def read(frame: Frame) -> Any:
        inputs = frame.inputs
        value = inputs.values[slot]
        if value is _UNREAD:
            value = inputs.values[slot] = read_input(path, inputs.args, inputs.kwargs)
        return value

    return read


def _step_reader(hops: int, slot: int) -> Reader:
    if not hops:
        return lambda frame: frame.cells[slot].value
    return lambda frame: frame.up(hops).cells[slot].value


def _along(read: Reader, path: Path, what: str, verb: str) -> Reader:
    if not path:
        return read

    def read_part(frame: Frame) -> Any:
        whole = value = read(frame)
        try:
            for key in path:
                value = take(value, key)
        except Exception as error:  # the value is user code's; indexing it may raise anything
            raise RequestError(
                f"there is no {written(path, 'value')} in what {what} {verb}: {type(whole).__name__}"
                f" ({type(error).__name__}: {error})"
            ) from error
        return value

    return read_part
