"""How long the engine has watched something that has a deadline.

Only watched time counts: hours in which the engine did not run or Serve did not answer are not the candidate's fault.
The counts stand in status, so that a restart of the engine does not start them again; with a lost status they start
again, and nothing else is lost.

A count is written down only once per tenth of its deadline, so that status is not written at every look; and of the
time since it was written at most half as much again counts. So a gap of any length uses up little of the deadline, and
an engine that never lives for long still gives up in the end. A deadline that is used up is written no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from servepipe_operator.engine.state import Json
from servepipe_operator.engine.times import seconds, timestamp

__all__ = ["Watch"]

_SHORTEST_PERIOD_S = 10


@dataclass(frozen=True, slots=True)
class _Count:
    """``watched_s`` seconds were counted until ``at`` (epoch seconds), of this attempt."""

    attempt: int
    watched_s: int
    at: int


@dataclass(frozen=True, slots=True)
class Watch:
    """What status says about deadlines, and the present.

    Subjects are names of applications and whatever else a caller gives a deadline to; one that gets no `entry` in the
    next status is forgotten.
    """

    counts: Mapping[str, _Count]
    now: int

    @classmethod
    def of(cls, status: Json, now: float) -> Watch:
        """As last written to ``status.deadlines``; what cannot be read counts as never written."""
        written = status.get("deadlines")
        counts = {}
        for subject, entry in written.items() if isinstance(written, Mapping) else ():
            if isinstance(entry, Mapping) and (count := _read(entry)):
                counts[subject] = count
        return cls(counts, int(now))

    def seconds(self, subject: str, attempt: int, deadline_s: int) -> int:
        """For how long this attempt has been watched."""
        count = self._count(subject, attempt)
        most = _period(deadline_s) * 3 // 2
        return count.watched_s + min(max(self.now - count.at, 0), most)

    def entry(self, subject: str, attempt: int, deadline_s: int) -> Json:
        """What to write to status, so that the present look counts."""
        count = self._count(subject, attempt)
        used_up = count.watched_s >= deadline_s
        # Before `at` the clock was set back.
        if not used_up and not 0 <= self.now - count.at < _period(deadline_s):
            count = _Count(attempt, self.seconds(subject, attempt, deadline_s), self.now)
        return {"attempt": count.attempt, "watchedSeconds": count.watched_s, "at": timestamp(count.at)}

    def _count(self, subject: str, attempt: int) -> _Count:
        found = self.counts.get(subject)
        return found if found is not None and found.attempt == attempt else _Count(attempt, 0, self.now)


def _period(deadline_s: int) -> int:
    return min(max(deadline_s // 10, _SHORTEST_PERIOD_S), deadline_s)


def _read(entry: Mapping[str, object]) -> _Count | None:
    attempt, watched_s, at = entry.get("attempt"), entry.get("watchedSeconds"), seconds(entry.get("at"))
    if not isinstance(attempt, int) or not isinstance(watched_s, int) or watched_s < 0 or at is None:
        return None
    return _Count(attempt, watched_s, int(at))
