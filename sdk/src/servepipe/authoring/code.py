"""Which sources a model is made of, and their digest."""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

__all__ = ["in_library"]


@cache
def _standard_library() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def in_library(file: Path) -> bool:
    """True for files of the standard library and of installed packages."""
    if "site-packages" in file.parts or "dist-packages" in file.parts:
        return True
    return any(folder in file.parents for folder in _standard_library())
