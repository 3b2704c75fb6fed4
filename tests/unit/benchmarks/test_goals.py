"""Goals: each names what there is, and a verdict is what the medians say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from graphbench.cases import CASES
from graphbench.figures import Sample
from graphbench.goals import GOALS, Goal
from graphbench.report import exit_code, failure_lines, verdict_line
from graphbench.schedule import FULL, QUICK, Pace
from graphbench.verdicts import judge, judge_all

FASTER = Goal(
    title="ours against theirs",
    case="diamond",
    load="32",
    figure="throughput",
    contestant="separate",
    against=("serve-tuned",),
    at_least=2.0,
    aim=3.0,
    better="higher",
)
QUICKER = replace(FASTER, figure="p50", at_least=0.5, aim=0.25, better="lower")


def measured(contestant: str, *values: float, figure: str = "throughput") -> list[Sample]:
    return [Sample("diamond", "32", contestant, number, {figure: value}) for number, value in enumerate(values, 1)]


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: f"{goal.case}: {goal.title}")
def test_every_goal_compares_contestants_of_its_case(goal: Goal) -> None:
    case = CASES[goal.case]
    assert goal.load in {load.name for load in case.loads}
    assert {goal.contestant, *goal.against} <= set(case.contestants)
    assert (goal.compare == "value") == (not goal.against)
    stricter = goal.aim > goal.at_least if goal.better == "higher" else goal.aim < goal.at_least
    assert stricter, "the aim is more than the least"


def test_no_goal_is_there_twice() -> None:
    assert len({(goal.case, goal.title) for goal in GOALS}) == len(GOALS)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [((20, 21, 19), "reached"), ((30, 31, 30), "aim reached"), ((19.9, 10, 90), "MISSED"), ((20, 20, 20), "reached")],
)
def test_the_median_of_the_ratios_decides(ours: tuple[float, ...], verdict: str) -> None:
    outcome = judge(FASTER, measured("separate", *ours) + measured("serve-tuned", 10, 10, 10))
    assert outcome.verdict == verdict


@pytest.mark.parametrize(("ours", "verdict"), [(5.0, "reached"), (2.5, "aim reached"), (5.1, "MISSED")])
def test_of_times_less_is_better(ours: float, verdict: str) -> None:
    samples = measured("separate", ours, figure="p50") + measured("serve-tuned", 10, figure="p50")
    assert judge(QUICKER, samples).verdict == verdict


def test_ratios_of_rounds_and_not_of_medians() -> None:
    # The machine was three times slower in the second round: the medians alone would say 10 / 10.
    outcome = judge(FASTER, measured("separate", 30, 10, 30) + measured("serve-tuned", 10, 5, 10))
    assert outcome.spread is not None
    assert outcome.spread.median == 3


def test_of_two_others_the_better_one_counts() -> None:
    goal = replace(QUICKER, against=("serve-tuned", "serve-by-value"))
    samples = measured("separate", 5, figure="p50") + measured("serve-tuned", 20, figure="p50")
    assert judge(goal, samples).verdict == "aim reached"
    assert judge(goal, samples + measured("serve-by-value", 6, figure="p50")).verdict == "MISSED"


def test_a_difference_is_taken_in_each_round() -> None:
    goal = replace(QUICKER, compare="difference", at_least=15.0, aim=5.0)
    samples = measured("separate", 110, 130, figure="p50") + measured("serve-tuned", 100, 110, figure="p50")
    outcome = judge(goal, samples)
    assert (outcome.verdict, outcome.spread.median if outcome.spread else None) == ("reached", 15)


def test_a_value_needs_nobody_else() -> None:
    goal = replace(QUICKER, compare="value", against=(), at_least=20.0, aim=10.0)
    assert judge(goal, measured("separate", 12, figure="p50")).verdict == "reached"


def test_what_was_not_run_is_not_missed() -> None:
    assert judge(FASTER, []).verdict == "not run"
    assert judge(FASTER, measured("separate", 10)).verdict == "not run", "nobody to compare with"
    assert judge(FASTER, measured("serve-tuned", 10)).verdict == "not run"


def test_one_wrong_answer_of_ours_misses_the_goal() -> None:
    samples = measured("separate", 40, 40) + measured("serve-tuned", 10, 10)
    samples.append(Sample("diamond", "32", "separate", 3, {"throughput": 90}, "HTTP 500"))
    outcome = judge(FASTER, samples)
    assert outcome.verdict == "MISSED"
    assert "round 3: HTTP 500" in outcome.why


def test_a_round_that_another_failed_is_left_out() -> None:
    samples = measured("separate", 40, 40) + measured("serve-tuned", 10)
    samples.append(Sample("diamond", "32", "serve-tuned", 2, {}, "did not start"))
    assert judge(FASTER, samples).verdict == "aim reached"


def test_others_that_never_came_up_leave_no_verdict_of_success() -> None:
    samples = [*measured("separate", 40), Sample("diamond", "32", "serve-tuned", 1, {}, "did not start")]
    outcome = judge(FASTER, samples, 5)
    assert (outcome.told, outcome.why) == ("not judged: 0 of 5 rounds", "round 1, serve-tuned: did not start")


def test_a_figure_that_nobody_measured_leaves_no_verdict_of_success() -> None:
    outcome = judge(QUICKER, measured("separate", 40) + measured("serve-tuned", 10))
    assert (outcome.told, outcome.why) == ("not judged: 0 of 1 round", "nobody measured 'p50'")


@pytest.mark.parametrize(("rounds", "told"), [(5, "aim reached"), (4, "not judged: 4 of 5 rounds")])
def test_a_goal_is_judged_by_enough_rounds(rounds: int, told: str) -> None:
    samples = measured("separate", *[40] * 5) + measured("serve-tuned", *[10] * rounds)
    samples += [Sample("diamond", "32", "serve-tuned", number, {}, "slow") for number in range(rounds + 1, 6)]
    outcomes = judge_all(samples, FULL.enough, [FASTER])
    assert outcomes[0].told == told
    assert outcomes[0].why == ("" if rounds == 5 else "round 5, serve-tuned: slow")
    assert exit_code(outcomes, samples, FULL) == (0 if rounds == 5 else 1)
    indicated = judge_all(samples, QUICK.enough, [FASTER])
    assert indicated[0].told == "aim reached"
    assert exit_code(indicated, samples, QUICK) == 0


def test_of_two_others_one_is_enough_in_each_round() -> None:
    goal = replace(QUICKER, against=("serve-tuned", "serve-by-value"))
    samples = measured("separate", *[2] * 5, figure="p50") + measured("serve-tuned", *[10] * 5, figure="p50")
    samples += [Sample("diamond", "32", "serve-by-value", number, {}, "slow") for number in range(1, 6)]
    outcomes = judge_all(samples, FULL.enough, [goal])
    assert outcomes[0].verdict == "aim reached"
    assert exit_code(outcomes, samples, FULL) == 0


def test_wrong_answers_come_before_too_few_rounds() -> None:
    samples = [*measured("separate", 40), Sample("diamond", "32", "separate", 2, {}, "HTTP 500")]
    assert judge(FASTER, samples + measured("serve-tuned", 10, 10), 5).verdict == "MISSED"


def missed() -> list[Sample]:
    return measured("separate", 10) + measured("serve-tuned", 10)


def test_a_missed_goal_fails_the_run_but_not_a_quick_one() -> None:
    outcomes = judge_all(missed(), goals=[FASTER])
    assert exit_code(outcomes, missed(), FULL) == 1
    assert exit_code(outcomes, missed(), QUICK) == 0
    assert "1 of 1 goals missed: of a run that is too short" in verdict_line(outcomes, QUICK)


@pytest.mark.parametrize("contestant", ["separate", "auto", "inline", "interpreter"])
@pytest.mark.parametrize("pace", [FULL, QUICK], ids=["full", "quick"])
def test_wrong_answers_of_ours_fail_every_run(contestant: str, pace: Pace) -> None:
    samples = [*measured("http", 10), Sample("fan", "128", contestant, 1, {"throughput": 1.0}, "HTTP 500")]
    assert exit_code([], samples, pace) == 1


@pytest.mark.parametrize("contestant", ["serve-tuned", "serve-default", "http", "floor", "client", "by-hand"])
@pytest.mark.parametrize("pace", [FULL, QUICK], ids=["full", "quick"])
def test_wrong_answers_of_others_are_told_and_fail_no_run(contestant: str, pace: Pace) -> None:
    samples = [*measured("separate", 10), Sample("fan", "128", contestant, 1, {}, "HTTP 500")]
    assert exit_code([], samples, pace) == 0
    assert failure_lines(samples) == [f"FAILED 1 of 1 times: fan, {contestant}; at '128' in round 1: HTTP 500"]


def test_a_run_that_measured_nothing_fails() -> None:
    assert exit_code([], [Sample("diamond", "32", "http", 1, {}, "did not start")], QUICK) == 1


def test_what_was_not_measured_is_told() -> None:
    reached = measured("separate", 40) + measured("serve-tuned", 10)
    other = replace(FASTER, case="chain", title="another")
    outcomes = judge_all(reached, goals=[FASTER, other])
    assert exit_code(outcomes, reached, FULL) == 0
    assert verdict_line(outcomes, FULL) == "All 1 goals that were measured reached; 1 not measured."
    assert verdict_line(judge_all([], goals=[FASTER]), FULL) == "No goal was measured."


def test_what_was_missed_and_what_was_not_judged_is_told_apart() -> None:
    outcomes = [*judge_all(missed(), goals=[FASTER]), *judge_all(missed(), 5, [FASTER])]
    assert verdict_line(outcomes, FULL) == "1 of 2 goals missed, 1 of 2 goals not judged."
