"""Shared memory: lent, mapped, given back, used again; and nothing left behind."""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servepipe.channel import segments
from servepipe.channel.borrowing import borrow
from servepipe.channel.frames import MAX_SEGMENT_BYTES, MAX_SEGMENT_FD, SEGMENT_NAME_BYTES, Segment, parse_table
from servepipe.channel.segments import Lender

NAMES = st.binary(min_size=SEGMENT_NAME_BYTES, max_size=SEGMENT_NAME_BYTES)


@pytest.fixture
def lender():
    one = Lender()
    yield one
    one.close()


def open_files():
    return len([*Path("/proc/self/fd").iterdir()])


def mapped(segment, released=lambda fd, reusable: None):
    return borrow(os.getpid(), segment, released)


@given(
    st.lists(
        st.integers(0, 2**63 - 1)
        | st.builds(Segment, st.integers(0, MAX_SEGMENT_FD), st.integers(0, MAX_SEGMENT_BYTES), NAMES, st.booleans()),
        max_size=5,
    )
)
def test_a_table_is_read_as_it_was_written(buffers):
    table = b"".join(part.entry if isinstance(part, Segment) else part.to_bytes(8, "little") for part in buffers)
    assert parse_table(table) == buffers


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(100_000), np.arange(12.0).reshape(3, 4), np.array(3)])
def test_data_arrives(lender, data):
    view = memoryview(data)
    if not view.nbytes:
        return
    segment = lender.lend(view)
    assert bytes(mapped(segment)) == view.tobytes()


def test_a_mapping_is_given_back_when_its_last_reference_is_gone(lender):
    released = []
    segment = lender.lend(memoryview(bytes(5000)))
    array = np.frombuffer(mapped(segment, lambda *told: released.append(told)), "u1")
    part = array[10:20]
    del array
    gc.collect()
    assert released == []
    part[:] = 7  # it is the receiver's own
    del part
    gc.collect()
    assert released == [(segment.fd, True)]


def test_memory_is_used_again(lender):
    first = lender.lend(memoryview(b"a" * 5000))
    lender.take_back(first.fd)
    assert lender.kept_bytes == 5000
    second = lender.lend(memoryview(b"b" * 4000))
    assert second == Segment(first.fd, 4000, first.name)
    assert bytes(mapped(second)) == b"b" * 4000
    assert lender.kept_bytes == 0


def test_memory_that_is_far_too_large_is_not(lender):
    first = lender.lend(memoryview(b"a" * 5000))
    lender.take_back(first.fd)
    assert lender.lend(memoryview(b"b" * 1000)).fd != first.fd


def test_data_is_written_whole(lender, monkeypatch):
    """Linux writes at most 2 GiB at a time."""
    write = os.pwrite
    monkeypatch.setattr(segments.os, "pwrite", lambda fd, data, place: write(fd, data[:1000], place))
    data = os.urandom(5500)
    assert bytes(mapped(lender.lend(memoryview(data)))) == data


def test_what_was_never_lent_cannot_be_given_back(lender):
    with pytest.raises(KeyError):
        lender.take_back(0)


def test_only_so_much_is_lent(lender, monkeypatch):
    monkeypatch.setattr(segments, "MAX_LENT", 3)
    lent = [lender.lend(memoryview(bytes(100))) for _ in range(4)]
    assert lent[3] is None
    lender.take_back(lent[0].fd)
    monkeypatch.setattr(segments, "MAX_LENT_BYTES", 250)
    assert lender.lend(memoryview(bytes(100))) is None
    assert lender.lend(memoryview(bytes(50))) is not None


def test_only_so_much_is_kept(lender, monkeypatch):
    monkeypatch.setattr(segments, "KEPT_BYTES", 250)
    files = open_files()
    lent = [lender.lend(memoryview(bytes(100))) for _ in range(3)]
    for segment in lent:
        lender.take_back(segment.fd)
    assert lender.kept_bytes == 200
    assert open_files() == files + 2
    lender.drop_kept()
    assert open_files() == files


def test_closing_leaves_mappings_alone(lender):
    files = open_files()
    mapping = mapped(lender.lend(memoryview(b"x" * 5000)))
    lender.lend(memoryview(b"y" * 5000))
    lender.close()
    assert bytes(mapping) == b"x" * 5000
    mapping.close()
    assert open_files() == files


def test_no_memory_means_another_way(lender, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    files = open_files()
    monkeypatch.setattr(segments.os, "pwrite", full)
    assert lender.lend(memoryview(bytes(100))) is None
    monkeypatch.setattr(segments.os, "memfd_create", full)
    assert lender.lend(memoryview(bytes(100))) is None
    assert open_files() == files


def test_what_is_no_segment_cannot_be_mapped(lender):
    segment = lender.lend(memoryview(bytes(100)))
    with pytest.raises(ValueError, match="size"):
        mapped(Segment(segment.fd, 5000, segment.name))
    with pytest.raises(OSError, match="No such file"):
        mapped(Segment(99_999, 100, segment.name))
    with pytest.raises(ValueError, match="no size"):
        mapped(Segment(segment.fd, 0, segment.name))
    other = Lender()
    theirs = other.lend(memoryview(bytes(100)))
    with pytest.raises(OSError, match="not the one that was lent"):
        mapped(Segment(theirs.fd, 100, segment.name))
    other.close()
    with Path(__file__).open("rb+") as file, pytest.raises(OSError, match="not the one that was lent"):
        mapped(Segment(file.fileno(), 100, segment.name))


def test_between_processes(lender):
    data = os.urandom(3_000_000)
    segment = lender.lend(memoryview(data))
    program = f"""
import hashlib
from servepipe.channel.borrowing import borrow
from servepipe.channel.frames import Segment
mapping = borrow({os.getpid()}, Segment({segment.fd}, {segment.size}, {segment.name}), print)
print(hashlib.sha256(mapping).hexdigest(), flush=True)
mapping[:5] = b"hello"
assert mapping[:5] == b"hello"
del mapping
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert told == [hashlib.sha256(data).hexdigest(), str(segment.fd), "True"]
    assert bytes(mapped(segment)) == b"hello" + data[5:]  # it was lent to nobody else
