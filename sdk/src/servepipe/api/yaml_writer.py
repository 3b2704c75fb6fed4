"""JSON to YAML: one canonical text for one document.

What fits into a line stands in one (``- {name: a, node: m1}``), everything else goes one field or item per line.
Strings that any reader could take for something else are quoted (`yaml_scalars`); there are no anchors, tags or folded
lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from servepipe.api.yaml_scalars import format_float, format_string

__all__ = ["write_yaml"]

_WIDTH = 120
# YAML readers take a key for one only if its colon comes within 1024 characters; longer ones need the "? " form.
_LONG_KEY = 1000

Path: TypeAlias = tuple[str, ...]


def write_yaml(document: dict[str, Any], spread: frozenset[Path] = frozenset()) -> str:
    """The YAML text of a JSON document.

    Args:
        document: None, bool, int, finite float, str, list and dict with string keys. Order is kept.
        spread: Paths of objects and lists that are written one field or item per line even where one line would do.
    """
    if not document:
        return "{}\n"
    return "".join(f"{line}\n" for line in _block(document, 0, (), spread))


def _block(value: Any, indent: int, path: Path, spread: frozenset[Path]) -> Iterator[str]:
    """The lines of a list or object that is not empty; each is indented."""
    margin = " " * indent
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _entry(margin, key, item, indent, (*path, key), spread)
        return
    for item in value:
        short = _inline(item, _WIDTH - indent - 2)
        if short is not None:
            yield f"{margin}- {short}"
            continue
        lines = _block(item, indent + 2, path, frozenset())
        yield f"{margin}- {next(lines)[indent + 2 :]}"
        yield from lines


def _entry(margin: str, key: str, item: Any, indent: int, path: Path, spread: frozenset[Path]) -> Iterator[str]:
    name = format_string(key, in_flow=True)
    head = f"{margin}{name}:"
    if len(name) > _LONG_KEY:
        yield f"{margin}? {name}"
        head = f"{margin}:"
    short = None if path in spread and item else _inline(item, _WIDTH - len(head) - 1)
    if short is not None:
        yield f"{head} {short}"
        return
    yield head
    # Lists stand at the indentation of their key, as kubectl writes them.
    yield from _block(item, indent if isinstance(item, list) else indent + 2, path, spread)


def _inline(value: Any, room: int) -> str | None:
    """The value on one line, or None for a list or object that needs more than ``room`` characters."""
    if isinstance(value, dict | list) and value:
        text = _flow(value, room)
        return text if text is not None and len(text) <= room else None
    return _scalar(value, in_flow=False)


def _flow(value: Any, room: int) -> str | None:
    # Gives up as soon as the room is used, so that a large document is not formatted again at every level.
    if not isinstance(value, dict | list):
        return _scalar(value, in_flow=True)
    pieces = []
    for key, item in value.items() if isinstance(value, dict) else ((None, item) for item in value):
        name = "" if key is None else f"{format_string(key, in_flow=True)}: "
        text = _flow(item, room - len(name)) if room > 0 else None
        if text is None:
            return None
        pieces.append(name + text)
        room -= len(name) + len(text) + 2
    return f"{{{', '.join(pieces)}}}" if isinstance(value, dict) else f"[{', '.join(pieces)}]"


def _scalar(value: Any, *, in_flow: bool) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return format_string(value, in_flow=in_flow)
        case float():
            return format_float(value)
    return str(value) if isinstance(value, int) else ("{}" if isinstance(value, dict) else "[]")
