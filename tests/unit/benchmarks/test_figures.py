"""The statistics: what they give, and what they leave out."""

from __future__ import annotations

import statistics

import pytest
from graphbench.figures import Sample, Spread, by_round, percentile, ratios, spread
from hypothesis import given
from hypothesis import strategies as st


def test_a_percentile_lies_between_its_neighbours_in_proportion() -> None:
    assert [percentile([10.0, 20.0, 30.0, 40.0, 50.0], q) for q in (0, 25, 50, 90, 100)] == [10, 20, 30, 46, 50]
    assert percentile([7.0], 99) == 7


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile([], 50)


@given(st.lists(st.integers(0, 10**6), min_size=1), st.integers(0, 100))
def test_a_percentile_is_within_the_values(values: list[int], q: int) -> None:
    ordered = sorted(values)
    assert ordered[0] <= percentile(ordered, q) <= ordered[-1]
    assert percentile(ordered, 50) == pytest.approx(statistics.median(values))


def test_a_spread_is_the_median_between_the_quartiles_whatever_the_order() -> None:
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3, 2, 4, 5)
    assert spread([2.0]) == Spread(2, 2, 2, 1)
    assert spread([]) is None


def sample(number: int, value: float, *, contestant: str = "a", problem: str = "", figure: str = "p50") -> Sample:
    return Sample("case", "1", contestant, number, {figure: value}, problem)


def test_rounds_that_failed_or_measured_something_else_are_left_out() -> None:
    samples = [
        sample(1, 10),
        sample(2, 11, problem="HTTP 500"),
        sample(3, 12, figure="p99"),
        sample(4, 13, contestant="b"),
        sample(5, 14),
    ]
    assert by_round(samples, "case", "1", "a", "p50") == {1: 10, 5: 14}


def test_ratios_are_made_in_each_round_and_only_where_both_were_measured() -> None:
    ours, theirs = {1: 10.0, 2: 30.0, 3: 5.0}, {1: 5.0, 2: 10.0, 4: 1.0}
    assert ratios(ours, [theirs], better="higher") == {1: 2, 2: 3}


@pytest.mark.parametrize(("better", "expected"), [("lower", {1: 5.0, 2: 2.0}), ("higher", {1: 2.5, 2: 1.0})])
def test_of_several_others_the_best_of_each_round_counts(better: str, expected: dict[int, float]) -> None:
    assert ratios({1: 10.0, 2: 8.0}, [{1: 2.0, 2: 8.0}, {1: 4.0, 2: 4.0}], better=better) == expected


def test_one_that_failed_in_a_round_leaves_it_to_the_other() -> None:
    assert ratios({1: 10.0}, [{}, {1: 5.0}], better="lower") == {1: 2}
    assert ratios({1: 10.0}, [{1: 0.0}], better="lower") == {}
