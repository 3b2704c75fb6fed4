"""Quantities as numbers."""

from __future__ import annotations

from decimal import Decimal

import pytest

from servepipe.api import parse_quantity
from servepipe.errors import ResourceError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", "0"),
        ("4", "4"),
        ("500m", "0.5"),
        ("0.5", "0.5"),
        ("1.5k", "1500"),
        ("2M", "2000000"),
        ("1G", "1000000000"),
        ("1Ki", "1024"),
        ("1.5Gi", "1610612736"),
        ("1Ti", "1099511627776"),
        ("1Pi", "1125899906842624"),
    ],
)
def test_quantities_stand_for_exact_numbers(text: str, number: str) -> None:
    assert parse_quantity(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "m", "1e3", "-1", "+1", "1 Gi", "1gi", "0x1", "1.", ".5", "1\n", "١", "1" * 40])
def test_everything_else_is_refused_at_its_place(text: str) -> None:
    with pytest.raises(ResourceError) as caught:
        parse_quantity(text, "spec.nodes.m1.resources.cpu")
    assert caught.value.where == "spec.nodes.m1.resources.cpu"
