"""What was borrowed is known again, passed on while nobody has written to it, and given back in the end."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servepipe.channel import borrowing, segments
from servepipe.channel.borrowing import AS_LENT, Kept, borrow, borrowed
from servepipe.channel.segments import Lender

PAGE = mmap.PAGESIZE
SIZE = 20 * PAGE + 5


def pattern(seed, size=SIZE):
    return (np.arange(size) % 251 + seed).astype("u1")


@contextlib.contextmanager
def lenders(count):
    all_of_them = [Lender() for _ in range(count)]
    try:
        yield all_of_them
    finally:
        for one in all_of_them:
            one.close()


ANYBODY = Kept()


def lent_by(lender, array, released=None, kept=ANYBODY):
    """What a process gets that ``lender`` lends ``array`` to; it gives it back."""
    segment = lender.lend(memoryview(array))

    def back(fd, reusable):
        if released is not None:
            released.append(reusable)
        if fd in lender._lent:  # else the connection has ended
            lender.take_back(fd, reusable)

    return np.frombuffer(borrow(os.getpid(), segment, back, kept), "u1")


def passed_on(lender):
    """Whether what ``lender`` lent last is memory of somebody else."""
    return not hasattr([*lender._lent.values()][-1], "name")


def open_files():
    return len([*Path("/proc/self/fd").iterdir()])


def test_what_was_borrowed_is_passed_on():
    with lenders(2) as (first, second):
        array = lent_by(first, pattern(1))
        further = lent_by(second, array)
        assert passed_on(second)
        np.testing.assert_array_equal(further, pattern(1))


@pytest.mark.parametrize("read", [slice(0, 0), slice(0, 1), slice(None)], ids=["nothing", "a byte", "all"])
def test_reading_is_no_writing(read):
    with lenders(2) as (first, second):
        array = lent_by(first, pattern(1))
        array[read].sum()
        further = lent_by(second, array)
        assert passed_on(second)
        np.testing.assert_array_equal(further, pattern(1))


@pytest.mark.parametrize("place", [0, 1, PAGE - 1, PAGE, 7 * PAGE, 20 * PAGE - 1, 20 * PAGE, SIZE - 1])
def test_what_was_written_to_is_copied(place):
    with lenders(2) as (first, second):
        array = lent_by(first, pattern(1))
        array[place] ^= 255
        further = lent_by(second, array)
        assert not passed_on(second)
        np.testing.assert_array_equal(further, array)


def test_who_writes_to_it_changes_it_for_nobody_else():
    with lenders(3) as (first, second, third):
        array = lent_by(first, pattern(1))
        a, b = lent_by(second, array), lent_by(third, array)
        assert passed_on(second)
        assert passed_on(third)
        a[:] = 1
        array[:] = 2
        np.testing.assert_array_equal(b, pattern(1))
        assert set(a) == {1}


@pytest.mark.parametrize(
    "change", [lambda array: array[:-1], lambda array: array[1:], lambda array: array[::-1].copy(), np.copy]
)
def test_what_is_not_the_whole_of_it_is_copied(change):
    with lenders(2) as (first, second):
        array = lent_by(first, pattern(1))
        further = lent_by(second, change(array))
        assert not passed_on(second)
        np.testing.assert_array_equal(further, change(array))


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array.view("i1"),
        lambda array: array.reshape(5, -1),
        lambda array: array.reshape(5, -1).T.T,
        lambda array: np.frombuffer(bytes(0) or array, "u1"),
    ],
)
def test_another_view_of_the_whole_is_passed_on(change):
    with lenders(2) as (first, second):
        array = lent_by(first, pattern(1))
        further = lent_by(second, change(array))
        assert passed_on(second)
        np.testing.assert_array_equal(further, pattern(1))


def test_what_is_read_only_is_passed_on():
    with lenders(2) as (first, second):
        array = lent_by(first, pattern(1))
        array.flags.writeable = False
        further = lent_by(second, array)
        assert passed_on(second)
        np.testing.assert_array_equal(further, pattern(1))


def test_it_is_given_back_when_all_have_done_with_it():
    released = []
    with lenders(3) as (first, second, third):
        array = lent_by(first, pattern(1), released)
        further = [lent_by(second, array), lent_by(third, array)]
        further.append(lent_by(first, further[0]))  # back to where it came from
        del array
        while further:
            gc.collect()
            assert released == []
            further.pop()
        gc.collect()
        assert released == [True]
        assert first.kept_bytes == SIZE
        assert second.kept_bytes == 0  # nothing of it is theirs


def test_memory_that_somebody_may_still_have_is_never_used_again():
    released = []
    with lenders(2) as (first, second):
        array = lent_by(first, pattern(1), released)
        further = lent_by(second, array)
        second.close()  # the connection ends, what was passed on by it is still there
        del array
        gc.collect()
        assert released == [False]
        assert first.lent == first.kept_bytes == 0
        others = [first.lend(memoryview(pattern(seed))) for seed in range(2, 6)]
        np.testing.assert_array_equal(further, pattern(1))
        assert len(others) == 4


def test_that_is_so_whoever_gives_it_back_after_that():
    released = []
    with lenders(3) as (first, second, third):
        array = lent_by(first, pattern(1), released)
        kept = [lent_by(second, array), lent_by(third, array)]
        second.close()
        kept.pop()
        del array
        gc.collect()
        assert released == [False]
        np.testing.assert_array_equal(kept[0], pattern(1))


def test_that_also_holds_further_down():
    released = []
    with lenders(3) as (first, second, third):
        array = lent_by(first, pattern(1), released)
        further = lent_by(second, array)
        furthest = lent_by(third, further)
        third.close()
        del further, array
        gc.collect()
        assert released == [False]
        first.lend(memoryview(pattern(2)))
        np.testing.assert_array_equal(furthest, pattern(1))


def test_when_its_lender_has_ended_it_is_copied():
    with lenders(2) as (first, second):
        array = lent_by(first, pattern(1))
        first.close()
        further = lent_by(second, array)
        assert not passed_on(second)
        np.testing.assert_array_equal(further, pattern(1))


def test_where_the_kernel_does_not_tell_it_is_copied(monkeypatch):
    with lenders(2) as (first, second):
        array = lent_by(first, pattern(1))

        def refuse(*args):
            raise PermissionError("pagemap")

        monkeypatch.setattr(borrowing.os, "pread", refuse)
        further = lent_by(second, array)
        assert not passed_on(second)
        np.testing.assert_array_equal(further, pattern(1))
        monkeypatch.setattr(borrowing.os, "pread", lambda *args: b"\0" * 8)
        further = lent_by(second, array)
        assert not passed_on(second)


def test_what_is_passed_on_counts_as_lent(monkeypatch):
    monkeypatch.setattr("servepipe.channel.segments.MAX_LENT", 2)
    with lenders(2) as (first, second):
        array = lent_by(first, pattern(1))
        kept = [lent_by(second, array), lent_by(second, array)]
        assert second.lend(memoryview(array)) is None
        assert second.lent == len(kept)


@pytest.mark.parametrize("limit", ["MAX_KEPT", "MAX_KEPT_BYTES"])
def test_only_a_part_of_what_a_lender_may_lend_is_kept_from_it(monkeypatch, limit):
    """Who holds on to what was passed on leaves enough for others."""
    monkeypatch.setattr(segments, limit, 2 if limit == "MAX_KEPT" else 2 * SIZE)
    mine, yours = Kept(), Kept()
    with lenders(3) as (first, second, cache):
        arrays = [lent_by(first, pattern(seed), kept=mine) for seed in range(3)]
        cached = [lent_by(cache, arrays[0]), lent_by(cache, arrays[0]), lent_by(cache, arrays[1])]
        assert (mine.segments, mine.bytes) == (2, 2 * SIZE)
        assert passed_on(cache)
        cached.append(lent_by(cache, arrays[2]))
        assert not passed_on(cache)
        cached.append(lent_by(cache, lent_by(second, pattern(4), kept=yours)))  # of somebody else
        assert passed_on(cache)
        del cached[:3]
        gc.collect()
        assert (mine.segments, mine.bytes) == (0, 0)
        cached.append(lent_by(cache, arrays[2]))
        assert passed_on(cache)
        np.testing.assert_array_equal(cached[0], pattern(2))


def test_what_a_replica_gets_for_itself_alone_it_writes_to_where_it_is():
    with lenders(3) as (first, second, third):
        array = lent_by(first, pattern(1), kept=None)
        array[:] = 7
        (own,) = first._lent.values()
        assert os.pread(own.fd, SIZE, 0) == b"\x07" * SIZE
        further = lent_by(second, array)
        assert not passed_on(second)
        array[:] = 8
        assert set(further) == {7}
        shared = lent_by(third, further, kept=None)  # that others have too
        assert passed_on(third)
        shared[:] = 9
        assert set(further) == {7}


def test_a_child_may_keep_what_its_parent_gives_back():
    released = []
    with lenders(1) as (first,):
        array = lent_by(first, pattern(1), released)
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            os.close(theirs)
            os.read(ours, 1)
            os._exit(0 if np.array_equal(array, pattern(1)) else 1)
        os.close(ours)
        del array
        gc.collect()
        assert released == [False]
        for seed in range(2, 6):
            first.lend(memoryview(pattern(seed)))
        os.close(theirs)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_mapping_that_is_on_its_way_back_is_none(monkeypatch):
    """Python unmaps memory before it says so; others may have the address meanwhile."""
    with lenders(2) as (first, second):
        array = lent_by(first, pattern(1))
        record = borrowed(memoryview(array))
        record._mapping = lambda: None
        kept = lent_by(second, array)
        assert not passed_on(second)
        assert np.array_equal(kept, array)


@pytest.mark.parametrize("other", ["nobody", "another"])
def test_an_end_is_told_whatever_has_the_address(monkeypatch, other):
    released = []
    with lenders(2) as (first, second):
        array = lent_by(first, pattern(1), released)
        record = borrowed(memoryview(array))

        class Racing(dict):
            def get(self, key, default=None):
                found = super().get(key, default)
                self.pop(key, None)  # another thread has been faster
                return found

        another = lent_by(second, pattern(2))
        found = {record.address: borrowed(memoryview(another))} if other == "another" else {record.address: record}
        monkeypatch.setattr(borrowing, "_borrowed", Racing(found))
        del array
        gc.collect()
        assert released == [True]
        del another


@pytest.mark.parametrize(
    ("highest", "lent"),
    [(0x00, True), (0x01, True), (0x80, False), (0x81, False), (0xA0, True), (0xA1, True), (0x40, False), (0x60, True)],
)
def test_which_pages_are_as_they_were_lent(highest, lent):
    """Present, swapped out, of a file: bits 63, 62 and 61 of an entry, as Linux documents them."""
    assert (highest in AS_LENT) is lent


@pytest.mark.parametrize("told", [b"\0", b"\xff"], ids=["nothing is there", "all is of a file"])
def test_a_kernel_that_does_not_tell_is_found_out(monkeypatch, told):
    borrowing._kernel_tells.cache_clear()
    monkeypatch.setattr(borrowing.os, "pread", lambda fd, size, place: told * size)
    assert borrowing._kernel_tells() is False
    monkeypatch.undo()
    borrowing._kernel_tells.cache_clear()
    assert borrowing._kernel_tells() is True


def test_a_number_that_has_come_to_mean_a_pipe_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with lenders(1) as (first,):
        array = lent_by(first, pattern(1))
        record = borrowed(memoryview(array))
        (own,) = first._lent.values()
        fifo = os.open(tmp_path / "fifo", os.O_RDWR)
        os.dup2(fifo, own.fd)
        os.close(fifo)
        with pytest.raises(OSError, match="not the one"):
            record.open()


def test_files_are_closed():
    gc.collect()
    files = open_files()
    with lenders(2) as (first, second):
        for seed in range(5):
            array = lent_by(first, pattern(seed))
            kept = [lent_by(second, array), lent_by(second, array)]
            del array, kept
        gc.collect()
    assert open_files() == files
    assert not borrowing._borrowed


def test_an_address_that_is_used_again_is_the_new_one():
    with lenders(2) as (first, second):
        addresses = set()
        for seed in range(10):
            array = lent_by(first, pattern(seed))
            addresses.add(array.ctypes.data)
            np.testing.assert_array_equal(lent_by(second, array), pattern(seed))
            assert borrowed(memoryview(array)).mapping is not None
            del array
        assert len(addresses) < 10


STORIES = st.lists(
    st.tuples(
        st.sampled_from(["make", "pass", "write", "drop", "hang up"]),
        st.integers(0, 4),
        st.integers(0, 2),
        st.sampled_from([0, PAGE, SIZE - 1]),
    ),
    max_size=50,
)
"""What several processes do with values: make them, pass them on, write to them, drop them, hang up."""


@settings(max_examples=300, deadline=None)
@given(STORIES)
def test_everybody_sees_what_was_lent(story):
    """Each has a value as it was when it was lent, whatever any other does with it, and before or after it."""
    with lenders(3) as ends:
        values = []  # what somebody has, and what it has to be
        for step, (act, which, end, place) in enumerate(story):
            if act == "make":
                fresh = pattern(step)
                values.append((lent_by(ends[end], fresh), fresh.copy()))
            elif act == "hang up":
                ends[end].close()
                ends[end] = Lender()
            elif values:
                value, expected = values[which % len(values)]
                if act == "pass":
                    values.append((lent_by(ends[end], value), expected.copy()))
                elif act == "write":
                    value[place] = expected[place] = step
                else:
                    values.pop(which % len(values))
            del act
            for value, expected in values:
                assert np.array_equal(value, expected)
        value = None
        values.clear()
        gc.collect()
        assert not borrowing._borrowed
        assert all(end.lent == 0 for end in ends)
