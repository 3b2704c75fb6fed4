"""Values and durations as they stand in the resource: JSON that survives kubectl, an API server and every YAML reader.

Plain JSON does not: Go writes ``1.0`` as ``1``, `kubectl apply` makes floats of integers when it updates them and drops
nulls inside objects, server-side apply reads JSON as YAML and refuses control characters, and tuples have no JSON. So
these few are written as objects with one key that starts with ``$``;
an object that happens to have such a key is escaped. `servepipe.graph.wire` is the public face of this module; the
table of forms is in docs/architecture.md.
"""

from __future__ import annotations

import math
import re
from typing import Any

from servepipe.errors import ResourceError, ValueNotSupportedError

__all__ = [
    "INT64",
    "MAX_DEPTH",
    "at_index",
    "at_key",
    "check_key",
    "encode_nested",
    "encode_value",
    "format_duration",
    "parse_duration",
    "too_deep",
    "unescaped",
]

#: Lists and objects that may stand inside each other. More is a mistake or an attack; the bound keeps every recursive
#: reader (ours, PyYAML's, Go's) from its own limit.
MAX_DEPTH = 64

#: The integers that JSON keeps in Go; those beyond are refused wherever they are read.
INT64 = range(-(2**63), 2**63)
# The integers that are written bare: `kubectl apply` sends an update through 64-bit floats, which hold no more exactly.
_PLAIN_INT = range(-(2**53), 2**53 + 1)
# Go writes these bare in JSON, and YAML does not allow them.
_NOT_YAML = re.compile("[\x7f-\x9f\ufeff\ufffe\uffff]")
_ESCAPED_TEXT = re.compile(r"(?:[^\\]|\\\\|\\u[0-9a-f]{4})*\Z")
_ESCAPE = re.compile(r"\\(?:\\|u([0-9a-f]{4}))")
# Go prints floats inside these bounds without an exponent; what has an exponent is a string to YAML 1.1 readers.
_PLAIN_FLOAT = (1e-6, 1e21)

_BARE_KEY = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*\Z")
# Gateway API's Duration (GEP-2257).
_DURATION = re.compile(r"(?:[0-9]{1,5}(?:h|m|s|ms)){1,4}\Z")
_DURATION_PART = re.compile(r"([0-9]+)(ms|h|m|s)")
_MILLISECONDS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


def at_index(path: str, index: int) -> str:
    """The YAML path of an item: ``spec.graph.steps[3]``."""
    return f"{path}[{index}]"


def at_key(path: str, key: str) -> str:
    """The YAML path of a field: ``spec.nodes.m1``, ``spec.nodes["odd key"]`` where the key is not a plain word."""
    if not _BARE_KEY.match(key):
        shown = key if len(key) <= 40 else f"{key[:37]}..."
        return f"{path}[{_quoted(shown)}]"
    return f"{path}.{key}" if path else key


def encode_value(value: Any, where: str = "") -> Any:
    """The wire form of a constant.

    Args:
        value: None, bool, int, finite float, str, and lists, tuples and dicts (with string keys) of these.
        where: What the value is, for errors; the path inside the value is appended.

    Returns:
        JSON that shares no list or dict with ``value``. A None that stands alone is ``{"$null": true}``, since its
        place may be a field of an object; directly in a list it stays null.

    Raises:
        ValueNotSupportedError: Something in it has no wire form.
    """
    return encode_nested(value, where, MAX_DEPTH)


def encode_nested(value: Any, where: str, depth: int) -> Any:
    """`encode_value` for a value that already stands inside others: ``depth`` more containers are allowed."""
    # Exact types: a subclass (numpy's float64, an IntEnum, a namedtuple) would come back as something else.
    kind = type(value)
    if value is None:
        return {"$null": True}
    if kind is bool:
        return value
    if kind is str:
        return _encode_text(_check_text(value, where))
    if kind is int:
        return value if value in _PLAIN_INT else {"$int": _digits(value, where)}
    if kind is float:
        return _encode_float(value, where)
    if kind not in (list, tuple, dict):
        raise _unsupported(value, where)
    if depth == 0:
        raise too_deep(where)
    if kind is dict:
        encoded = {}
        for key, item in value.items():
            name = check_key(key, where)
            encoded[name] = encode_nested(item, f"{where}[{_quoted(name)}]", depth - 1)
        return {"$value": encoded} if any(key.startswith("$") for key in encoded) else encoded
    items = [
        None if item is None else encode_nested(item, at_index(where, index), depth - 1)
        for index, item in enumerate(value)
    ]
    return items if kind is list else {"$tuple": items}


def check_key(key: Any, where: str) -> str:
    """``key`` itself if an object may have it, else `ValueNotSupportedError`: keys have no other form."""
    if type(key) is not str:
        raise ValueNotSupportedError(
            f"the key {key!r} is of type {type(key).__name__}; JSON objects have string keys",
            where=where,
            fix="Use string keys, or pass a list of pairs.",
        )
    if _NOT_YAML.search(key):
        raise ValueNotSupportedError(
            f"the key {key!r} has a control character, which an API server does not take in keys",
            where=where,
            fix="Use other keys, or pass a list of pairs.",
        )
    return _check_text(key, where)


def too_deep(where: str) -> ValueNotSupportedError:
    """The error for more than `MAX_DEPTH` containers inside each other."""
    return ValueNotSupportedError(
        f"nested deeper than {MAX_DEPTH} lists and dicts (or a container holds itself)",
        where=where if len(where) <= 100 else f"{where[:97]}...",
        fix="Flatten the value, or build it in the constructor of the node.",
    )


def _encode_float(value: float, where: str) -> Any:
    if not math.isfinite(value):
        raise ValueNotSupportedError(
            f"{value} is not a JSON number",
            where=where,
            fix="Pass None or a string instead, and turn it into a float in the node.",
        )
    low, high = _PLAIN_FLOAT
    if value.is_integer() or not low <= abs(value) < high:
        return {"$float": repr(value)}
    return value


def _digits(value: int, where: str) -> str:
    try:
        return str(value)
    except ValueError:  # Python's own bound on conversions, 4300 digits unless changed
        raise ValueNotSupportedError(
            f"an integer of about {value.bit_length() * 3 // 10} digits is too long to write down", where=where
        ) from None


def _encode_text(value: str) -> Any:
    if not _NOT_YAML.search(value):
        return value
    escaped = value.replace("\\", "\\\\")
    return {"$string": _NOT_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", escaped)}


def unescaped(text: str) -> str | None:
    """The string that ``{$string: text}`` means, or None where ``text`` has another escape than the two there are."""
    if not _ESCAPED_TEXT.match(text):
        return None
    value = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else "\\", text)
    return None if any("\ud800" <= character <= "\udfff" for character in value) else value


def _check_text(value: str, where: str) -> str:
    """``value`` itself if UTF-8 can carry it, else `ValueNotSupportedError`."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueNotSupportedError(
            f"the string has a lone surrogate at position {error.start}, which UTF-8 cannot carry",
            where=where,
            fix='Decode the bytes it came from with errors="replace", or pass them as base64 text.',
        ) from None
    return value


def _unsupported(value: Any, where: str) -> ValueNotSupportedError:
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    for plain in (bool, int, float, str, list, tuple, dict):
        if isinstance(value, plain):
            return ValueNotSupportedError(
                f"a {name} would arrive as a plain {plain.__name__}",
                where=where,
                fix=f"Say so: pass {plain.__name__}(...) of it.",
            )
    fix = "Pass what the constructor needs to build it (numbers, strings, lists, dicts)."
    if isinstance(value, bytes | bytearray):
        fix = "Pass base64 text, or a path or URL that the constructor reads."
    elif isinstance(value, set | frozenset):
        fix = "Pass a sorted list."
    return ValueNotSupportedError(f"a value of type {name} is not JSON", where=where, fix=fix)


def _quoted(text: str) -> str:
    # For paths in messages only: one line, whatever the key holds.
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').encode("unicode_escape").decode() + '"'


def format_duration(seconds: float, where: str = "") -> str:
    """A time span as Gateway API's Duration: ``500ms``, ``1h30m``, ``0s``.

    Args:
        seconds: Not negative, a whole number of milliseconds, below 100,000 hours.
        where: What the duration is, for errors.

    Raises:
        ValueNotSupportedError: It is none of these.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 100_000 * 3600:
        raise ValueNotSupportedError(
            f"{seconds!r} is not a time span in seconds from 0 to 99,999 hours", where=where, fix="Write 0.5 or 90."
        )
    left = round(seconds * 1000)
    if abs(left - seconds * 1000) > 1e-6 * max(1, left):
        raise ValueNotSupportedError(
            f"{seconds!r} seconds is not a whole number of milliseconds", where=where, fix="Round it to milliseconds."
        )
    written = ""
    for unit, length in _MILLISECONDS.items():
        count, left = divmod(left, length)
        if count:
            written += f"{count}{unit}"
    return written or "0s"


def parse_duration(text: Any, path: str = "") -> float:
    """Seconds of a Gateway API Duration (``500ms``, ``1h30m``).

    Raises:
        ResourceError: ``text`` is not one.
    """
    if not isinstance(text, str) or not _DURATION.match(text):
        raise ResourceError(
            f"{text!r:.60} is not a duration", where=path, fix='Write whole h, m, s and ms: "500ms", "30s", "1h30m".'
        )
    return sum(int(count) * _MILLISECONDS[unit] for count, unit in _DURATION_PART.findall(text)) / 1000
