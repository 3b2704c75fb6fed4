"""What must be reached, in one place: how servepipe compares with others measured in the same run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["GOALS", "Goal", "is_compared", "what_goals_need"]


@dataclass(frozen=True)
class Goal:
    """One row.

    Args:
        figure: Which figure of the samples.
        contestant: Whose.
        against: Beside whom; of several the best of each round. Empty: the figure itself is compared.
        at_least: What fails the run when the median misses it.
        aim: What is wished for.
        better: Whether ``at_least`` is the least (``higher``) or the most (``lower``).
        compare: ``ratio`` to ``against``, ``difference`` from it, or the ``value`` itself.
        unit: Behind the figures.
    """

    title: str
    case: str
    load: str
    figure: str
    contestant: str
    against: tuple[str, ...]
    at_least: float
    aim: float
    better: Literal["higher", "lower"]
    compare: Literal["ratio", "difference", "value"] = "ratio"
    unit: str = "x"


def _throughput(title: str, load: str, contestant: str, against: str, at_least: float, aim: float) -> Goal:
    return Goal(title, "diamond", load, "throughput", contestant, (against,), at_least, aim, "higher")


def _p50(title: str, load: str, contestant: str, against: str, at_least: float, aim: float) -> Goal:
    return Goal(title, "diamond", load, "p50", contestant, (against,), at_least, aim, "lower")


_BY_REFERENCE_OR_VALUE = ("serve-tuned", "serve-by-value")

GOALS: tuple[Goal, ...] = (
    _throughput("separate against Ray Serve tuned: throughput at 32", "32", "separate", "serve-tuned", 6.0, 8.0),
    _p50("separate against Ray Serve tuned: p50 at 1", "1", "separate", "serve-tuned", 0.27, 0.2),
    _throughput(
        "separate against Ray Serve as it comes: throughput at 32", "32", "separate", "serve-default", 15.0, 20.0
    ),
    _throughput("separate against uvicorn and a gateway: throughput at 32", "32", "separate", "http", 1.1, 1.5),
    _p50("separate against uvicorn and a gateway: p50 at 1", "1", "separate", "http", 0.9, 0.8),
    _throughput("Auto against separate: throughput at 32", "32", "auto", "separate", 1.3, 1.5),
    _p50("all inline against a no-op: p50 at 1", "1", "inline", "noop", 1.3, 1.15),
    _throughput("all inline against a no-op: throughput at 32", "32", "inline", "noop", 0.65, 0.85),
    Goal(
        "interpreter, async methods, in process: per step",
        case="steps",
        load="async",
        figure="us_per_step",
        contestant="interpreter",
        against=(),
        at_least=20.0,
        aim=10.0,
        better="lower",
        compare="value",
        unit="us",
    ),
    Goal(
        "interpreter, a sync method against a bare run_in_executor: per call",
        case="steps",
        load="sync",
        figure="us_per_call",
        contestant="interpreter",
        against=("by-hand",),
        at_least=1.3,
        aim=1.1,
        better="lower",
    ),
    Goal(
        "2 x 8 MiB against the better of by reference and by value: p50 at 1",
        case="values",
        load="2 x 8 MiB, 1",
        figure="p50",
        contestant="separate",
        against=_BY_REFERENCE_OR_VALUE,
        at_least=0.8,
        aim=0.6,
        better="lower",
    ),
    Goal(
        "2 x 64 MiB against the better of by reference and by value: p50 at 1",
        case="values",
        load="2 x 64 MiB, 1",
        figure="p50",
        contestant="separate",
        against=_BY_REFERENCE_OR_VALUE,
        at_least=1.15,
        aim=1.0,
        better="lower",
    ),
    Goal(
        "1 ms calls when one in ten takes 50 ms, against handles: p50 at 32",
        case="mixture",
        load="32",
        figure="p50 fast",
        contestant="separate",
        against=("serve-tuned",),
        at_least=0.3,
        aim=0.2,
        better="lower",
    ),
    Goal(
        "8 nodes against one application of 8 deployments: time to RUNNING",
        case="startup",
        load="8 nodes",
        figure="running_s",
        contestant="separate",
        against=("serve-tuned",),
        at_least=1.8,
        aim=1.2,
        better="lower",
    ),
    Goal(
        "a node's replica against a bare Serve replica: memory",
        case="startup",
        load="8 nodes",
        figure="replica_mb",
        contestant="separate",
        against=("serve-tuned",),
        at_least=15.0,
        aim=5.0,
        better="lower",
        compare="difference",
        unit="MB",
    ),
)


def is_compared(case: str, load: str, goals: Iterable[Goal] = GOALS) -> bool:
    """Whether a goal looks at what is measured there."""
    return any((goal.case, goal.load) == (case, load) for goal in goals)


def what_goals_need(goals: Iterable[Goal] = GOALS) -> list[str]:
    """What is to be measured for a verdict on these, as ``--only`` takes it."""
    needed: dict[tuple[str, str], dict[str, None]] = {}
    for goal in goals:
        contestants = needed.setdefault((goal.case, goal.load), {})
        contestants.update(dict.fromkeys((goal.contestant, *goal.against)))
    return [f"{case}/{load}/{'+'.join(contestants)}" for (case, load), contestants in needed.items()]
