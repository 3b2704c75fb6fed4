"""Where in the user's code something was written, and the frames in which its names stand."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from types import FrameType

__all__ = ["Place", "here", "user_frame", "warn"]

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep  # noqa: PTH100, PTH120 - text, compared often


@dataclass(frozen=True, slots=True)
class Place:
    """A line of the user's code; prints as ``file:line`` with a path that is short from where the reader stands."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{_short(self.file)}:{self.line}"


def user_frame() -> FrameType:
    """The innermost frame outside of servepipe and `contextlib` (an ExitStack leaves a ``with`` too)."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not frame.f_code.co_filename.startswith(_PACKAGE) and name != "contextlib":
            return frame
        outermost, frame = frame, frame.f_back
    return outermost


def here() -> Place:
    """The line of user code that is being executed."""
    frame = user_frame()
    return Place(frame.f_code.co_filename, frame.f_lineno)


def warn(message: str, category: type[Warning]) -> None:
    """Warn about the line of user code that is being executed."""
    frame = user_frame()
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(
        message, category, frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__"), registry
    )


def _short(file: str) -> str:
    if not os.path.isabs(file):  # noqa: PTH117 - "<ipython-input-1>" is no path
        return file
    try:
        relative = os.path.relpath(file)
    except ValueError:  # another drive
        return file
    return file if relative.startswith("..") else relative
