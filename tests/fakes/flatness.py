"""Whether what a process holds stays the same over time."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Series:
    """One figure of one process.

    Attributes:
        name: Such as ``"memory of ingress"``.
        slack: Growth that is none: what allocators and caches take back and forth.
        at: Seconds.
        values: One for each of ``at``.
    """

    name: str
    slack: float
    at: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, at: float, value: float) -> None:
        self.at.append(at)
        self.values.append(value)

    def growth(self, since: float) -> float:
        """By how much it grew from ``since`` to its end, by the median of the slopes between any two samples
        (Theil-Sen): a peak in some of them changes nothing.

        Raises:
            ValueError: There are fewer than three samples.
        """
        samples = [(at, value) for at, value in zip(self.at, self.values, strict=True) if at >= since]
        if len(samples) < 3:
            raise ValueError(f"{self.name}: {len(samples)} samples since {since:g} s are too few")
        slopes = [(v - u) / (b - a) for (a, u), (b, v) in itertools.combinations(samples, 2)]
        return statistics.median(slopes) * (samples[-1][0] - samples[0][0])

    def told(self, since: float) -> str:
        ends = f"{self.values[0]:.1f}, then {self.values[-1]:.1f}"
        return (
            f"{self.name}: {ends}; growth since {since:.0f} s {self.growth(since):+.2f} (none is up to {self.slack:g})"
        )


def growing(series: Sequence[Series], since: float) -> list[str]:
    """What is told of those that grew by more than their slack."""
    return [one.told(since) for one in series if one.growth(since) > one.slack]
