"""What runs, in which order: pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from graphbench.cases import CASES, Case, Load
from graphbench.contestants import CONTESTANTS
from graphbench.goals import is_compared

__all__ = [
    "FULL",
    "QUICK",
    "Pace",
    "Selection",
    "SelectionError",
    "order",
    "plan",
    "seconds_of",
    "select",
    "systems_of",
    "window_s",
]


class SelectionError(ValueError):
    """What ``--only`` says is not there; the message says what is."""


@dataclass(frozen=True)
class Pace:
    """How long and how often.

    Args:
        rounds: Of each contestant under a load that a goal compares.
        other_rounds: The same under any other load, whose figures are told and not judged.
        seconds: That are measured in each.
        warmup_s: Under the same load before those.
        first_warmup_s: Once before the first round, under the largest load.
        freeze: Whether those that wait for their turn are stopped meanwhile.
    """

    rounds: int
    other_rounds: int
    seconds: float
    warmup_s: float
    first_warmup_s: float
    freeze: bool = True

    @property
    def verdicts(self) -> bool:
        """Whether a missed goal fails the run; one with fewer rounds only indicates."""
        return self.rounds >= ENOUGH_ROUNDS

    @property
    def enough(self) -> int:
        """In how many rounds a goal must have been compared, so that it is judged."""
        return ENOUGH_ROUNDS if self.verdicts else 1

    def rounds_of(self, case: str, load: str) -> int:
        return self.rounds if is_compared(case, load) else self.other_rounds


ENOUGH_ROUNDS = 5
FULL = Pace(rounds=5, other_rounds=3, seconds=2.0, warmup_s=0.7, first_warmup_s=3.0)
QUICK = Pace(rounds=3, other_rounds=3, seconds=1.0, warmup_s=0.4, first_warmup_s=1.5)

#: About how long a system takes to start and to end, in seconds, on two cores; and each node in it more.
_START_S: Mapping[str, float] = {"http": 4.0, "reference": 1.0}
_SYSTEM_S = 14.0
_NODE_S = 0.8
_BETWEEN_S = 1.0
_STARTUP_S = 20.0
_STEPS_ROUND_S = 2.5


@dataclass(frozen=True)
class Selection:
    """Cases with the loads and contestants that were chosen."""

    cases: tuple[Case, ...]


def select(only: Sequence[str], *, quick: bool, without: Sequence[str] = ()) -> Selection:
    """What to run.

    Args:
        only: ``CASE``, ``CASE/LOAD`` or ``CASE/LOAD/CONTESTANT+CONTESTANT``; an empty part or ``*`` is everything.
            Nothing at all: everything.
        quick: Without ``only`` just the quick cases; with it, all that it names.
        without: Cases that are left out, whatever else is said.

    Raises:
        SelectionError: There is no such case, load or contestant, or nothing is left.
    """
    for name in without:
        _known(name)
    chosen = _chosen(only) if only else [_quick(case) if quick else case for case in CASES.values()]
    left = tuple(case for case in chosen if case.loads and case.name not in without)
    if not left:
        raise SelectionError("nothing is left to measure")
    return Selection(left)


def _chosen(only: Sequence[str]) -> list[Case]:
    chosen: dict[str, Case] = {}
    for word in only:
        case = _narrowed(word)
        if case.name in chosen:
            case = _both(chosen[case.name], case)
        chosen[case.name] = case
    return [chosen[name] for name in CASES if name in chosen]


def _known(name: str) -> Case:
    if name not in CASES:
        raise SelectionError(f"there is no case {name!r}; the cases are: {', '.join(CASES)}")
    return CASES[name]


def _quick(case: Case) -> Case:
    """Its part of a quick run; without loads where it has none."""
    loads = tuple(load for load in case.loads if load.name in case.quick)
    return replace(case, loads=loads, contestants=case.quick_contestants)


def _narrowed(word: str) -> Case:
    name, _, rest = word.partition("/")
    load, _, contestants = rest.partition("/")
    case = _known(name)
    if load not in ("", "*"):
        loads = {one.name: one for one in case.loads}
        if load not in loads:
            raise SelectionError(f"{name} has no load {load!r}; its loads are: {'; '.join(loads)}")
        case = replace(case, loads=(loads[load],))
    if contestants not in ("", "*"):
        wanted = contestants.split("+")
        for one in wanted:
            if one not in case.contestants:
                raise SelectionError(f"{name} has no contestant {one!r}; it has: {', '.join(case.contestants)}")
        case = replace(case, contestants=tuple(one for one in case.contestants if one in wanted))
    return case


def _both(a: Case, b: Case) -> Case:
    whole = CASES[a.name]
    loads = tuple(load for load in whole.loads if load in a.loads or load in b.loads)
    contestants = tuple(name for name in whole.contestants if name in (*a.contestants, *b.contestants))
    return replace(whole, loads=loads, contestants=contestants)


def systems_of(case: Case) -> tuple[str, ...]:
    """The systems that must be up, each once, in the order of the contestants."""
    return tuple(dict.fromkeys(CONTESTANTS[name].system for name in case.contestants))


def order(contestants: Sequence[str], number: int) -> list[str]:
    """Who comes when in a round: another order in each, so that nobody always follows the same neighbour."""
    return random.Random(number).sample(list(contestants), len(contestants))


def plan(case: Case, pace: Pace) -> list[tuple[Load, ...]]:
    """The loads of each round: all of them in the first, later those of which more rounds are wanted."""
    rounds = [pace.rounds_of(case.name, load.name) for load in case.loads]
    return [
        tuple(load for load, last in zip(case.loads, rounds, strict=True) if number <= last)
        for number in range(1, max(rounds) + 1)
    ]


def window_s(load: Load, seconds: float) -> float:
    """How long a load is measured at a pace of ``seconds``."""
    return max(seconds, load.least_seconds)


def seconds_of(selection: Selection, pace: Pace) -> float:
    """About how long it will take."""
    return sum(_seconds_of(case, pace) for case in selection.cases)


def _seconds_of(case: Case, pace: Pace) -> float:
    rounds = plan(case, pace)
    match case.kind:
        case "startup":
            return len(rounds) * len(case.contestants) * _STARTUP_S
        case "steps":
            return len(rounds) * _STEPS_ROUND_S
        case _:
            own_s = _SYSTEM_S + len(case.nodes) * _NODE_S
            starts_s = sum(_START_S.get(system, own_s) for system in systems_of(case))
            turns = [window_s(load, pace.seconds) + pace.warmup_s + _BETWEEN_S for loads in rounds for load in loads]
            return starts_s + len(case.contestants) * (sum(turns) + pace.first_warmup_s)
