"""Reading JSON that anybody may have written: types, required and unknown fields, values shown in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeAlias

from servepipe.errors import ResourceError
from servepipe.graph.values import INT64, at_key

__all__ = ["Json", "did_you_mean", "expect", "listed", "object_fields", "optional_field", "shown", "string_field"]

Json: TypeAlias = dict[str, Any]

_TYPE_NAMES = {dict: "an object", list: "a list", str: "a string", int: "an integer"}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``Did you mean "replicas"?``, or the known words where none is near; empty where there are none."""
    known = list(known)
    if not known:
        return ""
    near = difflib.get_close_matches(word[:100], known, n=1, cutoff=0.6)
    return f'Did you mean "{near[0]}"?' if near else f"Known are {', '.join(known)}."


def object_fields(json: Any, path: str, *, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> Json:
    fields: Json = expect(json, dict, path)
    known = required + optional
    for key in fields:
        if key not in known:
            raise ResourceError(f"unknown field {shown(key)}", where=path, fix=did_you_mean(str(key), known))
    for key in required:
        if key not in fields:
            raise ResourceError(f'the field "{key}" is missing', where=path)
    return fields


def expect(json: Any, kind: type, path: str) -> Any:
    if not isinstance(json, kind) or (kind is int and (isinstance(json, bool) or json not in INT64)):
        raise ResourceError(f"expected {_TYPE_NAMES[kind]}, not {shown(json)}", where=path)
    return json


def string_field(fields: Json, key: str, path: str) -> str:
    text: str = expect(fields[key], str, at_key(path, key))
    return text


def optional_field(fields: Json, key: str, kind: type, path: str) -> Any:
    return expect(fields[key], kind, at_key(path, key)) if key in fields else None


def shown(json: Any) -> str:
    """A value in a message: short, whatever it is."""
    if isinstance(json, list):
        return "a list"
    if isinstance(json, dict):
        return "an object"
    if json is None or isinstance(json, bool):
        return {None: "null", True: "true", False: "false"}[json]
    if isinstance(json, int) and json not in INT64:
        return "an integer beyond 64 bits"
    text = repr(json)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(json: dict[Any, Any]) -> str:
    names = [shown(key) for key in list(json)[:6]]
    return ", ".join(names) + (", ..." if len(json) > 6 else "")
