"""JSON by fast libraries, with the meaning that Python's own has.

Reading, msgspec is stricter than `json`, and what it takes both understand alike, integers of any size among it
(orjson would make floats of large ones). Writing, orjson is the fastest, but it knows more types than `json` and makes
null of NaN and infinities; so what it writes counts only where every part is exactly of one of JSON's own types. That
`marshal` tells much faster than a loop: it takes these, and few others, none of which orjson takes.

All else is left to `json`, which decides what it means and words the errors; `tests/property/test_json.py` holds them
against each other.
"""

from __future__ import annotations

import json
import marshal
from typing import Any, NoReturn

import msgspec
import orjson

__all__ = ["parse", "write"]

_decode = msgspec.json.Decoder().decode
_AS_JSON = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_WITHOUT_REFERENCES = 2  # of marshal's versions the one that does not look for objects that occur twice


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
        body: bytes = orjson.dumps(value, None, _AS_JSON)
        marshal.dumps(value, _WITHOUT_REFERENCES)
    except Exception:  # other types, keys that are no strings, big integers, lone surrogates, more than 254 levels
        return None
    if b"null" in body and _has_no_number(value):
        return None
    return body


def _has_no_number(value: Any) -> bool:
    """Whether a float in ``value``, which is plain JSON otherwise, is a NaN or an infinity."""
    inside = [[value]]
    for items in inside:  # grows while it is read
        for item in items:
            kind = type(item)
            if kind is float:
                if item - item != 0.0:
                    return True
            elif kind is dict:
                inside.append(item.values())
            elif kind is list or kind is tuple:
                inside.append(item)
    return False


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
