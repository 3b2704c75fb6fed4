"""A warning that names the code which keeps an event loop from going on.

While user code blocks the loop of a replica, nothing else of it runs: no other call, no health check, no count for
autoscaling. What shows is slow answers somewhere else. A thread sees it, and sees where.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import ray

import servepipe

__all__ = ["LoopWatch", "Place", "user_code"]

LOOK_EVERY_S = 0.25
"""How often the loop is asked, seconds; what that costs cannot be measured."""

MOST_WARNINGS = 20

_CALLERS = (str(Path(servepipe.__file__).parent), str(Path(asyncio.__file__).parent))
_NO_USERS = (str(Path(ray.__file__).parent), selectors.__file__)


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
        limit_s: After how long it warns, seconds. Of two places in one function it names the first only.
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
                self._warn()

    def _warn(self) -> None:
        frame = sys._current_frames().get(self._watched)
        places = user_code(frame)
        del frame
        # The loop may have gone on meanwhile, or the machine has no time for it: there is nobody to name.
        if not places or (places[0].file, places[0].function) in self._told:
            return
        self._told.add((places[0].file, places[0].function))
        way = " > ".join(map(str, places if len(places) < 3 else (places[0], places[-1])))
        self._log.warning(
            "%s has stood still for more than %g s, as this keeps the event loop: %s. %s",
            *(self._what, self._limit_s, way, self._advice),
        )


def user_code(frame: FrameType | None) -> Sequence[Place]:
    """What servepipe or asyncio called, outermost first; ``frame`` is the innermost of the stack.

    Nothing where these two are at work themselves, or Ray is, or where the loop waits.
    """
    found: list[Place] = []
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_CALLERS):
            return found[::-1] if found and not found[-1].file.startswith(_NO_USERS) else ()
        found.append(Place(file, frame.f_lineno, frame.f_code.co_qualname))
        frame = frame.f_back
    return ()
