"""Frames survive the wire, however it cuts them; what is no frame is refused before memory is taken for it."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from frame_tools import Frame, Frames
from hypothesis import given, settings
from hypothesis import strategies as st

from servepipe.channel.errors import FrameTooLargeError, ProtocolError, Reason, VersionError
from servepipe.channel.frames import (
    HEADER,
    MAGIC,
    MAX_SEGMENT_FD,
    MAX_TABLE_WORDS,
    SEGMENT_NAME_BYTES,
    VERSION,
    Kind,
    Segment,
    encode,
    encode_refusal,
    parse_refusal,
)
from servepipe.channel.reader import CAPACITY, DIRECT

SIZES = st.one_of(
    st.integers(0, 100),
    st.sampled_from(
        [0, 1, DIRECT - 1, DIRECT, DIRECT + 1, CAPACITY - HEADER.size, CAPACITY, CAPACITY + 1, 2 * CAPACITY]
    ),
)


@st.composite
def blobs(draw):
    """Bytes of some interesting size, different at each place."""
    size = draw(SIZES)
    seed = draw(st.integers(0, 255))
    return (
        bytes((seed + i) % 251 for i in range(min(size, 251))) * (size // 251 + 1)
        if size > 251
        else bytes([seed]) * size
    )


SEGMENTS = st.builds(
    Segment,
    st.integers(0, MAX_SEGMENT_FD),
    st.integers(0, 1 << 20),
    st.binary(min_size=SEGMENT_NAME_BYTES, max_size=SEGMENT_NAME_BYTES),
    st.booleans(),
)

FRAMES = st.builds(
    Frame,
    st.sampled_from([int(kind) for kind in Kind]),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=60),
    blobs() | SEGMENTS,
    st.lists(blobs() | SEGMENTS, max_size=3).map(tuple),
)


@settings(max_examples=1500)
@given(st.lists(FRAMES, max_size=5), st.lists(st.integers(1, 3 * CAPACITY), max_size=40))
def test_frames_survive_any_split(frames, pieces):
    got = Frames()
    got.feed(b"".join(frame.encode() for frame in frames), pieces)
    assert got.frames == frames


@settings(max_examples=300)
@given(
    st.lists(
        st.builds(Frame, st.just(5), st.integers(0, 9), st.binary(max_size=9), st.binary(max_size=30), st.just(())),
        max_size=4,
    )
)
def test_frames_survive_byte_by_byte(frames):
    got = Frames()
    data = b"".join(frame.encode() for frame in frames)
    got.feed(data, [1] * len(data))
    assert got.frames == frames


@settings(max_examples=2000)
@given(st.binary(max_size=300))
def test_garbage_is_refused_or_waited_for(data):
    got = Frames(max_frame_bytes=4096)
    try:
        got.feed(data)
    except ProtocolError:
        return
    # Without an error it has to begin as frames do.
    assert data[:2] == MAGIC[: len(data)]


@settings(max_examples=2000)
@given(FRAMES, st.integers(0, HEADER.size - 1), st.integers(1, 255), st.lists(st.integers(1, 500), max_size=5))
def test_a_changed_header_never_breaks_the_reader(frame, place, change, pieces):
    data = bytearray(frame.encode()[: 4 * CAPACITY])
    data[place] ^= change
    got = Frames(max_frame_bytes=1 << 20)
    with suppress(ProtocolError):
        got.feed(bytes(data), pieces)
    assert len(got.frames) <= 1 or frame.body or frame.buffers  # more only where the content itself looks like frames


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (struct.pack("<2sBBHHQII", MAGIC, VERSION, 5, 2, 1, 1, 0, 0), "unknown flags"),
        (
            struct.pack("<2sBBHHQII", MAGIC, VERSION, 5, 0, 3, 1, 0, 0) + Segment(1, 1 << 20, bytes(16)).entry,
            "too large",
        ),
        (struct.pack("<2sBBHHQIIQ", MAGIC, VERSION, 5, 0, 1, 1, 0, 0, 1 << 63), "a part of a segment"),
        (struct.pack("<2sBBHHQII", MAGIC, VERSION, 5, 0, 1026, 1, 0, 0) + bytes(8 * 1026), "too many"),
        (struct.pack("<2sBBHHQII", b"XP", VERSION, 5, 0, 0, 1, 0, 0), "does not begin"),
        (struct.pack("<2sBBHHQII", MAGIC, VERSION, 0, 0, 0, 1, 0, 0), "unknown kind 0"),
        (struct.pack("<2sBBHHQII", MAGIC, VERSION, 99, 0, 0, 1, 0, 0), "unknown kind 99"),
        (struct.pack("<2sBBHHQII", MAGIC, VERSION, 5, 1, 0, 1, 0, 0), "unknown flags"),
        (struct.pack("<2sBBHHQII", MAGIC, VERSION, 5, 0, MAX_TABLE_WORDS + 1, 1, 0, 0), "too large"),
        (struct.pack("<2sBBHHQII", MAGIC, VERSION, 5, 0, 0, 1, 2**32 - 1, 0), "too large"),
        (struct.pack("<2sBBHHQII", MAGIC, VERSION, 5, 0, 0, 1, 0, 2**32 - 1), "too large"),
        (struct.pack("<2sBBHHQIIQ", MAGIC, VERSION, 5, 0, 1, 1, 0, 0, 2**62), "too large"),
    ],
)
def test_what_no_frame_is_has_a_reason(header, words):
    with pytest.raises(ProtocolError, match=words):
        Frames(max_frame_bytes=1 << 20).feed(header)


def test_another_version_is_told_apart():
    with pytest.raises(VersionError, match=f"version 1; this side speaks {VERSION}"):
        Frames().feed(struct.pack("<2sBBHHQII", MAGIC, 1, 5, 0, 0, 1, 0, 0))


def test_the_first_wrong_byte_is_enough():
    with pytest.raises(ProtocolError, match="does not begin"):
        Frames().feed(b"G")


def test_large_buffers_are_received_into_their_own_place():
    frame = Frame(6, 1, b"", b"p" * 100, (b"x" * (8 * CAPACITY), b"y" * 10))
    got = Frames()
    got.feed(frame.encode())
    assert got.frames == [frame]
    assert got.largest_buffer > 6 * CAPACITY


def test_a_stopped_reader_delivers_nothing_more():
    got = Frames()

    def stop(*frame):
        got.frames.append(frame)
        got.reader.stopped = True

    got.reader._deliver = stop
    got.feed(Frame(5, 1).encode() * 3)
    assert len(got.frames) == 1


def test_a_frame_beyond_the_limit_is_not_made():
    encode(Kind.RESULT, 1, payload=(b"x" * 76, []), max_bytes=100)
    with pytest.raises(FrameTooLargeError, match="101 bytes, more than the 100 "):
        encode(Kind.RESULT, 1, payload=(b"x" * 77, []), max_bytes=100)
    with pytest.raises(FrameTooLargeError):
        encode(Kind.RESULT, 1, payload=(b"", [b"x" * 69]), max_bytes=100)


@given(st.sampled_from(list(Reason)), st.text())
def test_a_refusal_says_why(reason, text):
    parts, _ = encode_refusal(reason, text)
    got = Frames()
    got.feed(b"".join(parts))
    told, words = parse_refusal(got.frames[0].head)
    assert told is reason
    assert words == text.encode(errors="replace")[:2000].decode(errors="replace")


def test_a_refusal_without_a_reason_is_none():
    with pytest.raises(ProtocolError):
        parse_refusal(b"")


@pytest.mark.parametrize("head", [b"\x00why", b"\xffwhy"])
def test_a_reason_of_a_later_version_is_one_all_the_same(head):
    assert parse_refusal(head) == (Reason.UNAVAILABLE, "why")
