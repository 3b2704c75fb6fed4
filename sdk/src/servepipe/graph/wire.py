"""The wire form of a graph: `ir` objects to JSON and back. The public face of values, expressions and durations too.

`dump_graph` gives what stands in ``spec.graph`` of the resource, `parse_graph` reads it back and says exactly where
something is wrong. The resource is edited by hand and read from clusters, so parsing trusts nothing: every type is
checked, unknown fields are named, and nesting is bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from servepipe.errors import ResourceError, ValueNotSupportedError
from servepipe.graph.expressions import (
    decode_value,
    dump_expr,
    dump_list,
    parse_expr,
    parse_fields,
    parse_list,
)
from servepipe.graph.fields import (
    Json,
    did_you_mean,
    expect,
    listed,
    object_fields,
    optional_field,
    shown,
    string_field,
)
from servepipe.graph.ir import Call, Expr, Fallback, First, Graph, Map, Split, Step, Switch
from servepipe.graph.values import (
    INT64,
    MAX_DEPTH,
    at_index,
    at_key,
    encode_value,
    format_duration,
    parse_duration,
)

__all__ = [
    "MAX_DEPTH",
    "at_index",
    "at_key",
    "decode_value",
    "did_you_mean",
    "dump_expr",
    "dump_graph",
    "dump_step",
    "encode_value",
    "format_duration",
    "parse_duration",
    "parse_expr",
    "parse_graph",
    "parse_step",
]


def dump_step(step: Step, where: str = "") -> Json:
    """The JSON of a step; fields at their default are left out.

    Raises:
        ValueNotSupportedError: A constant or the timeout has no wire form.
    """
    fields: Json = {"name": step.name}
    match step:
        case Call():
            fields["node"] = step.node
            if step.method is not None:
                fields["method"] = step.method
            if step.args:
                fields["args"] = dump_list(step.args, at_key(where, "args"))
            if step.kwargs:
                path = at_key(where, "kwargs")
                fields["kwargs"] = {key: dump_expr(value, at_key(path, key)) for key, value in step.kwargs}
            if step.timeout_s is not None:
                fields["timeout"] = format_duration(step.timeout_s, at_key(where, "timeout"))
            if step.retries:
                fields["retries"] = step.retries
        case Switch():
            path = at_key(where, "switch")
            fields["switch"] = {"on": dump_expr(step.on, at_key(path, "on"))}
            fields["switch"]["cases"] = [
                {"when": _check_when(when, f"{path}.cases[{index}]"), "then": dump_expr(then, f"{path}.cases[{index}]")}
                for index, (when, then) in enumerate(step.cases)
            ]
            if step.default is not None:
                fields["switch"]["default"] = dump_expr(step.default, at_key(path, "default"))
        case Split():
            path = at_key(where, "split")
            fields["split"] = {
                "branches": [
                    {"weight": weight, "then": dump_expr(then, f"{path}.branches[{index}]")}
                    for index, (weight, then) in enumerate(step.branches)
                ]
            }
            if step.on is not None:
                fields["split"]["on"] = dump_expr(step.on, at_key(path, "on"))
        case Map():
            path = at_key(where, "map")
            fields["map"] = {
                "over": dump_expr(step.over, at_key(path, "over")),
                "each": dump_expr(step.each, at_key(path, "each")),
            }
            if step.concurrency is not None:
                fields["map"]["concurrency"] = step.concurrency
        case Fallback():
            fields["fallback"] = dump_list(step.options, at_key(where, "fallback"))
        case First():
            fields["first"] = dump_list(step.options, at_key(where, "first"))
    return fields


def _check_when(when: Any, where: str) -> Any:
    # {$int: ...} and {$string: ...} would not be scalars, so what needs one of them has no form as a `when`.
    if type(when) not in (str, int, bool) or encode_value(when, where) != when:
        raise ValueNotSupportedError(
            f"a case compares with a string, an integer of at most 53 bits or a boolean, not {shown(when)}", where=where
        )
    return when


def dump_graph(graph: Graph, where: str = "") -> Json:
    """The JSON of a whole graph, as it stands in ``spec.graph``; ``where`` is put before paths in errors."""
    fields: Json = {}
    if graph.preprocessor is not None:
        fields["input"] = _hook("preprocessor", graph.preprocessor, graph.preprocessor_code)
    steps = at_key(where, "steps")
    fields["steps"] = [dump_step(step, at_index(steps, index)) for index, step in enumerate(graph.steps)]
    fields["output"] = dump_expr(graph.output, at_key(where, "output"))
    if graph.postprocessor is not None:
        fields["response"] = _hook("postprocessor", graph.postprocessor, graph.postprocessor_code)
    return fields


def _hook(kind: str, import_path: str, code: str | None) -> Json:
    return {kind: import_path} if code is None else {kind: import_path, "code": code}


def parse_graph(json: Any, path: str = "spec.graph") -> Graph:
    """A graph from its JSON. Whether its references resolve is for `servepipe.graph.checks` to say.

    Raises:
        ResourceError: Something has the wrong form; ``where`` is the exact path.
    """
    fields = object_fields(json, path, required=("steps", "output"), optional=("input", "response"))
    at_input, at_response = at_key(path, "input"), at_key(path, "response")
    request = object_fields(fields.get("input", {}), at_input, optional=("preprocessor", "code"))
    response = object_fields(fields.get("response", {}), at_response, optional=("postprocessor", "code"))
    steps = at_key(path, "steps")
    return Graph(
        tuple(
            [
                parse_step(step, at_index(steps, index))
                for index, step in enumerate(expect(fields["steps"], list, steps))
            ]
        ),
        parse_expr(fields["output"], at_key(path, "output")),
        preprocessor=optional_field(request, "preprocessor", str, at_input),
        postprocessor=optional_field(response, "postprocessor", str, at_response),
        preprocessor_code=optional_field(request, "code", str, at_input),
        postprocessor_code=optional_field(response, "code", str, at_response),
    )


def parse_step(json: Any, path: str = "") -> Step:
    """A step from its JSON.

    Raises:
        ResourceError: It has the wrong form; ``where`` is the exact path.
    """
    expect(json, dict, path)
    kinds = [kind for kind in _STEPS if kind in json]
    if len(kinds) != 1:
        raise ResourceError(
            f"a step has one of {', '.join(_STEPS)}; this one has {' and '.join(kinds) or 'none of them'}"
            + ("" if kinds else f": {listed(json)}"),
            where=path,
            fix="Name the node that the step calls." if not kinds else "Make it a step for each.",
        )
    parse = _STEPS[kinds[0]]
    if kinds[0] == "node":
        return parse(json, path)
    object_fields(json, path, required=("name", kinds[0]))
    return parse(json, path)


def _parse_call(json: Any, path: str) -> Step:
    fields = object_fields(
        json, path, required=("name", "node"), optional=("method", "args", "kwargs", "timeout", "retries")
    )
    args, kwargs = at_key(path, "args"), at_key(path, "kwargs")
    return Call(
        string_field(fields, "name", path),
        string_field(fields, "node", path),
        optional_field(fields, "method", str, path),
        parse_list(expect(fields.get("args", []), list, args), args),
        parse_fields(expect(fields.get("kwargs", {}), dict, kwargs), kwargs),
        parse_duration(fields["timeout"], at_key(path, "timeout")) if "timeout" in fields else None,
        optional_field(fields, "retries", int, path) or 0,
    )


def _parse_switch(json: Any, path: str) -> Step:
    name, path = string_field(json, "name", path), at_key(path, "switch")
    fields = object_fields(json["switch"], path, required=("on", "cases"), optional=("default",))
    cases = []
    for index, case in enumerate(expect(fields["cases"], list, at_key(path, "cases"))):
        where = at_index(at_key(path, "cases"), index)
        branch = object_fields(case, where, required=("when", "then"))
        when = branch["when"]
        if not isinstance(when, str | int) or (isinstance(when, int) and when not in INT64):
            raise ResourceError(
                f"expected a string, an integer or a boolean, not {shown(when)}", where=at_key(where, "when")
            )
        cases.append((when, parse_expr(branch["then"], at_key(where, "then"))))
    default = parse_expr(fields["default"], at_key(path, "default")) if "default" in fields else None
    return Switch(name, parse_expr(fields["on"], at_key(path, "on")), tuple(cases), default)


def _parse_split(json: Any, path: str) -> Step:
    name, path = string_field(json, "name", path), at_key(path, "split")
    fields = object_fields(json["split"], path, required=("branches",), optional=("on",))
    branches = []
    for index, item in enumerate(expect(fields["branches"], list, at_key(path, "branches"))):
        where = at_index(at_key(path, "branches"), index)
        branch = object_fields(item, where, required=("weight", "then"))
        weight = expect(branch["weight"], int, at_key(where, "weight"))
        branches.append((weight, parse_expr(branch["then"], at_key(where, "then"))))
    return Split(name, tuple(branches), parse_expr(fields["on"], at_key(path, "on")) if "on" in fields else None)


def _parse_map(json: Any, path: str) -> Step:
    name, path = string_field(json, "name", path), at_key(path, "map")
    fields = object_fields(json["map"], path, required=("over", "each"), optional=("concurrency",))
    return Map(
        name,
        parse_expr(fields["over"], at_key(path, "over")),
        parse_expr(fields["each"], at_key(path, "each")),
        optional_field(fields, "concurrency", int, path),
    )


def _parse_fallback(json: Any, path: str) -> Step:
    return Fallback(string_field(json, "name", path), _parse_options(json, "fallback", path))


def _parse_first(json: Any, path: str) -> Step:
    return First(string_field(json, "name", path), _parse_options(json, "first", path))


def _parse_options(json: Any, kind: str, path: str) -> tuple[Expr, ...]:
    path = at_key(path, kind)
    return parse_list(expect(json[kind], list, path), path)


_STEPS: dict[str, Callable[[Any, str], Step]] = {
    "node": _parse_call,
    "switch": _parse_switch,
    "split": _parse_split,
    "map": _parse_map,
    "fallback": _parse_fallback,
    "first": _parse_first,
}
