"""What plain scalars of YAML mean to whom.

kubectl reads YAML 1.1 by Go's rules, PyYAML by its own, newer tools YAML 1.2; they disagree about ``y``, ``010``,
``1_0``, ``1:30``, ``1e3`` and more. Writing avoids the question: what is not plainly a word is quoted. Reading follows
kubectl, since that is what a cluster gets, and refuses what other readers take for something else.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

__all__ = ["Ambiguous", "format_float", "format_string", "resolve_plain"]

# --- Writing ----------------------------------------------------------------------------------------------------------

# Words, paths, the forms of values and expressions, versions, quantities and durations. What starts with a digit here
# is no number to any reader.
_PLAIN = re.compile(
    r"(?:[A-Za-z/][A-Za-z0-9_./-]*"
    r"|\$[a-z]+"
    r"|[0-9]+\.[0-9]+\.[0-9]+"
    r"|[0-9]+(?:\.[0-9]+)?(?:m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi|ms|s|h))\Z"
)
# "diamond:Model" is plain in block style only: some readers split it inside {} and [].
_PLAIN_IN_BLOCK = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*(?::[A-Za-z0-9_./-]+)+\Z")
_WORDS = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf", "infinity"])

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
# Control characters, other line breaks, invisible and direction-changing characters, and what YAML forbids. A fixed
# list: Python's own idea of "printable" changes between versions, and the bytes must not.
_ESCAPED = re.compile(
    '["\\\\\x00-\x1f\x7f-\xa0\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff0-\uffff'
    "\U000e0000-\U000e0fff]"
)


def format_string(text: str, *, in_flow: bool) -> str:
    """``text`` as a scalar: plain where every reader takes it for this string, else in double quotes on one line."""
    if text.lower() not in _WORDS and (_PLAIN.match(text) or (not in_flow and _PLAIN_IN_BLOCK.match(text))):
        return text
    return '"' + _ESCAPED.sub(_escape, text) + '"'


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02X}"
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"


def format_float(value: float) -> str:
    """Digits without an exponent: ``5e-05`` is a string to PyYAML."""
    text = format(Decimal(repr(value)), "f")
    return text if "." in text else f"{text}.0"


# --- Reading ----------------------------------------------------------------------------------------------------------


class Ambiguous(Exception):  # noqa: N818 - the reader turns it into a ResourceError with the place
    """Readers disagree about a plain scalar; the message says who reads what."""


_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_OLD_BOOLEANS = {
    spelled: value
    for word, value in {"y": "true", "n": "false", "yes": "true", "no": "false", "on": "true", "off": "false"}.items()
    for spelled in (word, word.capitalize(), word.upper())
}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
# Octal, binary, digits grouped by _, and sixties ("1:30"): numbers to some readers only.
_ODD_NUMBER = re.compile(
    r"[-+]?(?:0[oO]?[0-7_]+|0[bB][01_]+|0[xX][0-9a-fA-F_]+|[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9_]+)?"
    r"|\.[0-9_]+(?:[eE][-+]?[0-9_]+)?|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)\Z"
)


def resolve_plain(text: str) -> Any:
    """What kubectl takes an unquoted scalar for: None, bool, int, float or str.

    Raises:
        Ambiguous: Another reader takes it for something else, or it is not JSON.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text in _OLD_BOOLEANS:
        raise Ambiguous(f"{text} is {_OLD_BOOLEANS[text]} to kubectl and a string to YAML 1.2")
    if _INTEGER.match(text):
        return text if math.isinf(float(text)) else int(text)
    if _HEX.match(text):
        return int(text, 16)
    if _FLOAT.match(text) and not re.match(r"[-+]?0[0-9]", text):
        return _as_go_reads(text)
    if _NOT_FINITE.match(text):
        raise Ambiguous(f"{text} is a number that JSON does not have")
    if _ODD_NUMBER.match(text):
        raise Ambiguous(f"{text} is a number to some readers of YAML and a string, or another number, to others")
    return text


def _as_go_reads(text: str) -> Any:
    value = float(text)
    if not math.isfinite(value):
        return text  # Go keeps what overflows as a string, and writes such strings without quotes
    # On its way to the API server the number becomes JSON, and Go prints whole numbers below 1e21 without a point.
    if value.is_integer() and abs(value) < 1e21:
        return int(Decimal(repr(value)))
    return value
