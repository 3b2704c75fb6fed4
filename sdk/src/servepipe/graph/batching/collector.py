"""Which items make a batch, and when it starts. Knows no clock and no event loop: what happens is told, with the time.

                     ┌─────────────────── leave ──▶ gone
    add ──▶ waiting ─┼─ look, deadline passed ────▶ expired
                     └─ look, time for a batch ───▶ running ──ended──▶ (the next look may start the next one)

One batch runs at a time; meanwhile the next one gathers. When it may start there are often only few items, since the
callers that have just got their answers are about to come back. So the method waits a little for as many items as it
has callers, which is how many it saw when the last batch ended: those in it and those that waited. It starts at once
when they are there, so one caller alone does not wait; it stands idle for an item at most ``max_wait_s``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

__all__ = ["Collector", "Decision", "Item", "Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a method batches.

    Args:
        max_size: The most items in one batch, 1 or more.
        max_wait_s: For how many seconds at most the method stands idle, with an item there, until there are more.
    """

    max_size: int
    max_wait_s: float


@dataclass(slots=True, eq=False)
class Item:
    """One call of the method. All times are of one clock, in seconds.

    Args:
        value: What the method is given.
        arrived: When it came.
        deadline: After that nobody waits for its answer; None: no bound.
        group: Only items with equal ones share a batch.
    """

    value: Any
    arrived: float
    deadline: float | None = None
    group: Any = None


T = TypeVar("T", bound=Item)


class Decision(NamedTuple, Generic[T]):
    """What is to be done now.

    Args:
        expired: Items whose deadline has passed: they are answered, and not computed.
        batch: Items to start now, in the order in which they came; empty: none.
        again_at: When to look again, unless something happens before; None: there is nothing to wait for.
    """

    expired: Sequence[T]
    batch: Sequence[T]
    again_at: float | None


class Collector(Generic[T]):
    """Args:
        settings: How to batch.

    Attributes:
        settings: May be replaced at any time; they count from the next look on.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._waiting: dict[T, None] = {}
        self._running: dict[T, None] | None = None
        """Of the batch that runs those that somebody waits for; None: none runs."""
        self._callers = 1
        self._idle_since = -math.inf
        self._next_deadline = math.inf
        """No item that waits has an earlier one. It may be that of one that has gone: then a look finds the next."""

    def add(self, item: T) -> None:
        """An item has come."""
        self._waiting[item] = None
        if item.deadline is not None and item.deadline < self._next_deadline:
            self._next_deadline = item.deadline

    def leave(self, item: T) -> bool:
        """Nobody waits for an item any more. It leaves its batch, unless that runs already.

        Returns:
            Whether nobody waits for anything in the running batch now.
        """
        if item in self._waiting:
            del self._waiting[item]
        elif self._running is not None and item in self._running:
            del self._running[item]
            return not self._running
        return False

    def ended(self, now: float) -> None:
        """The batch that was running has ended."""
        assert self._running is not None
        self._callers = len(self._running) + len(self._waiting)
        self._running = None
        self._idle_since = now

    def look(self, now: float) -> Decision[T]:
        """What is to be done at ``now``. The items in it are this collector's no more, but for the batch's `leave`."""
        expired = self._expired(now) if now >= self._next_deadline else ()
        if self._running is not None or not self._waiting:
            return Decision(expired, (), self._again(math.inf))
        first = next(iter(self._waiting))
        settings = self.settings
        due = max(first.arrived, self._idle_since) + settings.max_wait_s
        if now < due and len(self._waiting) < min(self._callers, settings.max_size):
            return Decision(expired, (), self._again(due))
        batch = self._take(first.group, settings.max_size)
        self._running = dict.fromkeys(batch)
        return Decision(expired, batch, self._again(math.inf))

    def _again(self, due: float) -> float | None:
        at = min(due, self._next_deadline) if self._waiting else math.inf
        return None if at == math.inf else at

    def _take(self, group: Any, size: int) -> list[T]:
        batch: list[T] = []
        for item in self._waiting:
            if item.group == group:
                batch.append(item)
                if len(batch) == size:
                    break
        for item in batch:
            del self._waiting[item]
        return batch

    def _expired(self, now: float) -> list[T]:
        expired = [item for item in self._waiting if item.deadline is not None and item.deadline <= now]
        for item in expired:
            del self._waiting[item]
        deadlines = (item.deadline for item in self._waiting if item.deadline is not None)
        self._next_deadline = min(deadlines, default=math.inf)
        return expired
