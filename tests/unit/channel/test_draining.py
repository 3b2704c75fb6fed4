"""Orderly ends: of a replica, of a channel, of one that nobody uses."""

from __future__ import annotations

import asyncio

import pytest
from channel_bed import Context, RawPeer, connected, served, until
from frame_tools import Frame

from servepipe.channel.client import Channel
from servepipe.channel.errors import CallRejectedError, HandshakeError, Reason
from servepipe.channel.frames import Kind, Limits


class Gate:
    def __init__(self):
        self.opened = asyncio.Event()

    async def __call__(self, call):
        await self.opened.wait()
        return "done"


async def test_draining_ends_what_runs_and_begins_nothing():
    gate = Gate()
    told = []
    async with served(gate) as server, connected(server, on_unusable=told.append) as channel:
        calls = [asyncio.ensure_future(channel.call(None, (), {}, Context())) for _ in range(5)]
        await until(lambda: server.running == 5, "all calls run")
        draining = asyncio.create_task(server.drain(60))
        await until(lambda: not channel.usable, "the channel has been told")
        assert told == [channel]
        with pytest.raises(CallRejectedError) as caught:
            await channel.call(None, (), {}, Context())
        assert caught.value.reason is Reason.DRAINING
        with pytest.raises(OSError, match="No such file"):
            await Channel.connect(server.endpoint)
        assert not draining.done()
        gate.opened.set()
        assert await asyncio.gather(*calls) == ["done"] * 5
        assert await draining
        await channel.ended
        assert server.connections == 0


async def test_a_call_that_crosses_the_goodbye_is_rejected():
    gate = Gate()
    async with served(gate) as server:
        peer = await RawPeer.let_in(server.endpoint)
        peer.send(peer.call(1))
        await until(lambda: server.running == 1, "the call runs")
        draining = asyncio.create_task(server.drain(60))
        assert (await peer.frame()).kind == Kind.GOODBYE
        peer.send(peer.call(2))
        refusal = await peer.frame()
        assert (refusal.kind, refusal.call, refusal.head[0]) == (Kind.REJECT, 2, Reason.DRAINING)
        gate.opened.set()
        assert (await peer.frame()).call == 1
        assert server.connections == 1  # another call may be on its way
        peer.send(Frame(Kind.GOODBYE, 0))
        assert await peer.end() == []
        assert await draining


async def test_draining_has_an_end():
    gate = Gate()
    async with served(gate) as server, connected(server) as channel:
        call = asyncio.ensure_future(channel.call(None, (), {}, Context()))
        await until(lambda: server.running == 1, "the call runs")
        assert not await server.drain(0.05)
        assert server.running == 1
        gate.opened.set()
        assert await call == "done"


async def test_a_large_answer_is_complete_before_the_connection_ends():
    gate = Gate()

    async def large(call):
        await gate(call)
        return bytes(20 << 20)

    async with served(large) as server, connected(server) as channel:
        call = asyncio.ensure_future(channel.call(None, (), {}, Context()))
        await until(lambda: server.running == 1, "the call runs")
        draining = asyncio.create_task(server.drain(60))
        await until(lambda: not channel.usable, "the channel has been told")
        gate.opened.set()
        assert await draining
        assert len(await call) == 20 << 20


async def test_draining_without_calls_is_immediate():
    async with served() as server, connected(server) as channel:
        stranger = await RawPeer.connect(server.endpoint)
        await until(lambda: server.connections == 2, "both have connected")
        assert await server.drain(10)
        await channel.ended
        assert await stranger.end() == []


async def test_whoever_connects_while_a_replica_drains_is_refused():
    gate = Gate()
    async with served(gate) as server, connected(server) as channel:
        stranger = await RawPeer.connect(server.endpoint)
        call = asyncio.ensure_future(channel.call(None, (), {}, Context()))
        await until(lambda: server.running == 1, "the call runs")
        server._owner.draining = True
        with pytest.raises(HandshakeError) as caught:
            await Channel.connect(server.endpoint)
        assert caught.value.reason is Reason.DRAINING
        gate.opened.set()
        await call
        stranger.close()


async def test_a_channel_retires_when_its_last_call_has_ended():
    gate = Gate()
    async with served(gate) as server, connected(server) as channel:
        calls = [asyncio.ensure_future(channel.call(None, (), {}, Context())) for _ in range(3)]
        await until(lambda: server.running == 3, "all calls run")
        channel.retire()
        assert not channel.usable
        assert channel.alive
        gate.opened.set()
        assert await asyncio.gather(*calls) == ["done"] * 3
        await channel.ended
        await until(lambda: server.connections == 0, "the replica has seen it")


async def test_a_cancelled_call_lets_a_channel_retire():
    gate = Gate()
    async with served(gate) as server, connected(server) as channel:
        call = asyncio.ensure_future(channel.call(None, (), {}, Context()))
        await until(lambda: server.running == 1, "the call runs")
        channel.retire()
        call.cancel()
        async with asyncio.timeout(30):
            await channel.ended


async def test_a_silent_peer_is_given_up():
    async with served(limits=Limits(idle_s=0.2)) as server, connected(server) as channel:
        async with asyncio.timeout(30):
            await channel.ended
        assert not channel.usable


async def test_a_silent_peer_cannot_stay():
    async with served(limits=Limits(idle_s=0.1, stall_s=0.2)) as server:
        peer = await RawPeer.let_in(server.endpoint)
        assert (await peer.frame()).kind == Kind.GOODBYE
        peer.send(peer.call(1))
        refusal = await peer.frame()
        assert (refusal.kind, refusal.head[0]) == (Kind.REJECT, Reason.DRAINING)
        await peer.end()
        assert server.connections == 0


async def test_a_peer_with_a_call_is_not_idle():
    gate = Gate()
    async with served(gate, limits=Limits(idle_s=0.05)) as server, connected(server) as channel:
        call = asyncio.ensure_future(channel.call(None, (), {}, Context()))
        await asyncio.wait([call], timeout=0.4)
        assert channel.usable
        gate.opened.set()
        assert await call == "done"


async def test_a_greeting_keeps_a_channel():
    async with served(limits=Limits(idle_s=0.4)) as server, connected(server) as channel:
        for _ in range(10):
            await asyncio.wait([channel.ended], timeout=0.1)
            channel.greet()
        assert channel.usable
