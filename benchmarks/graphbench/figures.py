"""What was measured, and the few statistics that are made of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Sample", "Spread", "by_round", "percentile", "ratios", "spread"]


@dataclass(frozen=True)
class Sample:
    """One contestant under one load in one round.

    Args:
        figures: What was measured, by name: ``throughput`` (requests per second), ``p50`` and ``p99`` (ms), others.
        problem: Why the figures must not be used; "" when they may.
        details: What explains the figures: requests, CPU, how busy the machine was.
    """

    case: str
    load: str
    contestant: str
    round: int
    figures: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Spread:
    """A median with the quartiles around it; of one value all three are that value."""

    median: float
    low: float
    high: float
    count: int


def percentile(ordered: Sequence[float], q: float) -> float:
    """The ``q``-th percentile (0 to 100) of values in order, between two neighbours in proportion.

    Raises:
        ValueError: There are no values.
    """
    if not ordered:
        raise ValueError("no values have no percentile")
    place = (len(ordered) - 1) * q / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Iterable[float]) -> Spread | None:
    """Median and quartiles; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Spread(statistics.median(ordered), percentile(ordered, 25), percentile(ordered, 75), len(ordered))


def by_round(samples: Iterable[Sample], case: str, load: str, contestant: str, figure: str) -> dict[int, float]:
    """The figure in each round in which it was measured without a problem."""
    return {
        sample.round: sample.figures[figure]
        for sample in samples
        if (sample.case, sample.load, sample.contestant) == (case, load, contestant)
        and not sample.problem
        and figure in sample.figures
    }


def ratios(ours: Mapping[int, float], theirs: Sequence[Mapping[int, float]], *, better: str) -> dict[int, float]:
    """Ours by theirs, round by round; only rounds in which both were measured count.

    Args:
        theirs: Of several the best of each round counts.
        better: ``"higher"`` or ``"lower"``: which of theirs is the best.
    """
    best = max if better == "higher" else min
    found = {}
    for number, value in ours.items():
        others = [other[number] for other in theirs if other.get(number)]
        if others:
            found[number] = value / best(others)
    return found
