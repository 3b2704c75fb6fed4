"""From what the author bound to the compiled graph: which steps and nodes there are, their names, their expressions.

Every walk is iterative; a graph may be a chain of thousands of steps. Steps come out in the order in which a reader of
the output's expression meets them (operands first), which depends on the graph alone: a graph of Ray's own objects,
which do not know when they were bound, gives the same list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from servepipe.authoring import combinators
from servepipe.authoring.batches import with_room
from servepipe.authoring.discovery import Discovery, Node
from servepipe.authoring.naming import RESERVED, Labels, UniqueNames, normalised
from servepipe.authoring.nodes import ClassNode, Method, RemoteClass, RemoteFunction
from servepipe.authoring.options import Fields
from servepipe.authoring.places import Place
from servepipe.authoring.steps import CallStep, MultiOutputNode, Step, StepPart
from servepipe.authoring.values import InputPart, Item
from servepipe.errors import GraphError
from servepipe.graph import ir
from servepipe.graph.calls import NodeDefinition
from servepipe.graph.values import MAX_DEPTH, at_index, encode_value, too_deep

__all__ = ["Lowered", "LoweredNode", "UnusedStepWarning", "lower"]


class UnusedStepWarning(UserWarning):
    """A step was bound that the output does not need; compiling such a graph is an error."""


@dataclass(frozen=True, slots=True)
class LoweredNode:
    """A node of the compiled graph, before options that are set on the App.

    Args:
        name: Unique among the nodes.
        target: The class or function.
        args: Constructor arguments.
        kwargs: Its keyword arguments.
        fields: Options as fields of the resource.
        where: ``file:line`` of the user's ``bind``.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[ir.Expr, ...]
    kwargs: tuple[tuple[str, ir.Expr], ...]
    fields: Fields
    where: str

    def definition(self, fields: Mapping[str, Any]) -> NodeDefinition:
        """The node for running in process; ``fields`` are its options with those of the App on top."""
        fields = with_room(self.target, fields)
        return NodeDefinition(
            name=self.name,
            target=self.target,
            args=self.args,
            kwargs=self.kwargs,
            max_ongoing_requests=fields.get("maxOngoingRequests", 5),
            blocking=fields.get("blocking"),
            user_config=fields.get("userConfig"),
        )


@dataclass(frozen=True, slots=True)
class Lowered:
    """A graph with names, ready to be run in process or written as a resource.

    Args:
        graph: Without pre- and postprocessor: these are functions that need no import path in process.
        nodes: In the order in which the steps need them, holders after what they hold.
        preprocessor: The function itself, or None.
        unused: A line about each step that the output does not need.
        unnamed: A line about each node whose name depends on the order of binding.
    """

    graph: ir.Graph
    nodes: Mapping[str, LoweredNode]
    preprocessor: Callable[[Any], Any] | None
    unused: tuple[str, ...]
    unnamed: tuple[str, ...]


def lower(output: Any, labels: Labels, where: str) -> Lowered:
    """The compiled graph that computes ``output``.

    Args:
        output: A step, a part of one, or a list, tuple or dict of these.
        labels: Variables of the function or module that calls `build`; those of the ``with`` block count before them.
        where: ``file:line`` of that call.

    Raises:
        GraphError: The graph is not valid; its subclasses say how.
    """
    if isinstance(output, MultiOutputNode):
        output = output._outputs
    found = Discovery(output, where)
    if found.input is not None:
        labels = found.input._labels.then(labels)
    names = _Names(found, labels)
    expressions = _Expressions(found, names.of)
    steps = tuple(expressions.step(step) for step in found.steps)
    nodes = {names.of[id(node)]: expressions.node(node) for node in found.nodes}
    graph = ir.Graph(steps, expressions.of(output, f"{where} output"))
    return Lowered(
        graph=graph,
        nodes=nodes,
        preprocessor=found.input._preprocessor if found.input is not None else None,
        unused=tuple(_unused(found, labels)),
        unnamed=tuple(names.unnamed),
    )


class _Names:
    """The name of each step and node; ``unnamed`` has a line for each node whose name depends on order."""

    def __init__(self, found: Discovery, labels: Labels) -> None:
        self.of: dict[int, str] = {}
        self.unnamed: list[str] = []
        self._found = found
        self._labels = labels
        self._name_nodes(found.nodes)
        self._name_steps(found.steps)

    def _name_nodes(self, nodes: list[Node]) -> None:
        names = UniqueNames(RESERVED)
        nameless: list[ClassNode] = []
        for node in nodes:
            label = self._label(node)
            if label is None:
                assert isinstance(node, ClassNode)
                nameless.append(node)
                continue
            what, where, fix = _describe_node(node)
            self.of[id(node)] = names.claim(normalised(label, what, where, fix), what, where, fix)
        for node in sorted(nameless, key=lambda node: node._order):
            what, where, fix = _describe_node(node)
            name = names.numbered(node._target.__name__, 1, what, where, fix)
            self.of[id(node)] = name
            self.unnamed.append(f"{name} ({where})")

    def _label(self, node: Node) -> str | None:
        if node._name is not None:
            return node._name
        if isinstance(node, RemoteFunction):
            return getattr(node._target, "__name__", "function").strip("<>")  # "<lambda>"
        return self._labels.of(node._identity)

    def _name_steps(self, steps: list[Step]) -> None:
        names = UniqueNames()
        nameless: list[Step] = []
        for step in steps:
            label = step._name if step._name is not None else self._labels.of(step._identity)
            if label is None:
                nameless.append(step)
                continue
            what, where, fix = _describe_step(step)
            self.of[id(step)] = names.claim(normalised(label, what, where, fix), what, where, fix)
        for step in nameless:  # in the graph's own order, which is that of Ray's graphs too
            what, where, fix = _describe_step(step)
            self.of[id(step)] = names.numbered(self._stem(step), 2, what, where, fix)

    def _stem(self, step: Step) -> str:
        if isinstance(step, CallStep):
            return f"{self.of[id(self._found.node(step._node))]}-{step._method or 'call'}"
        return repr(step)


class _Expressions:
    """Values, steps and nodes in the form of the compiled graph."""

    def __init__(self, found: Discovery, names: Mapping[int, str]) -> None:
        self._found = found
        self._names = names

    def step(self, step: Step) -> ir.Step:
        name, where = self._names[id(step)], str(step._place)
        match step:
            case CallStep():
                return ir.Call(
                    name,
                    node=self._node_name(step._node),
                    method=step._method,
                    args=self._args(step._args, where),
                    kwargs=self._kwargs(step._kwargs, where),
                    timeout_s=step._timeout,
                    retries=step._retries,
                )
            case combinators.SwitchStep():
                cases = tuple((when, self.of(then, f"{where} cases[{when!r}]")) for when, then in step._cases.items())
                has_default = step._default is not combinators.NO_DEFAULT
                default = self.of(step._default, f"{where} default") if has_default else None
                return ir.Switch(name, self.of(step._on, f"{where} on"), cases, default)
            case combinators.SplitStep():
                branches = tuple(
                    (weight, self.of(then, f"{where} branches[{index}]"))
                    for index, (weight, then) in enumerate(step._branches)
                )
                has_key = step._on is not combinators.NO_DEFAULT
                return ir.Split(name, branches, self.of(step._on, f"{where} on") if has_key else None)
            case combinators.MapStep():
                over, each = self.of(step._over, f"{where} over"), self.of(step._each, f"{where} each")
                return ir.Map(name, over, each, step._concurrency)
            case combinators.FallbackStep():
                return ir.Fallback(name, self._args(step._operands, where))
            case combinators.FirstStep():
                return ir.First(name, self._args(step._operands, where))
        raise AssertionError(f"unknown step {step!r}")

    def node(self, node: Node) -> LoweredNode:
        _, where, _ = _describe_node(node)
        args, kwargs = (node._args, node._kwargs) if isinstance(node, ClassNode) else ((), {})
        return LoweredNode(
            name=self._names[id(node)],
            target=node._target,
            args=self._args(args, where),
            kwargs=self._kwargs(kwargs, where),
            fields=node._fields,
            where=where,
        )

    def of(self, value: Any, where: str, depth: int = MAX_DEPTH) -> ir.Expr:
        """The expression of ``value``; containers without references are one constant."""
        kind = type(value)
        if kind is list or kind is tuple:
            if depth == 0:
                raise too_deep(where)
            items = [self.of(item, at_index(where, index), depth - 1) for index, item in enumerate(value)]
            if all(isinstance(item, ir.Const) for item in items):
                return ir.Const(kind(item.value for item in items if isinstance(item, ir.Const)))
            return ir.ListOf(tuple(items)) if kind is list else ir.TupleOf(tuple(items))
        if kind is dict:
            if depth == 0:
                raise too_deep(where)
            encode_value(dict.fromkeys(value), where)  # the keys
            fields = [(key, self.of(item, f"{where}[{key!r}]", depth - 1)) for key, item in value.items()]
            if all(isinstance(item, ir.Const) for _, item in fields):
                return ir.Const({key: item.value for key, item in fields if isinstance(item, ir.Const)})
            return ir.DictOf(tuple(fields))
        match value:
            case InputPart():
                return ir.InputRef(value._path)
            case Item():
                return ir.ItemRef(self._names[id(value._of)], value._path)
            case Step():
                return ir.StepRef(self._names[id(value)])
            case StepPart():
                return ir.StepRef(self._names[id(value._step)], value._path)
            case ClassNode() | RemoteFunction():  # only constructors get here with one
                return ir.NodeRef(self._node_name(value))
        _refuse_unbound(value, where)
        encode_value(value, where)
        return ir.Const(value)

    def _node_name(self, node: Node) -> str:
        return self._names[id(self._found.node(node))]

    def _args(self, args: Iterable[Any], where: str) -> tuple[ir.Expr, ...]:
        return tuple(self.of(value, at_index(f"{where} args", index)) for index, value in enumerate(args))

    def _kwargs(self, kwargs: Mapping[str, Any], where: str) -> tuple[tuple[str, ir.Expr], ...]:
        return tuple((key, self.of(value, f"{where} kwargs[{key!r}]")) for key, value in kwargs.items())


def _describe_node(node: Node) -> tuple[str, str, str]:
    """What it is, where it stands, and how to give it a name."""
    target = getattr(node._target, "__qualname__", repr(node._target))
    short = getattr(node._target, "__name__", "it")
    if isinstance(node, ClassNode):
        return f"a node of {target}", str(node._place), f'Give it a name: {short}.options(name="...").bind(...).'
    code = getattr(node._target, "__code__", None)
    where = str(Place(code.co_filename, code.co_firstlineno)) if code else ""
    if short == "<lambda>":  # another name would only lead to the next error: nobody else can import it
        fix = "Write it as a function with a name of its own, at the top level of its module."
        return f"the function {target}", where, fix
    return f"the function {target}", where, f'Give it a name: {short}.options(name="...").bind(...).'


def _describe_step(step: Step) -> tuple[str, str, str]:
    """What it is, where it stands, and how to give it a name."""
    if not isinstance(step, CallStep):
        fix = 'Pass name="...".'
    elif step._method is None:
        fix = "Assign it to a variable of another name."  # a function's .options(name=...) names its node
    else:
        fix = f'Give it a name: .{step._method}.options(name="...").bind(...).'
    return f"the step {step!r}", str(step._place), fix


def _refuse_unbound(value: Any, where: str) -> None:
    """Clearer words than "not JSON" for things that nearly are part of a graph."""
    kind = type(value)
    if isinstance(value, RemoteClass | Method):
        raise GraphError(f"{value!r} is not bound", where=where, fix="Call .bind(...) on it.")
    if isinstance(value, MultiOutputNode):
        raise GraphError("a MultiOutputNode is given to a step", where=where, fix="Pass the list or dict itself.")
    if kind.__module__.startswith("ray."):
        raise GraphError(
            f"a {kind.__name__} of Ray is given to a step of servepipe",
            where=where,
            fix="Write the graph with one kind of nodes: `remote` of servepipe, or ray.remote with "
            "`from servepipe.ray import ServeInputNode`.",
        )


def _unused(found: Discovery, labels: Labels) -> Iterator[str]:
    if found.input is None:
        return
    used = {id(step) for step in found.steps}
    # After the block a step counts while a variable holds it: IPython's Out keeps those of cells that were run again.
    outside = [step for step in found.input._outside if labels.of(step) is not None]
    for step in sorted([*found.input._inside, *outside], key=lambda step: step._order):
        if id(step) not in used:
            label = labels.of(step._identity)
            yield f"{label} ({step!r}, {step._place})" if label else f"{step!r} ({step._place})"
