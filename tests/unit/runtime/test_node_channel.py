"""A node's replica as the end of channels: Serve's limits and counts hold, whoever calls."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import ray
from channel_bed import Context, until
from serve_replica import serve_replica

from servepipe.channel.client import Channel
from servepipe.channel.endpoints import Endpoint
from servepipe.channel.errors import CallRejectedError, Reason
from servepipe.runtime import node_channel, serve_internals
from servepipe.runtime.flags import CHANNEL
from servepipe.runtime.node_channel import METADATA, NodeChannel, call_has_begun


class Node:
    """The deployment's class, as far as Serve's replica calls it."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = []

    async def call(self, method, args, kwargs, context):
        call_has_begun()
        self.calls.append((method, args, kwargs, context))
        await self.gate.wait()
        return args[0] if args else None


@asynccontextmanager
async def node(monkeypatch, *, address="127.0.0.1", **settings):
    """A node whose replica is Serve's own object: the object, the node, and a channel to it."""
    code = Node()
    replica = serve_replica(code.call, **settings)
    actors = {"this": SimpleNamespace(_replica_impl=replica)}
    monkeypatch.setattr(serve_internals.global_worker, "actors", actors)
    monkeypatch.setattr(node_channel.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    channel = await NodeChannel.open("m1--a")
    assert channel is not None
    endpoint = Endpoint.parse(channel.metadata[METADATA])
    client = await Channel.connect(endpoint.seen_from("here"))
    try:
        yield SimpleNamespace(serve=replica, code=code, channel=channel, client=client, endpoint=endpoint)
    finally:
        code.gate.set()
        await channel.close()
        await client.ended


def counts(bed):
    return bed.serve._metrics_manager


async def test_a_call_takes_serves_own_path(monkeypatch):
    async with node(monkeypatch) as bed:
        assert await bed.client.call("forward", (1,), {"x": 2}, Context("id", 9e9, {"m2": "b"})) == 1
        ((method, args, kwargs, context),) = bed.code.calls
        assert (method, args, kwargs) == ("forward", (1,), {"x": 2})
        assert (context.request_id, context.deadline, context.pins) == ("id", 9e9, {"m2": "b"})
        assert [what["is_error"] for what in counts(bed).recorded] == [False]
        assert (counts(bed).most, counts(bed).ongoing) == (1, 0)


async def test_calls_that_wait_are_counted_too(monkeypatch):
    async with node(monkeypatch, limit=2) as bed:
        bed.code.gate.clear()
        calls = [asyncio.ensure_future(bed.client.call(None, (n,), {}, Context())) for n in range(5)]
        await until(lambda: counts(bed).ongoing == 5, "all five are counted")
        assert len(bed.code.calls) == 2
        bed.code.gate.set()
        assert await asyncio.gather(*calls) == [*range(5)]
        assert (counts(bed).most, counts(bed).ongoing) == (5, 0)
        assert bed.channel._queued == 0


async def test_a_waiting_call_that_is_cancelled_is_counted_no_more(monkeypatch):
    async with node(monkeypatch, limit=1) as bed:
        bed.code.gate.clear()
        first, second = (asyncio.ensure_future(bed.client.call(None, (n,), {}, Context())) for n in range(2))
        await until(lambda: counts(bed).ongoing == 2, "both are counted")
        second.cancel()
        await until(lambda: counts(bed).ongoing == 1, "the second is counted no more")
        bed.code.gate.set()
        assert await first == 0
        assert len(bed.code.calls) == 1
        assert bed.channel._queued == 0


async def test_only_so_many_may_wait(monkeypatch):
    async with node(monkeypatch, limit=1, queued=2) as bed:
        bed.code.gate.clear()
        calls = [asyncio.ensure_future(bed.client.call(None, (n,), {}, Context())) for n in range(3)]
        await until(lambda: counts(bed).ongoing == 3, "one runs and two wait")
        with pytest.raises(CallRejectedError, match="2 calls wait") as caught:
            await bed.client.call(None, (), {}, Context())
        assert caught.value.reason is Reason.FULL
        bed.code.gate.set()
        assert await asyncio.gather(*calls) == [0, 1, 2]


async def test_a_replica_that_ends_begins_nothing(monkeypatch):
    async with node(monkeypatch) as bed:
        bed.serve._quiescing = True
        with pytest.raises(CallRejectedError) as caught:
            await bed.client.call(None, (), {}, Context())
        assert caught.value.reason is Reason.DRAINING
        assert bed.code.calls == []


async def test_cancelling_reaches_the_code(monkeypatch):
    async with node(monkeypatch) as bed:
        bed.code.gate.clear()
        call = asyncio.ensure_future(bed.client.call(None, (), {}, Context()))
        await until(lambda: bed.code.calls, "the code runs")
        call.cancel()
        await until(lambda: counts(bed).ongoing == 0, "the call has ended")
        assert [what["exception_type"] for what in counts(bed).recorded] == ["CancelledError"]


async def test_it_listens_for_other_machines_only_at_an_address_that_they_can_reach(monkeypatch):
    async with node(monkeypatch) as bed:
        assert bed.endpoint.path
        assert bed.endpoint.seen_from("there") is None
    # This machine's loopback network again, but by an address that does not say so.
    monkeypatch.setattr(node_channel, "_is_loopback", lambda address: False)
    async with node(monkeypatch) as bed:
        away = bed.endpoint.seen_from("there")
        assert (away.host, away.tls) == ("127.0.0.1", False)
        other = await Channel.connect(away)
        assert await other.call(None, (3,), {}, Context()) == 3


async def test_nothing_is_left_behind(monkeypatch):
    async with node(monkeypatch) as bed:
        folder = bed.channel._folder
        assert folder.is_dir()
    assert not folder.exists()


async def test_its_socket_is_where_rays_own_are(monkeypatch, tmp_path):
    session = tmp_path / "ray"
    session.mkdir()
    worker = serve_internals.global_worker
    monkeypatch.setattr(worker, "node", SimpleNamespace(get_session_dir_path=lambda: str(session)))
    monkeypatch.setattr(node_channel, "MAX_FOLDER", len(str(session)))
    async with node(monkeypatch) as bed:
        assert bed.channel._folder.parent == session
    monkeypatch.setattr(node_channel, "MAX_FOLDER", len(str(session)) - 1)
    async with node(monkeypatch) as bed:
        assert bed.channel._folder.parent != session
    assert [*session.iterdir()] == []


async def test_a_serve_that_is_not_as_expected_means_handles(monkeypatch, caplog):
    monkeypatch.setattr(serve_internals.global_worker, "actors", {})
    assert await NodeChannel.open("m1--a") is None
    assert "over Serve's handles only: this process runs 0 of Serve's replicas" in caplog.text


async def test_it_can_be_turned_off(monkeypatch):
    monkeypatch.setenv(CHANNEL, "off")
    assert await NodeChannel.open("m1--a") is None


async def test_an_address_that_is_not_there_leaves_nothing_behind(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(node_channel.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(AssertionError):
        async with node(monkeypatch, address="203.0.113.7"):
            pass
    assert "over Serve's handles only" in caplog.text
    assert [*tmp_path.iterdir()] == []


async def test_tls_without_certificates_means_handles(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(node_channel.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(node_channel, "_is_loopback", lambda address: False)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.delenv("RAY_TLS_SERVER_CERT", raising=False)
    with pytest.raises(AssertionError):
        async with node(monkeypatch):
            pass
    assert "RAY_USE_TLS is set, but RAY_TLS_SERVER_CERT is not" in caplog.text
    assert [*tmp_path.iterdir()] == []


class Gate(threading.Event):
    """An event that is awaited on any loop."""

    async def wait(self):
        await asyncio.to_thread(super().wait, 30)


async def test_user_code_on_a_loop_of_its_own(monkeypatch):
    """Serve may run user code in another thread: the counts stay on the replica's own loop."""
    users = asyncio.new_event_loop()
    thread = threading.Thread(target=users.run_forever)
    thread.start()
    try:
        async with node(monkeypatch, limit=1, users=users) as bed:
            bed.code.gate = Gate()
            calls = [asyncio.ensure_future(bed.client.call(None, (n,), {}, Context())) for n in range(3)]
            await until(lambda: counts(bed).ongoing == 3, "one runs and two wait")
            bed.code.gate.set()
            assert await asyncio.gather(*calls) == [0, 1, 2]
            await until(lambda: counts(bed).ongoing == 0, "nothing is counted")
    finally:
        users.call_soon_threadsafe(users.stop)
        thread.join()
        users.close()
