"""Values as a pickle with buffers beside it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servepipe.channel.errors import RemoteCallError
from servepipe.channel.frames import MAX_BUFFERS
from servepipe.channel.values import IN_BAND_BYTES, dump, dump_exception, load, load_exception

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=20,
)


def carried(payload):
    """What arrives: every buffer in memory of its own."""
    body, buffers = payload
    return load(memoryview(body), [bytearray(buffer) for buffer in buffers])


@settings(max_examples=1000)
@given(PLAIN)
def test_values_arrive_as_they_were(value):
    assert carried(dump(value)) == value


@settings(max_examples=200)
@given(
    st.sampled_from(["f4", "i8", "u1", "?", "c16", "S3"]),
    st.lists(st.integers(0, 60), min_size=0, max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_arrays_arrive_as_they_were(dtype, shape, writeable, fortran):
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype, order="F" if fortran else "C")
    array.flags.writeable = writeable
    got = carried(dump({"deep": [array]}))["deep"][0]
    assert got.dtype == array.dtype
    assert got.flags.writeable == writeable
    np.testing.assert_array_equal(got, array)


def test_large_buffers_lie_beside_the_pickle_and_small_ones_in_it():
    large, small = np.ones(IN_BAND_BYTES, "u1"), np.ones(IN_BAND_BYTES - 1, "u1")
    body, buffers = dump((large, small))
    assert [len(buffer) for buffer in buffers] == [IN_BAND_BYTES]
    assert len(body) < IN_BAND_BYTES + 500


def test_a_value_is_fixed_when_it_is_dumped():
    array = np.zeros(IN_BAND_BYTES, "u1")
    payload = dump(array)
    array[:] = 7
    assert carried(payload).max() == 0


def test_read_only_buffers_are_not_copied():
    data = bytes(IN_BAND_BYTES)
    _, buffers = dump(np.frombuffer(data, "u1"))
    assert isinstance(buffers[0], memoryview)
    assert buffers[0].obj is not None
    assert np.shares_memory(np.frombuffer(buffers[0], "u1"), np.frombuffer(data, "u1"))


def test_more_buffers_than_a_frame_may_have():
    arrays = [np.full(IN_BAND_BYTES, i % 200, "u1") for i in range(MAX_BUFFERS + 3)]
    payload = dump(arrays)
    assert len(payload[1]) == MAX_BUFFERS
    assert [int(array[0]) for array in carried(payload)] == [i % 200 for i in range(MAX_BUFFERS + 3)]


def test_strided_arrays():
    array = np.arange(4 * IN_BAND_BYTES)[::2]
    np.testing.assert_array_equal(carried(dump(array)), array)


class NeedsTwoError(Exception):
    def __init__(self, one, two):
        super().__init__(one)


class NoTextError(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    def __reduce__(self):
        raise SystemExit(3)


class FineError(Exception):
    def __init__(self, detail):
        super().__init__(detail)
        self.detail = detail


@pytest.mark.parametrize("error", [ValueError("no", 3), KeyError("k"), FineError({"a": 1})])
def test_exceptions_arrive_as_themselves(error):
    got = load_exception(*dump_exception(error))
    assert type(got) is type(error)
    assert got.args == error.args


@pytest.mark.parametrize(
    ("error", "name", "message"),
    [
        (NeedsTwoError("a", "b"), f"{__name__}.NeedsTwoError", "a"),
        (NoTextError(), f"{__name__}.NoTextError", "<no text: RuntimeError>"),
        (SystemExit(4), "SystemExit", "4"),
        (KeyboardInterrupt(), "KeyboardInterrupt", ""),
        (FineError(lambda: 0), f"{__name__}.FineError", None),
        (FineError(bytes(20 << 20)), f"{__name__}.FineError", None),
    ],
)
def test_exceptions_that_cannot_travel_are_described(error, name, message):
    body, buffers = dump_exception(error)
    assert len(body) < 1 << 20
    got = load_exception(body, buffers)
    assert isinstance(got, RemoteCallError)
    assert got.type_name == name
    if message is not None:
        assert got.message == message


@pytest.mark.parametrize(
    "body", [b"", b"garbage", pickle.dumps(3), pickle.dumps(StopIteration(1)), pickle.dumps(SystemExit(1))]
)
def test_whatever_comes_as_an_exception_can_be_raised(body):
    assert isinstance(load_exception(body), RemoteCallError)
