"""A warning that names the code which keeps an event loop from going on.

While user code blocks the loop of a replica, nothing else of it runs: no other call, no health check, no count for
autoscaling. What shows is slow answers somewhere else. A thread sees it, and sees where. It also sees which code is at
work again and again whenever it looks: that never stops the loop for long, and still leaves little of it for others.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import servepipe

__all__ = ["LoopWatch", "Place", "Shares", "user_code"]

LOOK_EVERY_S = 0.25
"""How often the loop is asked, seconds; what that costs cannot be measured."""

MOST_WARNINGS = 20

LOOKS = 80
"""After how many looks shares are told: twenty seconds. Of a function with 15 % of the time one in a thousand times
more than a quarter of so many find it at work."""

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


class Shares:
    """How often which function was found at work.

    Args:
        most: Which share of `LOOKS` is too much.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._looks = 0
        self._found: Counter[Place] = Counter()

    def add(self, found: Sequence[Place]) -> dict[Place, float]:
        """Add what one look found, as `user_code` gives it: functions with too much, and their shares. Nothing but at
        the end of each `LOOKS`, which are counted anew then."""
        self._looks += 1
        if found:
            self._found[found[0]._replace(line=0)] += 1
        if self._looks < LOOKS:
            return {}
        shares = {place: count / self._looks for place, count in self._found.items()}
        self._looks, self._found = 0, Counter()
        return {place: share for place, share in shares.items() if share > self._most}


class LoopWatch:
    """Watches the running loop from a thread of its own, until `close`.

    Args:
        limit_s: After how long it warns, seconds; surely after a quarter more. A function is named once.
        what: What stands still meanwhile, as the subject of a sentence.
        advice: What to do.
        log: Where to.
        most: Which share of the loop's time one function may take, from 0 to 1; None: all of it.
    """

    def __init__(
        self, *, limit_s: float, what: str, advice: str, log: logging.Logger, most: float | None = None
    ) -> None:
        self._limit_s = limit_s
        self._what = what
        self._advice = advice
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._beat = threading.Event()
        self._closed = threading.Event()
        self._told: set[tuple[str, str]] = set()
        self._shares = None if most is None else Shares(most)
        self._thread = threading.Thread(target=self._watch, name="servepipe-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let the thread end."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_EVERY_S) and len(self._told) < MOST_WARNINGS:
            if self._shares is not None:
                for place, share in self._shares.add(user_code(self._frame())).items():
                    self._tell_share(place, share)
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

    def _is_new(self, place: Place) -> bool:
        key = (place.file, place.function)
        is_new = key not in self._told
        self._told.add(key)
        return is_new

    def _tell_share(self, place: Place, share: float) -> None:
        if self._is_new(place):
            self._log.warning(
                "%s spends about %d %% of its event loop's time in %s (%s), and everything else may wait for it. %s",
                *(self._what, round(100 * share), place.function, place.file, self._advice),
            )

    def _warn(self, places: Sequence[Place]) -> None:
        if not places or not self._is_new(places[0]):
            return
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
