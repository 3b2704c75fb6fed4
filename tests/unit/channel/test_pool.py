"""Channels to all replicas of an application."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter

import pytest
from channel_bed import Context, folder, served, until

from servepipe.channel.endpoints import Endpoint
from servepipe.channel.errors import CallRejectedError, ChannelLostError, NoChannelError, QueueFullError, Reason
from servepipe.channel.frames import Limits
from servepipe.channel.pool import ChannelPool


@contextlib.asynccontextmanager
async def pool_to(*servers, **settings):
    pool = ChannelPool(rng=random.Random(1), **settings)
    pool.update({server.endpoint.replica: server.endpoint for server in servers})
    try:
        await until(lambda: pool.usable == len(servers), "all channels are open")
        yield pool
    finally:
        await pool.close()


def named(name, counts=None, gate=None):
    async def handle(call):
        if counts is not None:
            counts[name] += 1
        if gate is not None:
            await gate.wait()
        return name

    return handle


async def test_without_replicas_there_is_no_channel():
    pool = ChannelPool()
    with pytest.raises(NoChannelError):
        await pool.call(None, (), {}, Context())
    await pool.close()


async def test_calls_are_spread():
    counts = Counter()
    gate = asyncio.Event()
    async with (
        served(named("a", counts, gate), replica="a") as a,
        served(named("b", counts, gate), replica="b") as b,
        served(named("c", counts, gate), replica="c") as c,
        pool_to(a, b, c) as pool,
    ):
        calls = [asyncio.ensure_future(pool.call(None, (), {}, Context())) for _ in range(90)]
        await until(lambda: sum(counts.values()) == 90, "all calls run")
        assert pool.in_flight == 90
        assert all(25 <= count <= 35 for count in counts.values())
        gate.set()
        await asyncio.gather(*calls)


async def test_a_rejected_call_goes_to_another_replica():
    async def full(call):
        raise CallRejectedError("full", reason=Reason.BUSY)

    async with served(full, replica="a") as a, served(named("b"), replica="b") as b, pool_to(a, b) as pool:
        assert {await pool.call(None, (), {}, Context()) for _ in range(20)} == {"b"}


async def test_when_all_reject_the_caller_learns_it():
    async def full(call):
        raise CallRejectedError("full", reason=Reason.BUSY)

    async with served(full, replica="a") as a, served(full, replica="b") as b, pool_to(a, b) as pool:
        with pytest.raises(CallRejectedError, match="full"):
            await pool.call(None, (), {}, Context())


async def queue_is_full(call):
    raise CallRejectedError("2 calls wait", reason=Reason.FULL)


async def test_when_as_many_wait_at_all_as_may_the_caller_learns_it():
    async with (
        served(queue_is_full, replica="a") as a,
        served(queue_is_full, replica="b") as b,
        pool_to(a, b) as pool,
    ):
        with pytest.raises(QueueFullError, match="each of 2 replicas"):
            await pool.call(None, (), {}, Context())


async def test_all_are_asked_however_many_there_are():
    counts = Counter()

    async def counted(call):
        counts["asked"] += 1
        return await queue_is_full(call)

    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(served(counted, replica=str(n))) for n in range(6)]
        room = await stack.enter_async_context(served(named("room"), replica="room"))
        pool = await stack.enter_async_context(pool_to(*servers))
        with pytest.raises(QueueFullError, match="each of 6 replicas"):
            await pool.call(None, (), {}, Context())
        assert counts["asked"] == 6
        pool.update({**pool.replicas, "room": room.endpoint})
        await until(lambda: pool.usable == 7, "there is a channel to it")
        assert {await pool.call(None, (), {}, Context()) for _ in range(20)} == {"room"}


async def test_a_replica_that_has_gone_does_not_speak_for_another():
    async def full_and_gone(call):
        pool.update({"b": b.endpoint})
        return await queue_is_full(call)

    async with (
        served(full_and_gone, replica="a") as a,
        served(named("b"), replica="b") as b,
        pool_to(a) as pool,
    ):
        with pytest.raises(CallRejectedError):
            await pool.call(None, (), {}, Context())


async def test_replicas_without_a_channel_may_have_room():
    async with served(queue_is_full, replica="a") as a, pool_to(a) as pool:
        pool.update({"a": a.endpoint}, others=1)
        with pytest.raises(CallRejectedError):
            await pool.call(None, (), {}, Context())


async def test_a_full_queue_says_nothing_about_replicas_that_were_not_asked():
    async def busy(call):
        raise CallRejectedError("busy", reason=Reason.BUSY)

    async with served(queue_is_full, replica="a") as a, served(busy, replica="b") as b, pool_to(a, b) as pool:
        with pytest.raises(CallRejectedError):
            await pool.call(None, (), {}, Context())
    async with served(queue_is_full, replica="a") as a, served(named("b"), replica="b") as b, pool_to(a) as pool:
        await b.drain(0)  # as one to which there is no channel yet
        pool.update({"a": a.endpoint, "b": b.endpoint})
        with pytest.raises(CallRejectedError, match="2 calls wait"):
            await pool.call(None, (), {}, Context())


async def test_a_call_that_may_have_begun_is_not_made_again():
    counts = Counter()
    gate = asyncio.Event()
    async with (
        served(named("a", counts, gate), replica="a") as a,
        served(named("b", counts, gate), replica="b") as b,
        pool_to(a, b) as pool,
    ):
        call = asyncio.ensure_future(pool.call(None, (), {}, Context()))
        await until(lambda: sum(counts.values()) == 1, "the call runs")
        await (a if counts["a"] else b).close()
        with pytest.raises(ChannelLostError):
            await call
        assert sum(counts.values()) == 1
        gate.set()
        assert await pool.call(None, (), {}, Context()) == ("b" if counts["a"] else "a")


async def test_a_draining_replica_gets_no_calls_and_loses_none():
    gate = asyncio.Event()
    async with (
        served(named("a", None, gate), replica="a") as a,
        served(named("b"), replica="b") as b,
        pool_to(a) as pool,
    ):
        call = asyncio.ensure_future(pool.call(None, (), {}, Context()))
        await until(lambda: a.running == 1, "the call runs")
        draining = asyncio.create_task(a.drain(60))
        await until(lambda: pool.usable == 0, "the pool has heard of it")
        pool.update({"a": a.endpoint, "b": b.endpoint})
        await until(lambda: pool.usable == 1, "there is a channel to the other")
        assert await pool.call(None, (), {}, Context()) == "b"
        gate.set()
        assert await call == "a"
        assert await draining


async def test_replicas_come_and_go():
    gate = asyncio.Event()
    async with (
        served(named("a", None, gate), replica="a") as a,
        served(named("b"), replica="b") as b,
        pool_to(a) as pool,
    ):
        call = asyncio.ensure_future(pool.call(None, (), {}, Context()))
        await until(lambda: a.running == 1, "the call runs")
        pool.update({"b": b.endpoint})
        assert pool.usable == 0
        assert pool.in_flight == 1
        await until(lambda: pool.usable == 1, "there is a channel to the new one")
        assert await pool.call(None, (), {}, Context()) == "b"
        gate.set()
        assert await call == "a"  # a replica that goes finishes what it has
        await until(lambda: a.connections == 0, "the old channel has ended")
        pool.update({"b": b.endpoint})
        assert b.connections == 1
        pool.update({})
        await until(lambda: b.connections == 0, "the last channel has ended")


async def test_a_replica_that_comes_later_is_found():
    async with folder() as path:
        endpoint = Endpoint("m1--a", "replica", b"t" * 32, path=str(path / "later.sock"))
        pool = ChannelPool()
        pool.update({"replica": endpoint})
        with pytest.raises(NoChannelError):
            await pool.call(None, (), {}, Context())
        async with served(named("a")) as server:
            (path / "later.sock").symlink_to(server.endpoint.path)
            await until(lambda: pool.usable == 1, "the channel is open")
            assert await pool.call(None, (), {}, Context()) == "a"
        await pool.close()


async def test_a_lost_channel_is_opened_again():
    async with served(named("a")) as server, pool_to(server) as pool:
        for connection in [*server._connections]:
            connection.abort("lost")
        await until(lambda: server.connections == 0 or pool.usable == 0, "the channel is lost")
        await until(lambda: pool.usable == 1, "the channel is open again")
        assert await pool.call(None, (), {}, Context()) == "a"


async def test_another_replica_at_the_same_address_gets_nothing(caplog):
    async with served(named("a"), replica="new") as server:
        pool = ChannelPool()
        pool.update({"old": Endpoint("m1--a", "old", b"t" * 32, path=server.endpoint.path)})
        await until(lambda: "refuses" in caplog.text, "the pool has been refused")
        with pytest.raises(NoChannelError):
            await pool.call(None, (), {}, Context())
        await pool.close()


async def test_channels_outlive_the_replicas_patience():
    limits = Limits(idle_s=0.3)
    async with served(named("a"), limits=limits) as server, pool_to(server, limits=limits):
        (connection,) = server._connections
        await asyncio.wait([connection.ended], timeout=1.0)
        assert {*server._connections} == {connection}


async def test_closing_ends_everything():
    gate = asyncio.Event()
    async with served(named("a", None, gate)) as server:
        async with pool_to(server) as pool:
            call = asyncio.ensure_future(pool.call(None, (), {}, Context()))
            await until(lambda: server.running == 1, "the call runs")
        with pytest.raises(ChannelLostError):
            await call
        await until(lambda: server.connections == 0, "the connection has ended")
    assert len(asyncio.all_tasks()) == 1
