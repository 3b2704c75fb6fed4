"""JSON by a fast library, with the meaning that Python's own has.

msgspec reads and writes several times faster than `json`, and nearly the same language. Whatever it refuses, or might
write otherwise, is left to `json`, which decides what it means and words the errors; `tests/property/test_json.py`
holds both against each other. Reading, msgspec is the stricter one: what it takes, both understand alike. Writing, it
knows more types than `json` (sets, bytes, dates, enumerations), gives keys that are no strings another form, and makes
null of NaN and infinities: so it counts only where every part of the value is of one of JSON's own types.
"""

from __future__ import annotations

import json
from types import NoneType
from typing import Any, NoReturn

import msgspec

__all__ = ["parse", "write"]

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode

_CONTAINERS = frozenset({dict, list, tuple})
_PLAIN = frozenset({NoneType, bool, int, float, str}) | _CONTAINERS
_KEYS = frozenset({str})


def parse(body: bytes) -> Any:
    """The value of a JSON text in UTF-8, or in UTF-16 or UTF-32 as `json` finds out.

    Raises:
        ValueError: The body is not JSON, or has a NaN, an infinity, or an integer of more digits than Python reads.
        RecursionError: It is nested too deeply.
    """
    try:
        return _decode(body)
    except Exception:  # what is wrong, and whether it is, `json` says
        return json.loads(body, parse_constant=_refuse)


def write(value: Any) -> bytes | None:
    """``value`` as UTF-8 JSON without white space; None where that is for `json` to write, or to refuse."""
    try:
        body: bytes = _encode(value)
    except Exception:  # big integers, lone surrogates, types that it does not know, the user's own properties
        return None
    # Only now: a value that contains itself has no end.
    kinds = _kinds(value)
    if not kinds <= _PLAIN or (float in kinds and b"null" in body):
        return None
    return body


def _kinds(value: Any) -> set[type]:
    """The types of all parts of ``value``, as far as they are JSON's own; a key that is no string counts as one."""
    kinds = {type(value)}
    if kinds <= _CONTAINERS:
        inside = [value]
        for container in inside:  # grows while it is read
            if type(container) is dict:
                if not _KEYS.issuperset(map(type, container)):
                    kinds.add(object)
                items: Any = container.values()
            else:
                items = container
            found = set(map(type, items))
            kinds |= found
            if not _CONTAINERS.isdisjoint(found):
                inside += [item for item in items if type(item) in _CONTAINERS]
    return kinds


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
