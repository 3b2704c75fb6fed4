"""Heads of calls: names that repeat go over the wire once, and both sides stay in step whatever comes."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servepipe.channel.errors import ProtocolError
from servepipe.channel.metadata import SLOTS, ReceivedHeads, SentHeads


@dataclass
class Context:
    request_id: str = "r"
    deadline: float | None = None
    pins: dict[str, str] = field(default_factory=dict)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
CONTEXTS = st.builds(
    Context,
    st.text(st.characters(codec="utf-8")),
    st.none() | st.floats(allow_nan=False),
    st.dictionaries(NAMES, st.text(max_size=8), max_size=3),
)


@settings(max_examples=1000)
@given(st.lists(st.tuples(st.none() | NAMES, CONTEXTS), max_size=30))
def test_heads_arrive_as_they_were(calls):
    sent, received = SentHeads(), ReceivedHeads()
    for method, context in calls:
        assert received.decode(sent.encode(method, context)) == (
            method,
            context.request_id,
            context.deadline,
            context.pins,
        )


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3 * SLOTS), min_size=SLOTS, max_size=4 * SLOTS), st.booleans())
def test_slots_are_used_again(numbers, same_objects):
    sent, received = SentHeads(), ReceivedHeads()
    kept = {number: {"node": str(number)} for number in numbers}
    for number in numbers:
        pins = kept[number] if same_objects else {"node": str(number)}
        head = sent.encode(f"method-{number}", Context(pins=pins))
        assert received.decode(head) == (f"method-{number}", "r", None, {"node": str(number)})


def test_a_call_like_the_one_before_is_short():
    sent = SentHeads()
    context = Context(pins={f"node-{i}": "6f3a91c2" for i in range(100)})
    first, second = sent.encode("forward", context), sent.encode("forward", context)
    assert len(first) > 1500
    assert len(second) < 40
    equal = sent.encode("forward", Context(pins=dict(context.pins)))
    assert equal == second


def test_equal_pins_share_one_mapping():
    sent, received = SentHeads(), ReceivedHeads()
    one, other = (received.decode(sent.encode("f", Context(pins={"a": "1"})))[3] for _ in range(2))
    assert one is other


def test_pins_of_ever_new_identity_do_not_pile_up():
    sent = SentHeads()
    for i in range(50 * SLOTS):
        sent.encode("f", Context(pins={"a": str(i % 3)}))
    assert len(sent._same) <= 4 * SLOTS
    assert len(sent._pins) == 4


@pytest.mark.parametrize(("method", "request_id"), [("", "r"), ("m" * 70_000, "r"), ("f", "r" * 70_000)])
def test_names_that_do_not_fit_change_nothing(method, request_id):
    sent, received = SentHeads(), ReceivedHeads()
    with pytest.raises(ValueError, match="name"):
        sent.encode(method, Context(request_id, pins={"a": "b"}))
    assert received.decode(sent.encode("g", Context(pins={"a": "b"}))) == ("g", "r", None, {"a": "b"})


@settings(max_examples=2000)
@given(st.binary(max_size=80))
def test_garbage_is_refused(head):
    try:
        ReceivedHeads().decode(head)
    except ProtocolError:
        return
    assert len(head) >= 20  # chance made a head of it


@settings(max_examples=1000)
@given(st.integers(0, 200), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_read_as_another_head(place, change):
    head = bytearray(SentHeads().encode("forward", Context("request", 12.5, {"m1": "6f3a91c2"})))
    head[place % len(head)] ^= change
    try:
        method, request_id, _, pins = ReceivedHeads().decode(head)
    except ProtocolError:
        return
    assert isinstance(request_id, str)
    assert method is None or isinstance(method, str)
    assert all(isinstance(part, str) for part in itertools.chain(*pins.items()))


def _head(method, pins, id_size, method_size, pins_size, rest=b""):
    return struct.pack("<HHHHId", method, pins, id_size, method_size, pins_size, 0.0) + rest


@pytest.mark.parametrize(
    "head",
    [
        _head(1, 0, 0, 0, 0),  # a method that was never defined
        _head(0, 1, 0, 0, 0),  # pins that were never defined
        _head(0, 0, 0, 1, 0, b"f"),  # slot 0 is None
        _head(0, 0, 0, 0, 2, b"{}"),
        _head(SLOTS, 0, 0, 1, 0, b"f"),
        _head(0, SLOTS, 0, 0, 2, b"{}"),
        _head(0, 1, 0, 0, 2, b"[]"),
        _head(0, 1, 0, 0, 7, b'{"a":1}'),
        _head(0, 1, 0, 0, 200_000, b"[" * 200_000),
        _head(0, 0, 5, 0, 0, b"r"),
        _head(0, 0, 0, 0, 0, b"more"),
        _head(0, 0, 1, 0, 0, b"\xff"),
    ],
)
def test_heads_that_say_nothing(head):
    with pytest.raises(ProtocolError):
        ReceivedHeads().decode(head)
