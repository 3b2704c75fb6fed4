"""`batch` and `set_batch` as the author meets them: what they refuse, and what is left of the method without a node."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import pickle
from typing import Any

import batch_types
import pytest

from servepipe import batch, set_batch
from servepipe.errors import GraphError, SignatureError
from servepipe.graph.batching.marks import mark_of, marks_of
from servepipe.graph.instance import NodeInstance


class Model:
    """Outside of any node."""

    @batch(max_size=8)
    def double(self, items: list[int]) -> list[int]:
        """Twice."""
        assert isinstance(items, list)
        return [ValueError(f"bad {item}") if item < 0 else 2 * item for item in items]  # type: ignore[misc]

    @batch(max_size=4, max_wait_ms=1.5)
    async def adouble(self, items: list[int]) -> list[int]:
        return [2 * item for item in items]

    @staticmethod
    @batch(max_size=2)
    def static(items: list[int]) -> list[int]:
        return items

    @classmethod
    @batch(max_size=2)
    def of_class(cls, items: list[int]) -> list[str]:
        return [f"{cls.__name__} {item}" for item in items]

    @batch(max_size=2)
    def short(self, items: list[int]) -> list[int]:
        return []

    def plain(self, item: int) -> int:
        return item


class Child(Model):
    def double(self, items: int) -> int:
        return super().double(items) + 1


def test_without_a_node_a_call_is_a_batch_of_one() -> None:
    model = Model()
    assert model.double(2) == 4
    assert model.double(items=2) == 4  # type: ignore[call-arg]
    assert asyncio.run(model.adouble(2)) == 4
    assert model.static(3) == Model.static(3) == 3
    assert Child().double(1) == 3
    with pytest.raises(ValueError, match="bad -1"):
        model.double(-1)
    with pytest.raises(ValueError, match=r"Model.short got 1 item and returned 0 results"):
        model.short(1)
    with pytest.raises(TypeError, match=r"Model.double\(\) is called with one item: too many"):
        model.double(1, 2)  # type: ignore[call-arg]


def test_it_is_still_the_method_that_was_written() -> None:
    assert Model.double.__doc__ == "Twice."
    assert Model.double.__qualname__ == "Model.double"
    assert list(inspect.signature(Model().double).parameters) == ["items"]
    assert inspect.iscoroutinefunction(Model.adouble)
    assert not inspect.iscoroutinefunction(Model.double)
    assert pickle.loads(pickle.dumps(Model)).double is Model.double
    assert copy.deepcopy(Model()).double(1) == 2


async def test_static_and_class_methods_are_batched_by_their_node() -> None:
    node = NodeInstance("n", Model)
    await node.build((), {})
    assert await asyncio.gather(*(node.call("static", (n,), {}) for n in range(3))) == [0, 1, 2]
    assert await node.call("of_class", (1,), {}) == "Model 1"
    await node.close()


async def test_a_subclass_may_have_it_computed_by_its_base() -> None:
    node = NodeInstance("n", Child)
    await node.build((), {})
    assert await asyncio.gather(*(node.call("double", (n,), {}) for n in range(3))) == [1, 3, 5]
    await node.close()


async def test_a_decorator_above_it_is_not_passed_over() -> None:
    seen = []

    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def call(self: Any, item: int) -> Any:
            seen.append(item)
            return function(self, item)

        return call

    class Logged:
        @logged
        @batch(max_size=8)
        def double(self, items: list[int]) -> list[int]:
            sizes.append(len(items))
            return [2 * item for item in items]

    sizes: list[int] = []
    node = NodeInstance("n", Logged)
    await node.build((), {})
    assert await asyncio.gather(*(node.call("double", (n,), {}) for n in range(3))) == [0, 2, 4]
    assert sorted(seen) == [0, 1, 2]
    assert sum(sizes) == 3
    await node.close()


def test_marks_are_found_where_they_are() -> None:
    assert {mark.name for mark in marks_of(Model)} == {
        f"Model.{name}" for name in ("double", "adouble", "static", "of_class", "short")
    }
    assert mark_of(Model().plain) is None
    assert mark_of(Child().double) is None
    assert mark_of(print) is None
    mark = mark_of(Model().adouble)
    assert mark is not None
    assert (mark.settings.max_size, mark.settings.max_wait_s) == (4, 0.0015)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"max_size": 0}, "max_size of a batch: expected a whole number, 1 or more, not 0"),
        ({"max_size": True}, "not True"),
        ({"max_size": 2.0}, "not 2.0"),
        ({"max_size": 2, "max_wait_ms": -1}, "max_wait_ms of a batch: expected milliseconds, 0 or more, not -1"),
        ({"max_size": 2, "max_wait_ms": float("nan")}, "not nan"),
        ({"max_size": 2, "max_wait_ms": float("inf")}, "not inf"),
        ({"max_size": 2, "max_wait_ms": "5"}, "not '5'"),
    ],
)
def test_sizes_are_checked(sizes: Any, says: str) -> None:
    with pytest.raises(GraphError, match=says):
        batch(**sizes)
    with pytest.raises(GraphError, match=says):
        set_batch(Model().double, **sizes)


def two(self: Any, items: Any, more: Any) -> Any: ...
def default(self: Any, items: Any = ()) -> Any: ...
def keyword(self: Any, *, items: Any) -> Any: ...
def star(*items: Any) -> Any: ...
def none() -> Any: ...
def generator(self: Any, items: Any) -> Any:
    yield from items


async def agenerator(self: Any, items: Any) -> Any:
    yield items


@pytest.mark.parametrize("function", [two, default, keyword, star, none])
def test_a_method_takes_one_list(function: Any) -> None:
    with pytest.raises(SignatureError, match=r"takes \(.*\), not one list, and cannot be batched") as caught:
        batch(max_size=2)(function)
    assert caught.value.where == f"{__file__}:{function.__code__.co_firstlineno}"
    assert ".bind([a, b])" in caught.value.fix


@pytest.mark.parametrize("function", [generator, agenerator])
def test_a_generator_cannot_be_batched(function: Any) -> None:
    with pytest.raises(SignatureError, match=f"{function.__name__} is a generator, and cannot be batched"):
        batch(max_size=2)(function)


@pytest.mark.parametrize("thing", [Model, staticmethod(two), len, functools.partial(two, 1)])
def test_only_what_def_makes_can_be_batched(thing: Any) -> None:
    with pytest.raises(SignatureError, match="batch decorates methods and functions") as caught:
        batch(max_size=2)(thing)
    assert "directly above `def`" in caught.value.fix


def test_batch_needs_its_size() -> None:
    with pytest.raises(TypeError):
        batch(two)  # type: ignore[call-arg,arg-type]
    with pytest.raises(GraphError, match="batch has no sizes"):
        batch(max_size=two)  # type: ignore[arg-type]


def test_set_batch_takes_a_batched_method_of_an_instance() -> None:
    for method in (Model().plain, Model.double, Model.static, len):
        with pytest.raises(SignatureError, match="is no batched method of an instance"):
            set_batch(method, max_size=3)
    set_batch(Model().double, max_size=3)  # nobody batches it


def test_what_type_checkers_are_told_is_true() -> None:
    assert asyncio.run(batch_types.use(batch_types.Typed())) == (1, 1, (1, 2))
