"""Batched methods as type checkers see them: `make check` reads this, and fails where a type or an error is another."""

from __future__ import annotations

from typing import Any, assert_type

from servepipe import batch


class Typed:
    @batch(max_size=2)
    def size(self, items: list[str]) -> list[int]:
        return [len(item) for item in items]

    @batch(max_size=2)
    async def size_later(self, items: list[str]) -> list[int | ValueError]:
        return [len(item) for item in items]

    @batch(max_size=2)
    def untyped(self, items):  # type: ignore[no-untyped-def]
        return items

    @batch(max_size=2)  # type: ignore[arg-type]
    def returns_one(self, items: list[str]) -> int:
        return 1


@batch(max_size=2)
def pair(items: list[int]) -> tuple[tuple[int, int], ...]:
    return tuple((item, item + 1) for item in items)


async def use(model: Typed) -> tuple[Any, ...]:
    one = model.size("a")
    two = await model.size_later("a")
    three = pair(1)
    assert_type(one, int)
    assert_type(two, int | ValueError)
    assert_type(three, tuple[int, int])
    return one, two, three


def misuse(model: Typed) -> None:
    model.size(["a"])  # type: ignore[arg-type]
    pair("a")  # type: ignore[arg-type]
