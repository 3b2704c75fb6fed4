"""How a difference between two pipelines looks on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

__all__ = ["coloured", "print_difference"]

_COLOURS = {"+": "32", "-": "31", "@": "36"}


def print_difference(lines: Iterable[str]) -> None:
    """Print a unified diff; in colours only on a terminal, and not where ``NO_COLOR`` is set."""
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in lines:
        print(coloured(line) if colours else line, flush=True)


def coloured(line: str) -> str:
    """One line of a unified diff in its colour."""
    colour = _COLOURS.get(line[:1])
    return f"\033[{colour}m{line}\033[0m" if colour else line
