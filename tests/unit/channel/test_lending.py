"""Large values between processes of one machine: through shared memory, which always comes back."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from channel_bed import Context, RawPeer, connected, served, until, within
from frame_tools import Frame

from servepipe.channel import lending
from servepipe.channel.errors import CallRejectedError, ChannelLostError, FrameTooLargeError
from servepipe.channel.frames import Kind, Limits, Segment
from servepipe.channel.metadata import SentHeads
from servepipe.channel.segments import SEGMENT_BYTES

BIG = 2 * SEGMENT_BYTES


def open_files():
    gc.collect()
    return len([*Path("/proc/self/fd").iterdir()])


@asynccontextmanager
async def no_file_stays_open():
    async with lending_pair() as (_, channel, _):  # what loops open once, and keep
        await channel.call(None, (np.arange(BIG),), {}, Context())
    for _ in range(5):
        await asyncio.sleep(0)
    files = open_files()
    yield
    await until(lambda: open_files() <= files, "all files are closed")


@asynccontextmanager
async def lending_pair(handle=None, **settings):
    """A server and a channel, both of which lend."""
    arguments = (handle,) if handle else ()
    async with served(*arguments, **settings) as server, connected(server, **settings) as channel:
        (accepted,) = server._connections
        await until(lambda: channel.lending.lender and accepted.lending.lender, "both sides lend")
        yield server, channel, accepted


async def comes_back(*ends):
    def lent():
        gc.collect()
        return sum(end.lending.lender.lent for end in ends)

    await until(lambda: lent() == 0, "all memory has come back")


async def test_large_arrays_go_through_memory_and_are_the_receivers_own():
    async with lending_pair() as (_, channel, accepted):
        array = np.arange(BIG)
        got = await channel.call(None, ({"a": [array]},), {}, Context())
        answer = got["a"][0]
        np.testing.assert_array_equal(answer, array)
        answer[0] = -1
        assert array[0] == 0
        assert accepted.lending.lender.lent == 1  # as long as there is the answer
        assert channel.written < 10_000
        del got, answer
        await comes_back(channel, accepted)
        assert channel.lending.lender.kept_bytes == array.nbytes


async def test_large_bytes_and_texts_too():
    async with lending_pair() as (_, channel, accepted):
        for value in (bytes(BIG), "ü" * BIG, [b"x" * BIG, np.ones(BIG)]):
            got = await channel.call(None, (value,), {}, Context())
            assert type(got) is type(value)
            assert str(got) == str(value)
            del got
            await comes_back(channel, accepted)
        assert channel.written < 10_000


async def test_what_was_read_only_stays_so():
    async with lending_pair() as (_, channel, _):
        array = np.arange(BIG)
        array.flags.writeable = False
        assert not (await channel.call(None, (array,), {}, Context())).flags.writeable


async def test_the_next_value_takes_the_same_memory():
    async with lending_pair() as (_, channel, accepted):
        files = set()
        for _ in range(20):
            await channel.call(None, (np.ones(BIG),), {}, Context())
            await comes_back(channel, accepted)
            files |= {*channel.lending.lender._free}
        assert len(files) == 1


async def test_what_one_replica_gave_goes_to_the_next_without_a_copy():
    async with lending_pair() as (_, left, first), lending_pair() as (_, right, second):
        value = await left.call(None, (np.arange(BIG),), {}, Context())
        answer = await right.call(None, (value,), {}, Context())
        np.testing.assert_array_equal(answer, np.arange(BIG))
        answer[0] = -1
        assert value[0] == 0
        del value, answer
        await comes_back(left, first, right, second)
        assert [end.lending.lender.kept_bytes for end in (left, first, second)] == [8 * BIG] * 3
        assert right.lending.lender.kept_bytes == 0  # it took no memory of its own


async def test_a_lost_connection_leaves_what_was_passed_on_by_it_as_it_is():
    held = []

    async def hold(call):
        held.append(call.args[0])
        await asyncio.Event().wait()

    async with lending_pair() as (_, left, first), lending_pair(hold) as (_, right, _):
        value = await left.call("x", (np.arange(BIG),), {}, Context())
        call = asyncio.ensure_future(right.call(None, (value,), {}, Context()))
        await until(lambda: held, "the value is there")
        right.abort("lost")
        with pytest.raises(ChannelLostError):
            await call
        del value, call
        await comes_back(left, first)
        assert first.lending.lender.kept_bytes == 0
        others = [await left.call(None, (np.zeros(BIG),), {}, Context()) for _ in range(4)]
        np.testing.assert_array_equal(held[0], np.arange(BIG))
        del others
        held.clear()


async def test_memory_that_nobody_needs_is_let_go():
    async with lending_pair(limits=Limits(keep_s=0.1)) as (_, channel, accepted):
        await channel.call(None, (np.ones(BIG),), {}, Context())
        await comes_back(channel, accepted)
        await until(lambda: not channel.lending.lender.kept_bytes, "the memory is let go")


async def test_an_answer_outlives_its_connection():
    async with no_file_stays_open():
        async with lending_pair() as (_, channel, _):
            answer = await channel.call(None, (np.arange(BIG),), {}, Context())
        assert answer[-1] == BIG - 1
        del answer


async def test_an_answer_that_is_dropped_in_another_thread():
    async with lending_pair() as (_, channel, accepted):
        answers = [await channel.call(None, (np.arange(BIG),), {}, Context())]
        thread = threading.Thread(target=answers.clear)
        thread.start()
        thread.join()
        await comes_back(channel, accepted)


async def test_calls_that_are_not_made_keep_no_memory():
    async with lending_pair(limits=Limits(max_frame_bytes=5 * BIG)) as (_, channel, _):
        with pytest.raises(FrameTooLargeError):
            await channel.call(None, (np.ones(6 * BIG, "u1"),), {}, Context())
        with pytest.raises(Exception, match=r"pickle|local object"):
            await channel.call(None, (np.ones(BIG, "u1"), lambda: 0), {}, Context())
        assert channel.lending.lender.lent == 0
        assert len(await channel.call(None, (np.ones(BIG, "u1"),), {}, Context())) == BIG


async def test_calls_that_are_rejected_keep_no_memory():
    async def full(call):
        raise CallRejectedError("full")

    async with lending_pair(full) as (server, channel, accepted):
        for draining in (False, True):
            server._owner.draining = draining
            with pytest.raises(CallRejectedError):
                await channel.call(None, (np.ones(BIG),), {}, Context())
            await comes_back(channel, accepted)


async def test_answers_that_are_too_large_keep_no_memory():
    async def large(call):
        return np.ones(6 * BIG, "u1")

    async with lending_pair(large, limits=Limits(max_frame_bytes=5 * BIG)) as (_, channel, accepted):
        with pytest.raises(Exception, match="more than the 2,621,440 that a channel takes"):
            await channel.call(None, (), {}, Context())
        assert accepted.lending.lender.lent == 0


async def test_cancelled_calls_keep_no_memory():
    async def wait(call):
        await asyncio.Event().wait()

    async with no_file_stays_open(), lending_pair(wait) as (server, channel, accepted):
        for _ in range(10):
            calls = [
                asyncio.ensure_future(channel.call(None, (np.ones(BIG, "u1"),), {}, within(100))) for _ in range(100)
            ]
            await until(lambda: server.running, "calls run")
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            del calls, call
            await until(lambda: not channel.in_flight, "all calls have ended")
            await comes_back(channel, accepted)


async def test_a_lost_connection_keeps_no_memory():
    async def wait(call):
        await asyncio.Event().wait()

    async with no_file_stays_open(), lending_pair(wait) as (server, channel, _):
        call = asyncio.ensure_future(channel.call(None, (np.ones(BIG),), {}, Context()))
        await until(lambda: server.running, "the call runs")
        channel.abort("lost")
        with pytest.raises(ChannelLostError):
            await call
        await until(lambda: not server.connections, "the connection has ended")


async def test_where_memory_cannot_be_shared_the_socket_is_taken(monkeypatch):
    def refuse(*args):
        raise PermissionError("another container")

    monkeypatch.setattr(lending, "borrow", refuse)
    async with served() as server, connected(server) as channel:
        await channel.ping()
        assert (await channel.call(None, (np.arange(BIG),), {}, Context()))[-1] == BIG - 1
        assert channel.lending.lender is None
        assert channel.written > BIG


async def test_other_machines_are_offered_nothing():
    async with served(tcp=True) as server, connected(server) as channel:
        await channel.ping()
        assert (await channel.call(None, (np.arange(BIG),), {}, Context()))[-1] == BIG - 1
        assert channel.lending._own is None


def _call_with(*segments):
    context = Context()
    head = SentHeads().encode(None, context)
    body = b"\x80\x05)}\x86."  # ((), {})
    return Frame(Kind.CALL, 1, head, body, segments)


@pytest.mark.parametrize(
    "sent",
    [
        Frame(Kind.OFFER, 1, b"short"),
        Frame(Kind.OFFER, 1, b"\xff" * 16),
        Frame(Kind.RELEASE, 2**64 - 1),
        Frame(Kind.RELEASE, 0),
        Frame(Kind.RELEASE, 0, b"\1"),
        _call_with(Segment(0, 100, bytes(16))),
        _call_with(Segment(2**23 - 1, 2**29, bytes(16))),
    ],
)
async def test_peers_that_lend_what_they_do_not_have(sent, caplog):
    async with served() as server, connected(server) as channel:
        peer = await RawPeer.let_in(server.endpoint)
        peer.send(sent)
        if sent.kind == Kind.OFFER and len(sent.head) == 16:  # one that cannot be had is no offence
            peer.send(_call_with())
            assert (await peer.frame()).kind == Kind.RESULT
            peer.close()
            return
        assert await peer.end() == []
        assert "is closed" in caplog.text
        assert await channel.call(None, (1,), {}, Context()) == 1


async def test_a_peer_that_names_other_files_of_its_own():
    """Numbers of files that were not lent, such as those of another connection, are never mapped."""
    async with served() as server:
        peer = await RawPeer.let_in(server.endpoint)
        own = lending.Lender()
        other = lending.Lender()
        first, theirs = own.lend(memoryview(b"\0")), other.lend(memoryview(bytes(5000)))
        peer.send(Frame(Kind.OFFER, first.fd, first.name))
        assert (await peer.frame()).kind == Kind.RELEASE
        peer.send(_call_with(Segment(theirs.fd, theirs.size, first.name)))
        assert await peer.end() == []
        own.close()
        other.close()
