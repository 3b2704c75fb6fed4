"""What is wrong with a graph: every kind of problem, with its path, and none where nothing is wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from servepipe.errors import GraphError, GraphTooLargeError
from servepipe.graph import ir
from servepipe.graph.calls import NodeDefinition
from servepipe.graph.checks import Kind, located, problems, require_runnable
from servepipe.graph.ir import (
    Attr,
    Const,
    DictOf,
    Fallback,
    First,
    InputRef,
    ItemRef,
    ListOf,
    Map,
    NodeRef,
    Split,
    StepRef,
    Switch,
    TupleOf,
)
from servepipe.graph.program import Program


def node(*args: ir.Expr, **kwargs: ir.Expr) -> NodeDefinition:
    return NodeDefinition("n", object, args, tuple(kwargs.items()))


NODES = {"n": node()}


def call(name: str, *args: ir.Expr, on: str = "n", **more: Any) -> ir.Call:
    return ir.Call(name, on, "f", args, **more)


def graph(*steps: ir.Step, output: ir.Expr | None = None) -> ir.Graph:
    return ir.Graph(steps, StepRef(steps[-1].name) if output is None else output)


NESTED = DictOf((("odd key", TupleOf((ListOf((Const(1), StepRef("nope"))),))),))

CASES: list[tuple[str, ir.Graph, Kind, str, str]] = [
    ("no steps", ir.Graph((), InputRef()), Kind.EMPTY, "spec.graph.steps", "has no steps"),
    ("one name twice", graph(call("a"), call("a")), Kind.DUPLICATE_NAME, "spec.graph.steps[1].name", "named 'a'"),
    (
        "step",
        graph(call("a", NESTED)),
        Kind.UNKNOWN_STEP,
        'spec.graph.steps[0].args[0]["odd key"].$tuple[0][1]',
        "'nope'",
    ),
    (
        "step in a keyword",
        graph(ir.Call("a", "n", "f", (), (("k", StepRef("nope")),))),
        Kind.UNKNOWN_STEP,
        "spec.graph.steps[0].kwargs.k",
        "'nope'",
    ),
    ("output", graph(call("a"), output=StepRef("A")), Kind.UNKNOWN_STEP, "spec.graph.output", "'A'"),
    (
        "item of no map",
        graph(call("a", ItemRef("texts"))),
        Kind.UNKNOWN_STEP,
        "spec.graph.steps[0].args[0]",
        "no map step 'texts'",
    ),
    (
        "item of a call",
        graph(call("a"), call("b", StepRef("a"), ItemRef("a"))),
        Kind.UNKNOWN_STEP,
        "spec.graph.steps[1].args[1]",
        "step 'a' is not a map",
    ),
    ("node", graph(call("a", on="m")), Kind.UNKNOWN_NODE, "spec.graph.steps[0].node", "there is no node 'm'"),
    (
        "handle in a step",
        graph(call("a", ListOf((NodeRef("n"),)))),
        Kind.MISPLACED,
        "spec.graph.steps[0].args[0][0]",
        "a handle to node 'n' cannot be an argument of a step",
    ),
    (
        "cycle",
        graph(call("a", StepRef("c")), call("b", StepRef("a")), call("c", StepRef("b")), output=StepRef("a")),
        Kind.STEP_CYCLE,
        "spec.graph.steps[0]",
        "a -> c -> b -> a",
    ),
    ("cycle of one", graph(call("b"), call("a", StepRef("a"))), Kind.STEP_CYCLE, "spec.graph.steps[1]", "a -> a"),
    (
        "unused",
        graph(call("a"), call("b", StepRef("a")), call("c")),
        Kind.UNUSED_STEP,
        "spec.graph.steps[1]",
        "nothing needs step 'b'",
    ),
    (
        "item outside its map",
        graph(call("a", ItemRef("m")), Map("m", Const([1]), StepRef("a")), call("b", StepRef("m"), StepRef("a"))),
        Kind.ITEM_SCOPE,
        "spec.graph.steps[0]",
        "step 'a' depends on the item of map 'm'",
    ),
    (
        "item in the output",
        graph(Map("m", Const([1]), Const(2)), output=ListOf((StepRef("m"), ItemRef("m")))),
        Kind.ITEM_SCOPE,
        "spec.graph.output",
        "the output depends on the item of map 'm'",
    ),
    (
        "map over its own item",
        graph(call("a", ItemRef("m")), Map("m", StepRef("a"), Const(1))),
        Kind.ITEM_SCOPE,
        "spec.graph.steps[1].map.over",
        "depends on the map's own item",
    ),
    (
        "two maps inside each other",
        graph(
            call("a", ItemRef("m1"), ItemRef("m2")),
            Map("m1", Const([1]), StepRef("a")),
            Map("m2", Const([1]), StepRef("a")),
            output=ListOf((StepRef("m1"), StepRef("m2"))),
        ),
        Kind.ITEM_SCOPE,
        "spec.graph.steps[0]",
        "step 'a' depends on the item of map 'm1'",
    ),
    (
        "weights",
        graph(Split("s", ((50, Const(1)), (40, Const(2))))),
        Kind.BAD_VALUE,
        "spec.graph.steps[0].split.branches",
        "the weights do not sum to 100: 50 + 40 = 90",
    ),
    (
        "no weights",
        graph(Split("s", ())),
        Kind.BAD_VALUE,
        "spec.graph.steps[0].split.branches",
        "the weights do not sum to 100: no branches = 0",
    ),
    (
        "a weight",
        graph(Split("s", ((-10, Const(1)), (110, Const(2))))),
        Kind.BAD_VALUE,
        "spec.graph.steps[0].split.branches[0].weight",
        "a weight of -10 is not between 0 and 100",
    ),
    (
        "no cases",
        graph(Switch("s", InputRef(), (), Const(1))),
        Kind.BAD_VALUE,
        "spec.graph.steps[0].switch.cases",
        "the switch has no cases",
    ),
    (
        "a case twice",
        graph(Switch("s", InputRef(), ((1, Const(1)), (True, Const(2)), (1, Const(3))))),
        Kind.BAD_VALUE,
        "spec.graph.steps[0].switch.cases[2].when",
        "an earlier case already takes 1",
    ),
    (
        "concurrency",
        graph(Map("m", InputRef(), Const(1), concurrency=0)),
        Kind.BAD_VALUE,
        "spec.graph.steps[0].map.concurrency",
        "lets no item run",
    ),
    ("no options", graph(Fallback("f", ())), Kind.BAD_VALUE, "spec.graph.steps[0].fallback", "there are no options"),
    ("no options", graph(First("f", ())), Kind.BAD_VALUE, "spec.graph.steps[0].first", "there are no options"),
    ("timeout", graph(call("a", timeout_s=0)), Kind.BAD_VALUE, "spec.graph.steps[0].timeout", "a timeout of 0 s"),
    ("retries", graph(call("a", retries=-1)), Kind.BAD_VALUE, "spec.graph.steps[0].retries", "-1 retries"),
]


@pytest.mark.parametrize(
    ("wrong", "kind", "path", "what"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_every_problem_is_found_where_it_is(wrong: ir.Graph, kind: Kind, path: str, what: str) -> None:
    found = [problem for problem in problems(wrong, NODES) if problem.kind is kind]

    assert found
    assert (found[0].path, what in found[0].what) == (path, True)
    error = found[0].as_error()
    assert str(error).startswith(f"{path}: ")
    assert str(found[0].as_error("pipeline.py:3")).startswith("pipeline.py:3: ")
    if kind in (Kind.UNKNOWN_NODE, Kind.UNUSED_STEP):  # what a graph by itself can live with
        require_runnable(wrong)
    else:
        with pytest.raises(GraphError):
            Program(wrong)


@pytest.mark.parametrize(
    ("step", "field"),
    [
        (Switch("s", StepRef("x"), ((1, Const(1)),)), "switch.on"),
        (Switch("s", Const(1), ((1, Const(1)), (2, StepRef("x")))), "switch.cases[1].then"),
        (Switch("s", Const(1), ((1, Const(1)),), StepRef("x")), "switch.default"),
        (Split("s", ((0, Const(1)), (100, StepRef("x")))), "split.branches[1].then"),
        (Split("s", ((100, Const(1)),), StepRef("x")), "split.on"),
        (Map("s", StepRef("x"), Const(1)), "map.over"),
        (Map("s", Const([]), StepRef("x")), "map.each"),
        (Fallback("s", (Const(1), StepRef("x"))), "fallback[1]"),
        (First("s", (Const(1), StepRef("x"))), "first[1]"),
    ],
)
def test_paths_are_those_of_the_resource(step: ir.Step, field: str) -> None:
    (found,) = problems(graph(step), NODES)

    assert (found.kind, found.path, found.names) == (Kind.UNKNOWN_STEP, f"spec.graph.steps[0].{field}", ("x",))


def test_names_that_are_nearly_right_are_suggested() -> None:
    found = problems(graph(call("m1-output", on="ensembel"), output=StepRef("m1-ouput")), {"ensemble": node()})

    assert problems(graph(call("a", ItemRef("m"))), NODES)[0].fix == ""  # there is no map to suggest
    assert {problem.kind: problem.fix for problem in found if problem.kind is not Kind.UNUSED_STEP} == {
        Kind.UNKNOWN_STEP: 'Did you mean "m1-output"?',
        Kind.UNKNOWN_NODE: (
            'Did you mean "ensemble"? Nothing uses that node: either name may be the misspelt one, write both alike.'
        ),
    }


def test_nodes_that_hold_each_other() -> None:
    nodes = {
        "n": node(NodeRef("a"), x=DictOf((("list", ListOf((NodeRef("b"), NodeRef("b")))),))),
        "a": node(NodeRef("b")),
        "b": node(k=ListOf((NodeRef("n"),))),
        "c": node(NodeRef("n"), NodeRef("nn")),
    }

    found = problems(graph(call("s")), nodes)

    assert [(problem.kind, problem.path) for problem in found] == [
        (Kind.UNKNOWN_NODE, "spec.nodes.c.args[1]"),
        (Kind.HANDLE_CYCLE, "spec.nodes.n"),
    ]
    assert "n -> b -> n" in found[1].what
    assert found[1].names == ("n", "b")
    assert (
        problems(graph(call("s")), {"n": node(NodeRef("a"), NodeRef("b")), "a": node(NodeRef("b")), "b": node()}) == []
    )


@pytest.mark.parametrize("expr", [InputRef(), StepRef("s"), ItemRef("m")])
def test_a_constructor_takes_nothing_of_a_request(expr: ir.Expr) -> None:
    (found,) = problems(graph(call("s")), {"n": node(k=ListOf((expr,)))})

    assert (found.kind, found.path) == (Kind.MISPLACED, "spec.nodes.n.kwargs.k[0]")
    assert "cannot receive what belongs to one request" in found.what


def test_a_resource_holds_so_many_steps_and_nodes() -> None:
    steps = [call("s0"), *(call(f"s{n}", StepRef(f"s{n - 1}")) for n in range(1, 129))]
    nodes = {f"n{n}" if n else "n": node() for n in range(129)}

    found = problems(graph(*steps), nodes)

    assert [(problem.kind, problem.path) for problem in found] == [
        (Kind.TOO_LARGE, "spec.graph.steps"),
        (Kind.TOO_LARGE, "spec.nodes"),
    ]
    assert isinstance(found[0].as_error(), GraphTooLargeError)
    assert "the graph has 129 steps; a ServePipeline holds at most 128" in found[0].what
    assert problems(graph(*steps), nodes, bounded=False) == []


def test_nothing_is_wrong_with_a_graph_that_uses_everything(make: SimpleNamespace) -> None:
    right = graph(
        call("a", InputRef((0, "k", Attr("x")))),
        call("each", ItemRef("inner"), ItemRef("outer"), StepRef("a")),
        Map("inner", ItemRef("outer"), StepRef("each"), concurrency=1),
        call("per-outer", ItemRef("outer", ("k",))),
        Map("outer", StepRef("a"), ListOf((StepRef("inner"), StepRef("per-outer")))),
        call("once", ItemRef("lonely")),
        Map("lonely", Const([1]), StepRef("once")),
        Switch("switch", StepRef("a"), (("x", StepRef("outer")), (1, Const(1)), (True, Const(2))), StepRef("lonely")),
        Split("split", ((0, Const(1)), (100, StepRef("switch"))), StepRef("a", ("k",))),
        Fallback("fallback", (StepRef("split"), Const(None))),
        First("first", (StepRef("fallback"),)),
        output=DictOf((("all", TupleOf((StepRef("first"), InputRef()))),)),
    )

    assert problems(right, NODES) == []
    Program(right)


def test_many_steps_and_deep_values_need_no_recursion() -> None:
    deep: ir.Expr = StepRef("s0")
    for _ in range(5000):
        deep = ListOf((deep,))
    chain = [call("s0"), call("s1", deep), *(call(f"s{n}", StepRef(f"s{n - 1}")) for n in range(2, 3000))]
    assert problems(graph(*chain), NODES, bounded=False) == []

    ring = [call("s0", StepRef("s2999")), *chain[1:]]
    (found,) = problems(graph(*ring), NODES, bounded=False)
    assert (found.kind, len(found.names)) == (Kind.STEP_CYCLE, 3000)

    holders = {f"n{n}" if n else "n": node(NodeRef(f"n{n + 1}")) for n in range(2999)} | {"n2999": node()}
    assert problems(graph(call("s")), holders, bounded=False) == []


def test_located_gives_outermost_first() -> None:
    expr = ListOf((Const(1), DictOf((("a", Const(2)),))))

    assert list(located(expr, "x")) == [("x", expr), ("x[0]", Const(1)), ("x[1]", expr.items[1]), ("x[1].a", Const(2))]
