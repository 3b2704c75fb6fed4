"""Kubernetes' quantities, as far as requests and limits of Pods need them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

SUFFIXES = {
    **{suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    "m": Decimal("0.001"),
}


def parse(quantity: str | int | float) -> Decimal:
    text = str(quantity)
    for suffix, factor in SUFFIXES.items():
        if text.endswith(suffix):
            return Decimal(text.removesuffix(suffix)) * factor
    return Decimal(text)


def written(value: Decimal, *, binary: bool) -> str:
    """In the canonical form: the largest suffix that leaves an integer."""
    if value != value.to_integral_value():
        return f"{value * 1000:.0f}m"
    number = int(value)
    best = str(number)
    for suffix in ("Ki", "Mi", "Gi", "Ti") if binary else ("k", "M", "G", "T"):
        factor = int(SUFFIXES[suffix])
        if number and number % factor == 0:
            best = f"{number // factor}{suffix}"
    return best


def container_resources(container: Mapping[str, Any]) -> dict[str, Decimal]:
    """What it asks for: requests, and limits where there is no request."""
    resources = container.get("resources") or {}
    named = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: parse(value) for name, value in named.items()}


def total(amounts: Iterable[Mapping[str, Decimal]]) -> dict[str, Decimal]:
    result: dict[str, Decimal] = {}
    for one in amounts:
        for name, value in one.items():
            result[name] = result.get(name, Decimal(0)) + value
    return result
