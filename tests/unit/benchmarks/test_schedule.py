"""What runs, and in which order."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
from graphbench.cases import CASES, CONNECTIONS, Case
from graphbench.contestants import CONTESTANTS, SYSTEMS
from graphbench.goals import GOALS, Goal, what_goals_need
from graphbench.schedule import (
    FULL,
    QUICK,
    Pace,
    SelectionError,
    order,
    plan,
    seconds_of,
    select,
    systems_of,
    window_s,
)

FIVE_MINUTES = 300


def test_everything_by_default() -> None:
    assert select([], quick=False).cases == tuple(CASES.values())


def test_a_quick_run_takes_less_than_five_minutes_and_has_the_most_important_goal() -> None:
    quick = select([], quick=True)
    (diamond,) = [case for case in quick.cases if case.name == "diamond"]
    assert {load.name for load in diamond.loads} == {"1", "32"}
    assert {"separate", "serve-tuned", "serve-default", "http"} <= set(diamond.contestants)
    assert seconds_of(quick, QUICK) < FIVE_MINUTES


def test_a_full_run_takes_at_most_95_minutes() -> None:
    assert seconds_of(select([], quick=False), FULL) <= 95 * 60


def test_a_full_run_is_long_enough_for_a_verdict() -> None:
    assert FULL.rounds >= 5
    assert FULL.verdicts
    assert FULL.enough == 5
    assert not QUICK.verdicts
    assert QUICK.enough == 1


def test_loads_that_a_goal_compares_have_more_rounds() -> None:
    rounds = [[load.name for load in loads] for loads in plan(CASES["diamond"], FULL)]
    assert rounds == [*[["1", "8", "32", "128"]] * 3, *[["1", "32"]] * 2]
    assert [len(loads) for loads in plan(CASES["chain"], FULL)] == [4, 4, 4]
    assert len(plan(CASES["startup"], FULL)) == 5


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: f"{goal.case}: {goal.title}")
def test_every_goal_can_be_judged_by_a_full_run(goal: Goal) -> None:
    rounds = sum(goal.load in {load.name for load in loads} for loads in plan(CASES[goal.case], FULL))
    assert rounds >= FULL.enough


def test_as_many_rounds_everywhere_where_somebody_says_so() -> None:
    assert plan(CASES["diamond"], replace(FULL, rounds=2, other_rounds=2)) == [CASES["diamond"].loads] * 2


def test_a_load_is_measured_long_enough_for_its_slowest() -> None:
    loads = {load.name: load for load in CASES["values"].loads}
    assert window_s(loads["2 x 64 MiB, 1"], 2.0) == 10
    assert window_s(loads["2 x 64 MiB, 1"], 20.0) == 20
    assert window_s(loads["2 x 8 KiB, 1"], 2.5) == 2.5


def test_what_takes_longer_is_estimated_so() -> None:
    def minutes(word: str, pace: Pace = FULL) -> float:
        return seconds_of(select([word], quick=False), pace) / 60

    assert minutes("values/2 x 64 MiB, 1/separate") > minutes("values/2 x 8 KiB, 1/separate")
    assert minutes("diamond/32/separate") > minutes("diamond/8/separate")
    assert minutes("diamond/8/separate", replace(FULL, other_rounds=9)) > minutes("diamond/32/separate")
    assert minutes("startup") > minutes("startup//separate") > minutes("steps")


def test_what_the_goals_compare_and_little_else() -> None:
    cases = {case.name: case for case in select(what_goals_need(), quick=False).cases}
    for goal in GOALS:
        case = cases[goal.case]
        assert goal.load in {load.name for load in case.loads}
        assert {goal.contestant, *goal.against} <= {*case.contestants}
    assert cases.keys() == {goal.case for goal in GOALS}
    assert {case.name: len(case.loads) for case in cases.values()}["values"] == 2
    assert seconds_of(select(what_goals_need(), quick=False), FULL) < 25 * 60


def test_one_load_of_some_contestants() -> None:
    (case,) = select(["diamond/32/serve-tuned+separate"], quick=False).cases
    assert [load.name for load in case.loads] == ["32"]
    assert case.contestants == ("separate", "serve-tuned")


def test_all_loads_of_some_contestants() -> None:
    (case,) = select(["diamond/*/http"], quick=False).cases
    assert [load.name for load in case.loads] == [str(number) for number in CONNECTIONS]
    assert case.contestants == ("http",)


def test_what_is_named_twice_is_run_once_with_both() -> None:
    (case,) = select(["diamond/1/http", "diamond/8/auto"], quick=False).cases
    assert [load.name for load in case.loads] == ["1", "8"]
    assert case.contestants == ("auto", "http")


def test_a_name_that_is_chosen_runs_in_a_quick_run_too() -> None:
    assert [case.name for case in select(["fan"], quick=True).cases] == ["fan"]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("diamonds", "no case 'diamonds'; the cases are: diamond, "),
        ("diamond/33", "no load '33'; its loads are: 1; 8; 32; 128"),
        ("diamond/1/kserve", "no contestant 'kserve'; it has: separate, "),
        ("values//auto", "no contestant 'auto'"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(word: str, told: str) -> None:
    with pytest.raises(SelectionError, match=re.escape(told)):
        select([word], quick=False)


def test_every_round_has_everybody_once_in_an_order_of_its_own() -> None:
    names = CASES["diamond"].contestants
    rounds = [order(names, number) for number in range(1, 6)]
    assert all(sorted(one) == sorted(names) for one in rounds)
    assert len({tuple(one) for one in rounds}) == len(rounds)
    assert order(names, 1) == rounds[0], "the same in every run"
    assert max(Counter(one[0] for one in rounds).values()) < len(rounds), "nobody always comes first"


def test_loads_are_told_with_their_connections() -> None:
    assert [load.title for load in CASES["diamond"].loads[:2]] == ["1 connection", "8 connections"]
    assert CASES["values"].loads[1].title == "2 x 8 KiB, 8 connections"


def test_contestants_of_one_system_share_it() -> None:
    (case,) = select(["diamond/1/floor+noop+serve-tuned+auto"], quick=False).cases
    assert systems_of(case) == ("up-auto", "serve-tuned", "serve-floor")


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_every_case_is_complete(case: Case) -> None:
    assert len({load.name for load in case.loads}) == len(case.loads)
    if case.kind == "load":
        assert {CONTESTANTS[name].system for name in case.contestants} <= set(SYSTEMS)
        assert all(load.requests for load in case.loads)


def test_cases_can_be_left_out() -> None:
    assert "triage" not in [case.name for case in select([], quick=False, without=["triage"]).cases]
    with pytest.raises(SelectionError, match="no case 'triag'"):
        select([], quick=False, without=["triag"])
    with pytest.raises(SelectionError, match="nothing is left"):
        select(["fan"], quick=False, without=["fan"])
