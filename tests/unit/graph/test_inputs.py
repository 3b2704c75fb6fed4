"""What each way of reading the input means, for each way of giving it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from servepipe.errors import BadRequestError
from servepipe.graph.inputs import InputData, describe_arguments, read_input, written
from servepipe.graph.ir import Attr, Path

POINT = SimpleNamespace(x=1, y=[10, 20], items="its own")
MAPPING = {"x": 1, "y": [10, 20], "items": "a key"}


@pytest.mark.parametrize(
    ("args", "kwargs", "path", "value"),
    [
        # One positional argument is the input.
        ((7,), {}, (), 7),
        (([5, 6],), {}, (1,), 6),
        (([5, 6],), {}, (-1,), 6),
        ((MAPPING,), {}, ("x",), 1),
        ((MAPPING,), {}, (Attr("x"),), 1),
        ((MAPPING,), {}, (Attr("items"),), "a key"),
        ((POINT,), {}, (Attr("items"),), "its own"),
        ((POINT,), {}, (Attr("y"), 0), 10),
        ((MAPPING,), {}, ("y", 1), 20),
        (([MAPPING],), {}, (0, Attr("y"), 0), 10),
        ((None,), {}, (), None),
        # Several, or keywords: positional by number, keywords by name.
        ((5, 6), {}, (0,), 5),
        ((5, 6), {}, (), InputData((5, 6), {})),
        ((), {}, (), InputData((), {})),
        ((), {"x": 5}, ("x",), 5),
        ((), {"x": 5}, (Attr("x"),), 5),
        ((5,), {"x": MAPPING}, ("x", Attr("y"), 1), 20),
        ((5,), {"x": MAPPING}, (0,), 5),
        ((5,), {"x": 1}, (), InputData((5,), {"x": 1})),
    ],
)
def test_reading_the_input(args: Any, kwargs: Mapping[str, Any], path: Path, value: Any) -> None:
    assert read_input(path, args, kwargs) == value


@pytest.mark.parametrize(
    ("args", "kwargs", "path", "message"),
    [
        ((1,), {}, (0,), "the graph reads input[0], but the request gave a single int"),
        (([1],), {}, (1,), "the graph reads input[1], but the request gave a single list of 1"),
        (({"a": 1},), {}, (Attr("k"),), "the graph reads input.k, but the request gave a single dict with 'a'"),
        (({},), {}, ("k", 0), "the graph reads input['k'][0], but the request gave a single dict with no keys"),
        ((), {}, (0,), "the graph reads input[0], but the request gave no arguments"),
        ((1, 2), {}, ("k",), "the graph reads input['k'], but the request gave 2 positional arguments"),
        (
            (1,),
            {"a": 1},
            (1,),
            "the graph reads input[1], but the request gave 1 positional argument and the keyword a",
        ),
        ((), {"a": 1, "b": 2}, (0,), "the graph reads input[0], but the request gave the keywords a, b"),
        ((POINT,), {}, (Attr("z"),), "the graph reads input.z, but the request gave a single SimpleNamespace"),
    ],
)
def test_what_is_missing_is_named(args: Any, kwargs: Mapping[str, Any], path: Path, message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        read_input(path, args, kwargs)
    assert caught.value.what == message
    assert caught.value.status == 422


def test_a_value_that_raises_when_it_is_indexed_is_the_callers() -> None:
    class Odd:
        def __getitem__(self, key: Any) -> Any:
            raise ZeroDivisionError

    with pytest.raises(BadRequestError, match="a single Odd"):
        read_input((0,), (Odd(),), {})


def test_input_data() -> None:
    data = InputData((1, [2]), {"k": 3})

    assert (data[0], data[1], data["k"], data.k) == (1, [2], 3, 3)
    assert repr(data) == "InputData(1, [2], k=3)"
    assert pickle.loads(pickle.dumps(data)) == data
    assert data != InputData((1,), {}) and data != 5
    for missing in (lambda: data[2], lambda: data["x"], lambda: data.x, lambda: data._x, lambda: hash(data)):
        with pytest.raises((LookupError, AttributeError, TypeError)):
            missing()


def test_paths_are_written_as_in_python() -> None:
    assert written((0, "k", Attr("name"))) == "input[0]['k'].name"
    assert written(()) == "input"
    assert describe_arguments(((1, 2),), {}) == "a single tuple of 2"
