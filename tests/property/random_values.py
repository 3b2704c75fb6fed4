"""Random values as graphs bind them, among them all that YAML readers and Go change, and a comparison that is exact."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import strategies as st

HOSTILE = [
    "y",
    "No",
    "0o17",
    "1e3",
    "1_0",
    "1:30",
    "~",
    "null",
    "<<",
    "=",
    "2001-12-14",
    "1.0",
    ".inf",
    "$x",
    " a",
    "#",
]
TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(HOSTILE)
# Keys have no form for these: they are refused.
KEYS = TEXT.filter(lambda text: not re.search("[\x7f-\x9f\ufeff\ufffe\uffff]", text)) | st.sampled_from(
    ["$value", "$null", "$step", "$float", "$", "a"]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([2**63, 2**63 - 1, -(2**63), -(2**63) - 1, 2**53 + 1, 10**30])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1.0, -0.0, 5e-05, 1e21, 1e-7, 1e20, 0.1, 4503599627370497.5])
    | TEXT
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = st.from_regex(r"[a-z]{1,8}", fullmatch=True)


def exactly(value: Any) -> str:
    """Text that differs where values differ in type, sign or digits, but not by the order of keys."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{exactly(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({','.join(map(exactly, value))})"
    return repr(value)
