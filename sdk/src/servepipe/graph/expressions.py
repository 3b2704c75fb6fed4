"""The wire form of expressions: constants, references to inputs, steps, items and nodes, and containers of these.

Parsing normalises: a container without references inside is one `Const`, so ``parse_expr(dump_expr(e)) == e`` for
expressions that are built that way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard

from servepipe.errors import ResourceError
from servepipe.graph.fields import did_you_mean, expect, listed, shown
from servepipe.graph.ir import (
    Attr,
    Const,
    DictOf,
    Expr,
    InputRef,
    ItemRef,
    Key,
    ListOf,
    NodeRef,
    Path,
    StepRef,
    TupleOf,
)
from servepipe.graph.values import INT64, MAX_DEPTH, at_index, at_key, check_key, encode_nested, too_deep, unescaped

__all__ = ["decode_value", "dump_expr", "dump_list", "parse_expr", "parse_fields", "parse_list"]

_ESCAPE_FIX = "Write a literal object whose key starts with $ as {$value: {...}}."
_NULL: dict[str, Any] = {"$null": True}
_FLOAT = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?\Z")
_INT = re.compile(r"-?[0-9]{1,4300}\Z")  # Python converts no more digits than this


def dump_expr(expr: Expr, where: str = "") -> Any:
    """The JSON of an expression; ``where`` names it in errors.

    Raises:
        ValueNotSupportedError: A constant in it is not a JSON value, or it nests too deeply.
    """
    return _dump(expr, where, MAX_DEPTH)


def _dump(expr: Expr, where: str, depth: int) -> Any:
    match expr:
        case Const(value):
            return encode_nested(value, where, depth)
        case InputRef(path):
            return {"$input": _dump_path(path)}
        case StepRef(name, path):
            return {"$step": [name, *_dump_path(path)] if path else name}
        case ItemRef(name, path):
            return {"$item": [name, *_dump_path(path)] if path else name}
        case NodeRef(node):
            return {"$node": node}
    if depth == 0:
        raise too_deep(where)
    if isinstance(expr, DictOf):
        return _escape({check_key(key, where): _dump(item, at_key(where, key), depth - 1) for key, item in expr.items})
    items = dump_list(expr.items, where, depth - 1)
    return {"$tuple": items} if isinstance(expr, TupleOf) else items


def dump_list(items: Iterable[Expr], where: str, depth: int = MAX_DEPTH) -> list[Any]:
    dumped = (_dump(item, at_index(where, index), depth) for index, item in enumerate(items))
    return [None if item == _NULL else item for item in dumped]


def _dump_path(path: Path) -> list[Any]:
    return [{"attr": key.name} if isinstance(key, Attr) else key for key in path]


def _escape(fields: dict[str, Any]) -> dict[str, Any]:
    return {"$value": fields} if any(key.startswith("$") for key in fields) else fields


def parse_expr(json: Any, path: str = "") -> Expr:
    """An expression from its JSON.

    Args:
        json: What `dump_expr` gave, or what a person wrote in YAML.
        path: The YAML path of ``json``, for errors.

    Raises:
        ResourceError: It is not an expression; ``where`` is the exact path.
    """
    return _parse(json, path, MAX_DEPTH)


def decode_value(json: Any, path: str = "") -> Any:
    """The value of a constant's JSON; shares no list or dict with it.

    Raises:
        ResourceError: It is not the wire form of a value, or refers to an input, step, item or node.
    """
    expr = _parse(json, path, MAX_DEPTH)
    if not isinstance(expr, Const):
        raise ResourceError("a reference stands where only a constant may stand", where=path, fix=_ESCAPE_FIX)
    return expr.value


def _parse(json: Any, path: str, depth: int) -> Expr:
    if json is None or isinstance(json, bool | str):
        return Const(json)
    if isinstance(json, float):
        if not math.isfinite(json):
            raise ResourceError(f"{json} is not a JSON number", where=path)
        return Const(json)
    if isinstance(json, int):
        if json not in INT64:
            raise ResourceError(
                "an integer beyond 64 bits, which an API server would round",
                where=path,
                fix='Write it as {$int: "..."} with its digits in quotes.',
            )
        return Const(json)
    if not isinstance(json, list | dict):
        raise ResourceError(f"a value of type {type(json).__name__} is not JSON", where=path)
    if depth == 0:
        raise ResourceError(f"nested deeper than {MAX_DEPTH} lists and objects", where=path, fix="Flatten the value.")
    if isinstance(json, list):
        items = parse_list(json, path, depth - 1)
        return Const([item.value for item in items]) if _all_constant(items) else ListOf(items)
    if not any(isinstance(key, str) and key.startswith("$") for key in json):
        return _parse_object(json, path, depth)
    if len(json) > 1:
        raise ResourceError(
            f"an object with a key that starts with $ has other keys beside it: {listed(json)}",
            where=path,
            fix=_ESCAPE_FIX,
        )
    [(form, argument)] = json.items()
    parse = _FORMS.get(form)
    if parse is None:
        raise ResourceError(
            f'"{form}" is not a form that servepipe knows',
            where=path,
            fix=f"{did_you_mean(form, _FORMS)} {_ESCAPE_FIX}",
        )
    return parse(argument, at_key(path, form), depth)


def parse_list(json: Sequence[Any], path: str, depth: int = MAX_DEPTH) -> tuple[Expr, ...]:
    return tuple([_parse(item, at_index(path, index), depth) for index, item in enumerate(json)])


def _parse_object(json: dict[Any, Any], path: str, depth: int) -> Expr:
    items = parse_fields(json, path, depth - 1)
    values = [item for _, item in items]
    if _all_constant(values):
        return Const({key: value.value for (key, _), value in zip(items, values, strict=True)})
    return DictOf(items)


def parse_fields(json: dict[Any, Any], path: str, depth: int = MAX_DEPTH) -> tuple[tuple[str, Expr], ...]:
    for key in json:
        if not isinstance(key, str):
            raise ResourceError(f"the key {key!r} is not a string", where=path, fix="Put it in quotes.")
    return tuple([(key, _parse(item, at_key(path, key), depth)) for key, item in json.items()])


def _all_constant(items: Sequence[Expr]) -> TypeGuard[Sequence[Const]]:
    return all(isinstance(item, Const) for item in items)


def _parse_input(json: Any, path: str, depth: int) -> Expr:
    return InputRef(_parse_path(expect(json, list, path), path))


def _parse_step_ref(json: Any, path: str, depth: int) -> Expr:
    return StepRef(*_parse_target(json, path))


def _parse_item_ref(json: Any, path: str, depth: int) -> Expr:
    return ItemRef(*_parse_target(json, path))


def _parse_target(json: Any, path: str) -> tuple[str, Path]:
    if isinstance(json, str):
        return json, ()
    if not isinstance(json, list) or not json or not isinstance(json[0], str):
        raise ResourceError(
            f"expected a step's name, or a list of the name and a path, not {shown(json)}",
            where=path,
            fix='Write "name" or ["name", "key", 0].',
        )
    return json[0], _parse_path(json[1:], path, 1)


def _parse_path(json: list[Any], path: str, first: int = 0) -> Path:
    return tuple([_parse_key(key, at_index(path, first + index)) for index, key in enumerate(json)])


def _parse_key(json: Any, path: str) -> Key:
    match json:
        case str():
            return json
        case int() if not isinstance(json, bool) and json in INT64:
            return json
        case {"attr": str(name)} if len(json) == 1:
            return Attr(name)
    raise ResourceError(
        f"expected an index, a key or an attribute, not {shown(json)}",
        where=path,
        fix='Write 0, "key" or {attr: name}.',
    )


def _parse_node_ref(json: Any, path: str, depth: int) -> Expr:
    return NodeRef(expect(json, str, path))


def _parse_tuple(json: Any, path: str, depth: int) -> Expr:
    items = parse_list(expect(json, list, path), path, depth - 1)
    return Const(tuple([item.value for item in items])) if _all_constant(items) else TupleOf(items)


def _parse_value(json: Any, path: str, depth: int) -> Expr:
    return _parse_object(expect(json, dict, path), path, depth)


def _parse_float(json: Any, path: str, depth: int) -> Expr:
    text = expect(json, str, path)
    value = float(text) if _FLOAT.match(text) else math.nan
    if not math.isfinite(value):
        raise ResourceError(f"{shown(text)} is not a finite number", where=path, fix='Write {$float: "1.0"}.')
    return Const(value)


def _parse_int(json: Any, path: str, depth: int) -> Expr:
    text = expect(json, str, path)
    if not _INT.match(text):
        raise ResourceError(f"{shown(text)} is not an integer", where=path, fix='Write {$int: "123"}.')
    return Const(int(text))


def _parse_string(json: Any, path: str, depth: int) -> Expr:
    text = expect(json, str, path)
    value = unescaped(text)
    if value is None:
        raise ResourceError(
            f"{shown(text)} has a backslash that begins no escape",
            where=path,
            fix=r"Write a character as \u007f with four small hexadecimal digits, a backslash as two.",
        )
    return Const(value)


def _parse_null(json: Any, path: str, depth: int) -> Expr:
    if json is not True:
        raise ResourceError(f"expected true, not {shown(json)}", where=path, fix="Write {$null: true}.")
    return Const(None)


_FORMS: dict[str, Callable[[Any, str, int], Expr]] = {
    "$input": _parse_input,
    "$step": _parse_step_ref,
    "$item": _parse_item_ref,
    "$node": _parse_node_ref,
    "$tuple": _parse_tuple,
    "$value": _parse_value,
    "$float": _parse_float,
    "$int": _parse_int,
    "$string": _parse_string,
    "$null": _parse_null,
}
