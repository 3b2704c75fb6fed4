"""The wire form of values, expressions, steps and graphs, and what is said about a wrong one."""

from __future__ import annotations

import enum
import math
from collections import OrderedDict, namedtuple
from typing import Any

import pytest

from servepipe.errors import ResourceError, ServePipeError, ValueNotSupportedError
from servepipe.graph.ir import (
    Attr,
    Call,
    Const,
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
)
from servepipe.graph.wire import (
    MAX_DEPTH,
    decode_value,
    did_you_mean,
    dump_expr,
    dump_graph,
    dump_step,
    encode_value,
    format_duration,
    parse_duration,
    parse_expr,
    parse_graph,
    parse_step,
)

A = Call("a", "m1")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def fails(call: Any, *arguments: Any, error: type[ServePipeError] = ResourceError) -> ServePipeError:
    with pytest.raises(error) as caught:
        call(*arguments)
    return caught.value


# --- Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "json"),
    [
        (None, {"$null": True}),
        (True, True),
        (0, 0),
        (2**53, 2**53),
        (-(2**53), -(2**53)),
        (2**53 + 1, {"$int": "9007199254740993"}),
        (-(2**53) - 1, {"$int": "-9007199254740993"}),
        (2**63, {"$int": "9223372036854775808"}),
        (2**64, {"$int": "18446744073709551616"}),
        (1.5, 1.5),
        (1.0, {"$float": "1.0"}),
        (-0.0, {"$float": "-0.0"}),
        (1e21, {"$float": "1e+21"}),
        (1e-7, {"$float": "1e-07"}),
        (1e-6, 1e-6),
        ("", ""),
        ([], []),
        ((), {"$tuple": []}),
        ({}, {}),
        ([None, [None]], [None, [None]]),
        ((None, 1), {"$tuple": [None, 1]}),
        ({"a": None}, {"a": {"$null": True}}),
        ({"$a": 1, "b": (1,)}, {"$value": {"$a": 1, "b": {"$tuple": [1]}}}),
        ({"$value": {"$null": True}}, {"$value": {"$value": {"$value": {"$null": True}}}}),
        ({"a$": 1, "": 2}, {"a$": 1, "": 2}),
        ("a\x7fb", {"$string": r"a\u007fb"}),
        ("\x85\\\ufeff\ufffe\uffff", {"$string": r"\u0085\\\ufeff\ufffe\uffff"}),
        (r"\u0085", r"\u0085"),
        (["\x1f\xa0\u2028"], ["\x1f\xa0\u2028"]),
    ],
)
def test_values_have_this_form_and_come_back(value: Any, json: Any) -> None:
    assert encode_value(value, "x") == json
    back = decode_value(json)
    assert repr(back) == repr(value)  # 1, 1.0 and True are equal, their text is not


def test_encoding_and_decoding_share_nothing_with_their_argument() -> None:
    inner: list[Any] = [1]
    value = {"a": inner}
    json = encode_value(value, "x")
    back = decode_value(json)
    inner.append(2)
    json["a"].append(3)
    assert back == {"a": [1]}


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "what", "fix"),
    [
        (math.nan, "nan is not a JSON number", "Pass None"),
        (-math.inf, "-inf is not a JSON number", "Pass None"),
        ("\ud800", "lone surrogate at position 0", "replace"),
        (b"x", "a value of type bytes is not JSON", "base64"),
        (bytearray(b"x"), "bytearray", "base64"),
        ({1, 2}, "a value of type set is not JSON", "sorted list"),
        (object(), "a value of type object is not JSON", "Pass what the constructor needs"),
        (Colour.RED, "test_wire.Colour would arrive as a plain int", "int(...)"),
        (Text("a"), "would arrive as a plain str", "str(...)"),
        (Point(1, 2), "would arrive as a plain tuple", "tuple(...)"),
        (OrderedDict(a=1), "would arrive as a plain dict", "dict(...)"),
        ({1: 2}, "the key 1 is of type int", "string keys"),
        ({Text("a"): 2}, "is of type Text", "string keys"),
        ({"\udfff": 2}, "lone surrogate", "replace"),
        ({"a\x85": 2}, "has a control character", "other keys"),
        pytest.param(10**5000, "an integer of about 49", "", id="5000 digits"),
        (nested(MAX_DEPTH + 1), "nested deeper than 64", "Flatten"),
    ],
)
def test_what_has_no_form_is_refused_with_what_where_and_fix(value: Any, what: str, fix: str) -> None:
    error = fails(encode_value, {"k": [0, value]}, "m1 args[0]", error=ValueNotSupportedError)
    assert what in error.what
    assert error.where.startswith('m1 args[0]["k"][1]')
    assert fix in error.fix


def test_keys_beside_references_are_checked_alike() -> None:
    error = fails(dump_expr, DictOf((("a\x85", StepRef("s")),)), "m1 args[0]", error=ValueNotSupportedError)
    assert "has a control character" in error.what


def test_a_container_that_holds_itself_is_refused() -> None:
    value: dict[str, Any] = {}
    value["me"] = value
    assert "holds itself" in fails(encode_value, value, "x", error=ValueNotSupportedError).what


def test_the_deepest_allowed_value_comes_back() -> None:
    assert decode_value(encode_value(nested(MAX_DEPTH), "x")) == nested(MAX_DEPTH)


def test_decoding_refuses_references_and_hostile_nesting() -> None:
    assert "only a constant" in fails(decode_value, {"a": {"$step": "x"}}, "spec.x").what
    error = fails(decode_value, nested(100_000), "spec.x")
    assert "nested deeper" in error.what
    assert error.where.startswith("spec.x[0]")


# --- Expressions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "json"),
    [
        (Const(1), 1),
        (Const((1, None)), {"$tuple": [1, None]}),
        (InputRef(), {"$input": []}),
        (InputRef((0, "k", Attr("name"), -1)), {"$input": [0, "k", {"attr": "name"}, -1]}),
        (StepRef("m1-output"), {"$step": "m1-output"}),
        (StepRef("m1-output", ("k", 0)), {"$step": ["m1-output", "k", 0]}),
        (ItemRef("texts"), {"$item": "texts"}),
        (ItemRef("texts", ("k",)), {"$item": ["texts", "k"]}),
        (NodeRef("m2"), {"$node": "m2"}),
        (ListOf((Const(None), StepRef("a"))), [None, {"$step": "a"}]),
        (TupleOf((Const(None), StepRef("a"))), {"$tuple": [None, {"$step": "a"}]}),
        (DictOf((("a", Const(None)), ("b", StepRef("a")))), {"a": {"$null": True}, "b": {"$step": "a"}}),
        (DictOf((("$a", StepRef("a")),)), {"$value": {"$a": {"$step": "a"}}}),
    ],
)
def test_expressions_have_this_form_and_come_back(expr: Expr, json: Any) -> None:
    assert dump_expr(expr) == json
    assert parse_expr(json) == expr


def test_containers_without_references_become_one_constant() -> None:
    assert parse_expr(dump_expr(ListOf((Const(1), DictOf((("a", TupleOf(())),)))))) == Const([1, {"a": ()}])


def test_a_list_path_with_the_name_alone_is_read_too() -> None:
    assert parse_expr({"$step": ["a"]}) == StepRef("a")


def test_expressions_nested_too_deeply_are_refused_both_ways() -> None:
    expr: Expr = InputRef()
    for _ in range(MAX_DEPTH + 1):
        expr = ListOf((expr,))
    assert "nested deeper" in fails(dump_expr, expr, "x", error=ValueNotSupportedError).what


@pytest.mark.parametrize(
    ("json", "where", "what"),
    [
        ({"$stp": "a"}, "p", '"$stp" is not a form'),
        ({"$step": "a", "b": 1}, "p", "has other keys beside it: '$step', 'b'"),
        ({"$step": []}, "p.$step", "a step's name"),
        ({"$step": [1]}, "p.$step", "a step's name"),
        ({"$step": ["a", None]}, "p.$step[1]", "an index, a key or an attribute, not null"),
        ({"$input": 0}, "p.$input", "expected a list, not 0"),
        ({"$input": [True]}, "p.$input[0]", "not true"),
        ({"$input": [{"attr": 1}]}, "p.$input[0]", "not an object"),
        ({"$input": [{"attr": "a", "b": 1}]}, "p.$input[0]", "not an object"),
        ({"$input": [2**70]}, "p.$input[0]", "an integer beyond 64 bits"),
        ({"$node": 1}, "p.$node", "expected a string, not 1"),
        ({"$tuple": {}}, "p.$tuple", "expected a list, not an object"),
        ({"$value": []}, "p.$value", "expected an object, not a list"),
        ({"$float": 1.0}, "p.$float", "expected a string"),
        ({"$float": "nan"}, "p.$float", "'nan' is not a finite number"),
        ({"$float": "1_0"}, "p.$float", "'1_0' is not a finite number"),
        ({"$float": "1e999"}, "p.$float", "not a finite number"),
        ({"$int": "1.0"}, "p.$int", "'1.0' is not an integer"),
        ({"$string": 1}, "p.$string", "expected a string"),
        ({"$string": r"a\n"}, "p.$string", "has a backslash that begins no escape"),
        ({"$string": r"\u00AF"}, "p.$string", "has a backslash that begins no escape"),
        ({"$string": r"\ud800"}, "p.$string", "has a backslash that begins no escape"),
        ({"$int": "9" * 5000}, "p.$int", "is not an integer"),
        ({"$null": False}, "p.$null", "expected true, not false"),
        ([{"a": {"$x y": 1}}], "p[0].a", '"$x y"'),
        ({"odd key": 2**70}, 'p["odd key"]', "beyond 64 bits"),
        ({"k" * 50 + '"': {1: 2}}, 'p["' + "k" * 37 + '..."]', "the key 1 is not a string"),
        ({1: 2}, "p", "the key 1 is not a string"),
        (math.inf, "p", "inf is not a JSON number"),
        (b"", "p", "a value of type bytes is not JSON"),
    ],
)
def test_wrong_expressions_are_refused_at_their_place(json: Any, where: str, what: str) -> None:
    error = fails(parse_expr, json, "p")
    assert (error.where, what in error.what) == (where, True), str(error)


def test_an_unknown_form_is_compared_with_the_known_ones() -> None:
    assert 'Did you mean "$step"?' in fails(parse_expr, {"$stp": "a"}, "p").fix
    assert did_you_mean("zzz", ["a", "b"]) == "Known are a, b."
    assert did_you_mean("zzz", []) == ""


# --- Steps and graphs -------------------------------------------------------------------------------------------------

STEPS: list[tuple[Step, dict[str, Any]]] = [
    (A, {"name": "a", "node": "m1"}),
    (
        Call("a", "m1", "f", (Const(None), InputRef()), (("k", Const(None)), ("l", Const(1.0))), 0.5, 2),
        {
            "name": "a",
            "node": "m1",
            "method": "f",
            "args": [None, {"$input": []}],
            "kwargs": {"k": {"$null": True}, "l": {"$float": "1.0"}},
            "timeout": "500ms",
            "retries": 2,
        },
    ),
    (
        Switch("s", InputRef(), (("a", Const(None)), (1, StepRef("a"))), Const(None)),
        {
            "name": "s",
            "switch": {
                "on": {"$input": []},
                "cases": [{"when": "a", "then": {"$null": True}}, {"when": 1, "then": {"$step": "a"}}],
                "default": {"$null": True},
            },
        },
    ),
    (
        Switch("s", Const("x"), ((True, Const(2)),)),
        {"name": "s", "switch": {"on": "x", "cases": [{"when": True, "then": 2}]}},
    ),
    (
        Split("s", ((90, Const("a")), (10, Const(None))), InputRef((0,))),
        {
            "name": "s",
            "split": {
                "branches": [{"weight": 90, "then": "a"}, {"weight": 10, "then": {"$null": True}}],
                "on": {"$input": [0]},
            },
        },
    ),
    (Split("s", ((100, Const(1)),)), {"name": "s", "split": {"branches": [{"weight": 100, "then": 1}]}}),
    (
        Map("m", InputRef(), ItemRef("m"), 8),
        {"name": "m", "map": {"over": {"$input": []}, "each": {"$item": "m"}, "concurrency": 8}},
    ),
    (Map("m", Const([1]), Const(2)), {"name": "m", "map": {"over": [1], "each": 2}}),
    (Fallback("f", (StepRef("a"), Const(None))), {"name": "f", "fallback": [{"$step": "a"}, None]}),
    (First("f", (StepRef("a"), StepRef("b"))), {"name": "f", "first": [{"$step": "a"}, {"$step": "b"}]}),
]


@pytest.mark.parametrize(("step", "json"), STEPS)
def test_steps_have_this_form_and_come_back(step: Step, json: dict[str, Any]) -> None:
    assert dump_step(step) == json
    assert parse_step(json) == step


def test_graphs_have_this_form_and_come_back() -> None:
    graph = Graph((A,), DictOf((("x", StepRef("a")),)), "diamond:before", "diamond:after")
    json = dump_graph(graph)
    assert json == {
        "input": {"preprocessor": "diamond:before"},
        "steps": [{"name": "a", "node": "m1"}],
        "output": {"x": {"$step": "a"}},
        "response": {"postprocessor": "diamond:after"},
    }
    assert parse_graph(json) == graph
    assert dump_graph(Graph((), Const(None))) == {"steps": [], "output": {"$null": True}}


@pytest.mark.parametrize(
    ("json", "where", "what"),
    [
        ([], "g", "expected an object, not a list"),
        ({"output": 1}, "g", 'the field "steps" is missing'),
        ({"steps": []}, "g", 'the field "output" is missing'),
        ({"steps": {}, "output": 1}, "g.steps", "expected a list"),
        ({"steps": [], "output": 1, "outputs": 1}, "g", "unknown field 'outputs'"),
        ({"steps": [], "output": 1, "input": {"pre": 1}}, "g.input", "unknown field 'pre'"),
        ({"steps": [], "output": 1, "input": {"preprocessor": 1}}, "g.input.preprocessor", "expected a string"),
        (
            {"steps": [], "output": 1, "response": {"postprocessor": []}},
            "g.response.postprocessor",
            "expected a string",
        ),
        ({"steps": [3], "output": 1}, "g.steps[0]", "expected an object, not 3"),
        ({"steps": [], "output": {"$x": 1}}, "g.output", "not a form"),
    ],
)
def test_wrong_graphs_are_refused_at_their_place(json: Any, where: str, what: str) -> None:
    error = fails(parse_graph, json, "g")
    assert (error.where, what in error.what) == (where, True), str(error)


@pytest.mark.parametrize(
    ("json", "where", "what"),
    [
        ({"name": "a"}, "s", "this one has none of them: 'name'"),
        ({"name": "a", "node": "b", "map": {}}, "s", "this one has node and map"),
        ({"node": "b"}, "s", 'the field "name" is missing'),
        ({"name": 1, "node": "b"}, "s.name", "expected a string, not 1"),
        ({"name": "a", "node": None}, "s.node", "expected a string, not null"),
        ({"name": "a", "node": "b", "method": 1.5}, "s.method", "expected a string, not 1.5"),
        ({"name": "a", "node": "b", "args": {}}, "s.args", "expected a list"),
        ({"name": "a", "node": "b", "args": [{"$x": 1}]}, "s.args[0]", "not a form"),
        ({"name": "a", "node": "b", "kwargs": []}, "s.kwargs", "expected an object"),
        ({"name": "a", "node": "b", "kwargs": {"k": {"$step": 1}}}, "s.kwargs.k.$step", "a step's name"),
        ({"name": "a", "node": "b", "timeout": 5}, "s.timeout", "5 is not a duration"),
        ({"name": "a", "node": "b", "retries": True}, "s.retries", "expected an integer, not true"),
        ({"name": "a", "node": "b", "retry": 1}, "s", "unknown field 'retry'"),
        ({"name": "a", "map": {}, "retries": 1}, "s", "unknown field 'retries'"),
        ({"name": "a", "switch": {"on": 1}}, "s.switch", 'the field "cases" is missing'),
        ({"name": "a", "switch": {"on": 1, "cases": {}}}, "s.switch.cases", "expected a list"),
        ({"name": "a", "switch": {"on": 1, "cases": [{"when": 1.5, "then": 1}]}}, "s.switch.cases[0].when", "not 1.5"),
        ({"name": "a", "switch": {"on": 1, "cases": [{"when": 2**64, "then": 1}]}}, "s.switch.cases[0].when", "beyond"),
        ({"name": "a", "switch": {"on": 1, "cases": [{"when": 1}]}}, "s.switch.cases[0]", '"then" is missing'),
        ({"name": "a", "split": {"branches": 1}}, "s.split.branches", "expected a list"),
        ({"name": "a", "split": {"branches": [{"weight": 1.5, "then": 1}]}}, "s.split.branches[0].weight", "1.5"),
        ({"name": "a", "split": {"branches": [], "key": 1}}, "s.split", "unknown field 'key'"),
        ({"name": "a", "map": {"over": 1}}, "s.map", '"each" is missing'),
        ({"name": "a", "map": {"over": 1, "each": 1, "concurrency": "2"}}, "s.map.concurrency", "an integer, not '2'"),
        ({"name": "a", "fallback": {}}, "s.fallback", "expected a list"),
        ({"name": "a", "first": "x" * 100}, "s.first", "x..."),
    ],
)
def test_wrong_steps_are_refused_at_their_place(json: Any, where: str, what: str) -> None:
    error = fails(parse_step, json, "s")
    assert (error.where, what in error.what) == (where, True), str(error)


def test_many_unknown_fields_are_cut_short_in_messages() -> None:
    assert fails(parse_step, {f"k{i}": i for i in range(9)}, "s").what.endswith("'k5', ...")


@pytest.mark.parametrize("when", [1.0, 2**64, None, [1]])
def test_a_case_that_is_no_scalar_has_no_form(when: Any) -> None:
    error = fails(dump_step, Switch("s", InputRef(), ((when, Const(1)),)), "m", error=ValueNotSupportedError)
    assert error.where == "m.switch.cases[0]"


# --- Durations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.001, "1ms"), (0.5, "500ms"), (1.5, "1s500ms"), (90, "1m30s"), (5400, "1h30m"), (86400, "24h")],
)
def test_durations_have_this_form_and_come_back(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
    assert parse_duration(text) == seconds


def test_durations_of_any_order_are_read() -> None:
    assert parse_duration("30s1h1s") == 3631


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, 0.0001, 1.00001, True, "1", 100_000 * 3600])
def test_what_is_no_whole_number_of_milliseconds_has_no_form(seconds: Any) -> None:
    assert fails(format_duration, seconds, "m.timeout", error=ValueNotSupportedError).where == "m.timeout"


@pytest.mark.parametrize(
    "text", ["", "1", "1.5s", "1d", "-1s", "1s ", "1s\n", "100000s", "1h1h1h1h1h", 5, None, ["1s"]]
)
def test_what_is_no_duration_is_refused(text: Any) -> None:
    assert fails(parse_duration, text, "p").where == "p"
