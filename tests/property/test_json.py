"""The fast way to read and write JSON means what Python's own means, for random and for adversarial values."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import uuid
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import numpy
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from random_values import VALUES, exactly

from servepipe.runtime import answers, json_bytes

EXAMPLES = 3000

TOKENS = [
    *("[", "]", "{", "}", ",", ":", " ", "\t", "\n", "\r", "\x0b", "\x00", '"', "\\", "/", "'", "#", "/**/"),
    *("0", "-0", "-", "+", "1", "01", "1.", ".5", "1.5", "-0.0", "1e5", "1E+5", "1e", "1_0", "0x1"),
    *("1e400", "-1e400", "5e-324", "2.2250738585072011e-308", "179769313486231580793e289"),
    *("9007199254740993", "18446744073709551615", "18446744073709551616", "-9223372036854775809", "9" * 30, "9" * 5000),
    *("0.1000000000000000055511151231257827", "123456789012345678.5"),
    *("null", "true", "false", "NaN", "Infinity", "-Infinity", "nan", "None", "True", "nul"),
    *('"a"', '"é"', '"\\u00e9"', '"\\ud83d\\ude00"', '"\\ud800"', '"\\udc00"', '"\\ud800\\ud800"', '"\x01"', '"\x7f"'),
    *('"\\x"', '"\\u0000"', '"\\/"', '"\\u12"', "\ufeff", "\u00a0"),
    *('{"a":1,"a":2}', '{"":0}', "{1:1}", "[1,]", "[,]", '{"a":1,}'),
]
BYTES = [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe9", b"\xef\xbb\xbf", b"\x80", b"\xff\xfe"]


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """JSON, JSON that somebody has damaged, and heaps of what JSON is made of; sometimes in UTF-16 or UTF-32."""
    text = draw(
        VALUES.map(lambda value: json.dumps(value))
        | VALUES.map(lambda value: json.dumps(value, ensure_ascii=False, indent=1))
        | st.lists(st.sampled_from(TOKENS), max_size=8).map("".join)
        | st.lists(st.sampled_from(TOKENS), max_size=8).map(lambda tokens: f"[{','.join(tokens)}]")
    )
    body = text.encode(draw(st.sampled_from(["utf-8"] * 9 + ["utf-16", "utf-16-le", "utf-32-be", "utf-8-sig"])))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(body)))
        put = draw(st.sampled_from(BYTES) | st.sampled_from(TOKENS).map(str.encode) | st.binary(max_size=2))
        body = body[:at] + put + body[at + draw(st.integers(0, 2)) :]
    return body


def outcome(function: Callable[[Any], Any], argument: Any) -> str:
    try:
        return exactly(function(argument))
    except RecursionError:
        return "RecursionError"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def parse_by_json(body: bytes) -> Any:
    return json.loads(body, parse_constant=refuse)


@settings(max_examples=EXAMPLES, deadline=None)
@given(bodies())
def test_reading_is_the_same(body: bytes) -> None:
    assert outcome(json_bytes.parse, body) == outcome(parse_by_json, body)


@pytest.mark.parametrize(
    "token", [*TOKENS, *BYTES, b"", b" ", b"[" * 200_000, b"[" * 500 + b"]" * 500], ids=lambda t: repr(t[:30])
)
@pytest.mark.parametrize("around", [b"%s", b"[%s]", b'{"k":%s}', b'"%s"', b'{"%s":0}', b"[1,%s"])
def test_reading_each_oddity_is_the_same(token: str | bytes, around: bytes) -> None:
    body = around % (token.encode() if isinstance(token, str) else token)
    assert outcome(json_bytes.parse, body) == outcome(parse_by_json, body)


class Color(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    WORD = "word"


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


Pair = namedtuple("Pair", "one two")


@dataclasses.dataclass
class Point:
    x: Any
    _hidden: int = 1


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any


class Model(pydantic.BaseModel):
    value: Any
    renamed: int = pydantic.Field(1, alias="other-name")


class Broken:
    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


NAN = float("nan")
ODD = [
    *(NAN, float("inf"), -float("inf"), "null", {"null": 1.5}, "\ud800", "é", "\x00\x7f\u2028\ufeff"),
    *(10**5000, 2**64, -(2**64), 1e16, 1e-7, 5e-324, -0.0, 1.0, 123456789.125, [None, 0.5], [None, "x"]),
    *([], {}, (), "", [[[]]], {"a": {"b": [{"c": ()}]}}),
    *(Color.RED, Number.ONE, Word.WORD, Text("t"), Text("\ud800"), Whole(7), Real(0.5), Real("nan"), Pair(1, "2")),
    *({1: 2}, {1.5: 1, 1e16: 2}, {None: 1}, {True: 1}, {(1,): 2}, {"a": 1, 1: 2}, {Word.WORD: 1}, {Text("k"): 1}),
    *({"\udc00": 1}, OrderedDict(a=1), {1, 2}, frozenset(), b"raw", bytearray(b"x"), memoryview(b"x"), range(3)),
    *(iter([1]), object(), int, Broken(), uuid.UUID(int=1), decimal.Decimal("1.5")),
    *(datetime.datetime(2026, 1, 2), datetime.date(2026, 1, 2), datetime.timedelta(1)),
    *(Point(1), Point(NAN), Point({2}), Slotted([1])),
    *(Model.model_validate({"value": value, "other-name": 3}) for value in (2.5, NAN, {1})),
    *(numpy.float32(0.5), numpy.float64(0.1), numpy.float64("nan"), numpy.int64(3), numpy.bool_(True)),
    *(numpy.arange(4).reshape(2, 2), numpy.array([numpy.inf])),
]
ODDITIES = st.integers(0, len(ODD) - 1).map(lambda at: ODD[at])  # not sampled_from: one of them has no repr
ANSWERS = st.recursive(
    VALUES | ODDITIES | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | inner.map(Point)
    ),
    max_leaves=8,
)


def read_back(encode: Callable[[Any], bytes]) -> Callable[[Any], Any]:
    return lambda value: json.loads(encode(value))


@settings(max_examples=EXAMPLES, deadline=None)
@given(ANSWERS)
@example([1.5, {"a": None}])
def test_writing_is_the_same(value: Any) -> None:
    assert outcome(read_back(answers.encode_json), value) == outcome(read_back(answers._encode_by_json), value)


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "around", [lambda v: v, lambda v: [v], lambda v: {"k": (v, None)}, lambda v: [1, [v], {"x": {"y": v}}]]
)
def test_writing_each_oddity_is_the_same(value: Any, around: Callable[[Any], Any]) -> None:
    odd = around(value)
    assert outcome(read_back(answers.encode_json), odd) == outcome(read_back(answers._encode_by_json), odd)


def test_what_is_nested_too_deeply_or_contains_itself_is_refused_the_same() -> None:
    circle: list[Any] = [{}]
    circle[0]["again"] = [circle]
    deep: Any = []
    for _ in range(200_000):
        deep = [deep]
    fine: Any = []
    for _ in range(200):
        fine = [fine, {"a": 1.5}]
    for value in (circle, deep, fine):
        assert outcome(read_back(answers.encode_json), value) == outcome(read_back(answers._encode_by_json), value)


def test_the_fast_way_is_taken_wherever_it_may_be() -> None:
    """Else all of the above would hold for no reason."""
    for value in (1, "é", None, [1.5, "null", True], {"a": {"b": [None, 1.5, {"c": ()}]}}, 2**64 - 1, [1e300] * 100):
        assert json_bytes.write(value) is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_bytes.json, "loads", None)
        assert json_bytes.parse(b'{"a": [1, 2.5, "\xc3\xa9", null, 18446744073709551616]}') == {
            "a": [1, 2.5, "é", None, 2**64]
        }
