"""How the goals came out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from graphbench.figures import Sample, Spread, by_round, ratios, spread
from graphbench.goals import GOALS, Goal

__all__ = ["Outcome", "Verdict", "judge", "judge_all"]

Verdict = Literal["aim reached", "reached", "MISSED", "not judged", "not run"]


@dataclass(frozen=True)
class Outcome:
    """How a goal came out.

    Args:
        spread: Of the compared figure over the rounds; None where there is none.
        why: Why there is no figure, or why it does not count; "" otherwise.
        enough: In how many rounds it must have been compared.
    """

    goal: Goal
    verdict: Verdict
    spread: Spread | None
    why: str = ""
    enough: int = 1

    @property
    def told(self) -> str:
        """The verdict for people."""
        if self.verdict != "not judged":
            return self.verdict
        count = 0 if self.spread is None else self.spread.count
        return f"not judged: {count} of {self.enough} round" + ("" if self.enough == 1 else "s")


def judge(goal: Goal, samples: Sequence[Sample], enough: int = 1) -> Outcome:
    """The verdict on one goal.

    A round in which somebody else failed does not count, and a goal that is left with too few of them is not judged.
    One whose own contestant failed in any round is missed: it gave wrong answers or none.

    Args:
        enough: In how many rounds it must have been compared.
    """
    mine = [s for s in samples if (s.case, s.load, s.contestant) == (goal.case, goal.load, goal.contestant)]
    rivals = [s for s in samples if (s.case, s.load) == (goal.case, goal.load) and s.contestant in goal.against]
    if not mine or (goal.against and not rivals):
        return Outcome(goal, "not run", None)
    found = spread(_compared(goal, samples).values())
    failed = [s for s in mine if s.problem]
    if failed:
        return Outcome(goal, "MISSED", found, f"round {failed[0].round}: {failed[0].problem}")
    if found is None or found.count < enough:
        problems = [f"round {s.round}, {s.contestant}: {s.problem}" for s in rivals if s.problem]
        why = problems[0] if problems else "" if found else f"nobody measured {goal.figure!r}"
        return Outcome(goal, "not judged", found, why, enough)
    return Outcome(goal, _verdict(goal, found.median), found)


def judge_all(samples: Iterable[Sample], enough: int = 1, goals: Sequence[Goal] = GOALS) -> list[Outcome]:
    """The verdicts; see `judge`."""
    taken = list(samples)
    return [judge(goal, taken, enough) for goal in goals]


def _compared(goal: Goal, samples: Sequence[Sample]) -> dict[int, float]:
    ours = by_round(samples, goal.case, goal.load, goal.contestant, goal.figure)
    theirs = [by_round(samples, goal.case, goal.load, name, goal.figure) for name in goal.against]
    match goal.compare:
        case "value":
            return ours
        case "ratio":
            return ratios(ours, theirs, better=goal.better)
        case "difference":
            return {number: value - theirs[0][number] for number, value in ours.items() if number in theirs[0]}


def _verdict(goal: Goal, median: float) -> Verdict:
    sign = 1 if goal.better == "higher" else -1
    if sign * median >= sign * goal.aim:
        return "aim reached"
    return "reached" if sign * median >= sign * goal.at_least else "MISSED"
