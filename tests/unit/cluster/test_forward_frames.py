"""What a kubelet sends when a port is forwarded."""

from __future__ import annotations

import pytest

from servepipe_operator.cluster.forward_frames import Frames, to_pod

PORT = 8265
FIRST = PORT.to_bytes(2, "little")


def begun() -> Frames:
    frames = Frames(PORT)
    assert frames.take(b"\0" + FIRST) == frames.take(b"\1" + FIRST) == b""
    return frames


def test_bytes_go_through_in_both_directions() -> None:
    frames = begun()
    assert [frames.take(b"\0HTTP"), frames.take(b"\0"), frames.take(b"\0" + FIRST)] == [b"HTTP", b"", FIRST]
    assert frames.error == ""
    assert to_pod(b"GET") == b"\0GET"


def test_an_error_comes_in_pieces() -> None:
    frames = begun()
    assert frames.take(b"\1connection ") == frames.take(b"\1refused \xff") == b""
    assert frames.error == "connection refused \ufffd"


def test_one_channel_may_begin_after_the_other_has_carried_something() -> None:
    frames = Frames(PORT)
    frames.take(b"\0" + FIRST)
    assert frames.take(b"\0HTTP") == b"HTTP"
    assert frames.take(b"\1" + FIRST) == b""
    assert frames.error == ""


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"", "no channel"),
        (b"\2" + FIRST, "no channel"),
        (b"\0" + PORT.to_bytes(2, "big"), "channel 0 begins with"),
        (b"\0HTTP/1.1", "channel 0 begins with"),
        (b"\1refused", "channel 1 begins with"),
    ],
)
def test_what_is_not_this_protocol(frame: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Frames(PORT).take(frame)
