"""The short path to the folder of a run's Ray.

In a module of its own: whoever only looks for runs would pay for the imports of `LocalRay`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["remove_link"]


def remove_link(link: Path) -> None:
    """Remove the short path to Ray's folder, never what it points to."""
    with contextlib.suppress(OSError):
        for entry in link.iterdir():
            if entry.is_symlink():
                entry.unlink()
        link.rmdir()
