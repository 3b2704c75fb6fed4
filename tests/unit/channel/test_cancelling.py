"""Callers that leave, replicas that go: everything ends on both sides, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import weakref

import numpy as np
import pytest
from channel_bed import Context, connected, served, until, within

from servepipe.channel.client import Channel
from servepipe.channel.errors import ChannelLostError
from servepipe.channel.frames import Limits


class Work:
    """A handler whose calls wait until they are told to go on; it notes how each ended."""

    def __init__(self):
        self.began = 0
        self.ended = []
        self.gate = asyncio.Event()

    async def __call__(self, call):
        self.began += 1
        try:
            await self.gate.wait()
            self.ended.append("returned")
            return call.args[0] if call.args else None
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise


async def start(channel, *args, context=None):
    task = asyncio.ensure_future(channel.call(None, args, {}, context or Context()))
    await asyncio.sleep(0)
    return task


async def test_cancelling_a_call_cancels_it_in_the_replica():
    work = Work()
    async with served(work) as server, connected(server) as channel:
        task, other = await start(channel, 1), await start(channel, 2)
        await until(lambda: work.began == 2, "both calls run")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: channel.in_flight == 1, "the replica has ended the call")
        assert work.ended == ["cancelled"]
        work.gate.set()
        assert await other == 2


async def test_cancelling_before_the_call_has_begun():
    work = Work()
    async with served(work) as server, connected(server) as channel:
        task = await start(channel, 1)
        task.cancel()  # both frames arrive together, and the replica's task ends before its first step
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not channel.in_flight and not server.running, "the call has ended on both sides")
        assert work.ended in ([], ["cancelled"])


async def test_cancelling_when_the_answer_is_on_its_way():
    async with served() as server, connected(server) as channel:
        for _ in range(200):
            task = await start(channel, 1)
            await until(lambda: server.running == 0, "the replica has answered")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await until(lambda: not channel.in_flight, "all calls have ended")
        assert await channel.call(None, (5,), {}, Context()) == 5


async def test_a_replica_that_does_not_stop_answers_into_the_void():
    async def stubborn(call):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "all the same"

    async with served(stubborn) as server, connected(server) as channel:
        task = await start(channel)
        await until(lambda: server.running == 1, "the call runs")
        await channel.ping()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: channel.in_flight == 0, "the replica has ended the call")
        assert channel.usable


async def test_calls_are_cancelled_when_their_caller_is_gone():
    work = Work()
    async with served(work) as server:
        async with connected(server) as channel:
            tasks = [await start(channel, number) for number in range(10)]
            await until(lambda: work.began == 10, "all calls run")
            channel.abort("gone")
            errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, ChannelLostError) and error.sent for error in errors)
        await until(lambda: work.ended == ["cancelled"] * 10, "all calls are cancelled")
        assert server.connections == 0


async def test_a_replica_that_goes_takes_its_calls_with_it():
    work = Work()
    async with served(work) as server, connected(server) as channel:
        tasks = [await start(channel, number) for number in range(10)]
        await until(lambda: work.began == 10, "all calls run")
        await server.close()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, ChannelLostError) and error.sent for error in errors)
        assert not channel.usable


async def test_what_has_not_left_is_told_apart_when_the_channel_is_lost():
    work = Work()
    async with served(work) as server, connected(server) as channel:
        first = await start(channel, 1)
        await until(lambda: work.began == 1, "the first call runs")
        channel.pause_writing()
        second = await start(channel, 2)
        await server.close()
        with pytest.raises(ChannelLostError) as lost:
            await first
        assert lost.value.sent
        with pytest.raises(ChannelLostError) as lost:
            await second
        assert not lost.value.sent


async def test_half_of_a_call_may_have_left():
    work = Work()
    async with served(work, tcp=True) as server, connected(server) as channel:
        (accepted,) = server._connections
        accepted.pause_reading()
        task = await start(channel, np.zeros(4 << 20))
        await asyncio.sleep(0)
        assert channel.waiting  # the socket does not take all of it
        await server.close()
        with pytest.raises(ChannelLostError) as lost:
            await task
        assert lost.value.sent
        assert work.began == 0


def _objects(kind):
    return sum(isinstance(thing, kind) for thing in gc.get_objects())


async def test_ten_thousand_cancelled_calls_leave_nothing():
    work = Work()
    async with served(work) as server, connected(server) as channel:
        arrays = []

        async def storm(count, deadline, *, all_begin):
            tasks, before = [], work.began
            for _ in range(count):
                array = np.zeros(20_000, "u1")
                arrays.append(weakref.ref(array))
                tasks.append(await start(channel, array, context=within(1000) if deadline else None))
            await until(lambda: work.began == before + count if all_begin else server.running, "calls run")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: not channel.in_flight and not server.running, "all calls have ended")

        await storm(100, True, all_begin=True)
        gc.collect()
        before = _objects(asyncio.Task), _objects(asyncio.Future), _objects(memoryview), _objects(bytearray)
        for batch in range(100):
            await storm(100, batch % 2 == 0, all_begin=batch % 4 < 2)
        gc.collect()
        after = _objects(asyncio.Task), _objects(asyncio.Future), _objects(memoryview), _objects(bytearray)
        assert all(new <= old + 5 for old, new in zip(before, after, strict=True)), (before, after)
        assert not [array for array in arrays if array() is not None]
        (accepted,) = server._connections
        assert not accepted._cancelled
        assert not channel._pings
        assert channel.waiting == accepted.waiting == 0
        assert 5_100 <= work.began <= 10_100
        assert work.ended == ["cancelled"] * work.began


async def test_channels_leave_nothing():
    async with served() as server:
        for _ in range(3):
            async with connected(server) as channel:
                await channel.call(None, (1,), {}, within(100))
            gone = weakref.ref(channel)
            del channel
            await until(lambda: server.connections == 0, "the connection has ended")
            gc.collect()
            assert gone() is None
        assert len(asyncio.all_tasks()) == 1


async def test_a_request_is_not_kept_alive_by_the_channel_it_opened():
    import contextvars

    class Request:
        pass

    current = contextvars.ContextVar("current")
    async with served() as server:

        async def open_one():
            request = Request()
            current.set(request)
            return await Channel.connect(server.endpoint), weakref.ref(request)

        channel, request = await asyncio.create_task(open_one())
        await channel.call(None, (1,), {}, Context())
        gc.collect()
        assert request() is None
        channel.abort()
        await channel.ended


async def test_an_answer_after_the_limit_of_a_slow_loop_is_still_taken():
    """A replica whose loop is blocked for a while is slow, not gone."""

    async def block(call):
        import time

        time.sleep(0.5)  # noqa: ASYNC251 - that is the point
        return "late"

    async with served(block, limits=Limits(handshake_s=0.1)) as server, connected(server) as channel:
        assert await channel.call(None, (), {}, Context()) == "late"
