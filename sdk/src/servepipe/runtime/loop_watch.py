"""A warning that names the code which keeps an event loop from going on.

While user code blocks the loop of a replica, nothing else of it runs: no other call, no health check, no count for
autoscaling. What shows is slow answers somewhere else. A thread sees it, and sees where.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import servepipe

__all__ = ["LoopWatch", "Place", "user_code"]

LOOK_EVERY_S = 0.25
"""How often the loop is asked, seconds; what that costs cannot be measured."""

MOST_WARNINGS = 20

_STDLIB = f"{sysconfig.get_path('stdlib')}{os.sep}"
_PACKAGES = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("purelib", "platlib"))
#: Who calls user code.
_CALLERS = tuple(f"{Path(str(package.__file__)).parent}{os.sep}" for package in (servepipe, asyncio))
#: Who is called by those, or below them, and is no user code.
_OTHERS = tuple(
    f"{Path(spec.origin).parent}{os.sep}"
    for name in ("ray", "uvicorn", "starlette", "fastapi", "grpc", "orjson", "uvloop")
    if (spec := importlib.util.find_spec(name)) is not None and spec.origin is not None
)


class Place(NamedTuple):
    """Where in a program's code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


class LoopWatch:
    """Watches the running loop from a thread of its own, until `close`.

    Args:
        limit_s: After how long it warns, seconds; surely after a quarter more. A function is named once.
        what: What stands still meanwhile, as the subject of a sentence.
        advice: What to do.
        log: Where to.
    """

    def __init__(self, *, limit_s: float, what: str, advice: str, log: logging.Logger) -> None:
        self._limit_s = limit_s
        self._what = what
        self._advice = advice
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._beat = threading.Event()
        self._closed = threading.Event()
        self._told: set[tuple[str, str]] = set()
        self._thread = threading.Thread(target=self._watch, name="servepipe-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let the thread end."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_EVERY_S) and len(self._told) < MOST_WARNINGS:
            self._beat.clear()
            try:
                self._loop.call_soon_threadsafe(self._beat.set)
            except RuntimeError:  # it has been closed
                return
            while not self._beat.wait(self._limit_s) and not self._closed.is_set():
                self._look()

    def _look(self) -> None:
        before = self._frame()
        # Twice: many short calls one after the other are nobody's fault, nor is a machine that has no time.
        if not self._beat.wait(self._limit_s / 4):
            frame = self._frame()
            self._warn(user_code(frame, still_in=before))

    def _frame(self) -> FrameType | None:
        return sys._current_frames().get(self._watched)

    def _warn(self, places: Sequence[Place]) -> None:
        if not places or (places[0].file, places[0].function) in self._told:
            return
        self._told.add((places[0].file, places[0].function))
        way = " > ".join(map(str, places if len(places) < 3 else (places[0], places[-1])))
        self._log.warning(
            "%s has stood still for more than %g s, as this keeps the event loop: %s. %s",
            *(self._what, self._limit_s, way, self._advice),
        )


def user_code(frame: FrameType | None, still_in: FrameType | None = None) -> Sequence[Place]:
    """What servepipe or asyncio called, or uvloop, which leaves no frame of its own; outermost first.

    Nothing where no user code is: these are at work themselves, or Ray is, or the standard library for one of them.

    Args:
        frame: The innermost of a stack.
        still_in: The innermost of the same stack a little earlier: only code that has not returned since counts.
    """
    called: list[FrameType] = []
    while frame is not None and not frame.f_code.co_filename.startswith(_CALLERS):
        called.append(frame)
        frame = frame.f_back
    if frame is None:  # down to whoever runs uvloop
        while called and _is_no_user(called[-1]):
            called.pop()
    if not called or _is_no_user(called[-1]) or (still_in is not None and called[-1] not in _stack(still_in)):
        return ()
    return [Place(one.f_code.co_filename, one.f_lineno, one.f_code.co_qualname) for one in reversed(called)]


def _is_no_user(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file.startswith(_OTHERS) or (file.startswith((_STDLIB, "<")) and not file.startswith(_PACKAGES))


def _stack(innermost: FrameType) -> Iterator[FrameType]:
    frame: FrameType | None = innermost
    while frame is not None:
        yield frame
        frame = frame.f_back
