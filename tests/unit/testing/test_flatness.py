"""The measure that the soak goes by."""

from __future__ import annotations

import random

import pytest
from flatness import Series, growing


def series(values: list[float], slack: float = 4) -> Series:
    made = Series("memory of one", slack)
    for at, value in enumerate(values):
        made.add(float(at), value)
    return made


def test_what_goes_up_and_down_is_flat() -> None:
    noise = random.Random(7)
    one = series([100 + noise.uniform(-3, 3) for _ in range(200)])
    assert abs(one.growth(0)) < 1
    assert growing([one], 0) == []


def test_a_leak_is_found_in_noise() -> None:
    noise = random.Random(7)
    one = series([100 + 0.05 * at + noise.uniform(-3, 3) for at in range(200)])
    assert one.growth(0) == pytest.approx(10, abs=1)
    (told,) = growing([one], 0)
    assert told.startswith("memory of one: ") and "none is up to 4" in told


def test_peaks_are_no_growth() -> None:
    one = series([100 + (80 if at % 10 == 9 else 0) for at in range(100)])
    assert growing([one], 0) == []


def test_what_grew_while_warming_up_does_not_count() -> None:
    one = series([float(min(at, 50)) for at in range(100)])
    assert growing([one], 60) == []
    assert growing([one], 0) != []


def test_too_few_samples_are_no_answer() -> None:
    with pytest.raises(ValueError, match="memory of one: 2 samples since 1 s are too few"):
        series([1, 2, 3]).growth(1)
