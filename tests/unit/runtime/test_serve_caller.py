"""Which way a call takes: a channel where there is one, Serve's handle otherwise, and what happens when one fails."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from types import SimpleNamespace

import grpc
import pytest
from channel_bed import TOKEN, folder, until
from ray.exceptions import ActorDiedError

from servepipe.channel.errors import CallRejectedError, Reason
from servepipe.channel.server import ChannelServer
from servepipe.errors import RequestError, StepTimeoutError
from servepipe.graph.calls import RequestContext
from servepipe.runtime import node_channels, serve_caller
from servepipe.runtime.flags import CHANNEL
from servepipe.runtime.node_channel import METADATA
from servepipe.runtime.serve_caller import ServeCaller
from servepipe.runtime.transport import pack


class Response:
    def __init__(self, answer):
        self._task = asyncio.ensure_future(answer)

    def __await__(self):
        return self._task.__await__()

    def cancel(self):
        self._task.cancel()


class Handle:
    """Serve's handle: ``answer`` is what calls over it do; replicas are those that it knows."""

    made: dict[str, Handle]

    def __init__(self, deployment, application):
        self.calls = 0
        self.answer = self._from_handle
        self._requests = SimpleNamespace(_replicas_list=[])
        self._router = SimpleNamespace(_asyncio_router=SimpleNamespace(_request_router=self._requests))
        self.call = SimpleNamespace(remote=self._remote)
        self.shut_down = False
        Handle.made[application] = self

    def options(self, **options):
        return self

    def _remote(self, *args):
        self.calls += 1
        return Response(self.answer(*args))

    async def _from_handle(self, method, args, kwargs, context):
        return "by handle"

    def running_replicas_populated(self):
        return True

    async def shutdown_async(self):
        self.shut_down = True

    def know(self, *servers):
        self._requests._replicas_list = [
            SimpleNamespace(
                replica_id=SimpleNamespace(unique_id=server.endpoint.replica),
                replica_metadata={METADATA: server.endpoint.encode()},
            )
            for server in servers
        ]


class Counter:
    def __init__(self, *args, **kwargs):
        self.counts = {}

    def inc(self, value, tags):
        self.counts[tags["way"]] = self.counts.get(tags["way"], 0) + value


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    Handle.made = {}
    monkeypatch.setattr(serve_caller, "DeploymentHandle", Handle)
    monkeypatch.setattr(node_channels.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(node_channels.metrics, "Counter", Counter)


@contextlib.asynccontextmanager
async def replica(handle, name="r1"):
    async with (
        folder() as path,
        ChannelServer(handle, application="m1--a", replica=name, token=TOKEN, machine="here") as server,
    ):
        await server.listen_unix(path)
        yield server


@contextlib.asynccontextmanager
async def caller_to(*servers, **settings):
    caller = ServeCaller(lambda node: "a", **settings)
    caller.handle("m1--a")
    Handle.made["m1--a"].know(*servers)
    try:
        if servers:
            await until(lambda: _usable(caller) == len(servers), "the channels are open")
        yield caller, Handle.made["m1--a"]
    finally:
        await caller.close()


def _usable(caller):
    pool = caller._channels._pools.get("m1--a")
    return 0 if pool is None else pool.usable


async def call(caller, *args, deadline=None, **kwargs):
    return await caller.call("m1", "forward", args, kwargs, RequestContext("id", deadline, {"m1": "a"}))


async def by_channel(incoming):
    return "by channel"


async def test_a_channel_is_taken_where_there_is_one():
    async with replica(by_channel) as server, caller_to(server) as (caller, handle):
        assert await call(caller, 1, x=2) == "by channel"
        assert handle.calls == 0
        assert caller._channels.ways == {"channel": 1}
        assert time.monotonic() - caller.answered["m1--a"] < 60


async def test_a_cold_start_uses_the_handle():
    async with replica(by_channel) as server:
        caller = ServeCaller(lambda node: "a")
        assert await call(caller) == "by handle"
        handle = Handle.made["m1--a"]
        assert await call(caller) == "by handle"  # no replica is known yet
        handle.know(server)
        assert await call(caller) == "by handle"  # the channel is being opened
        await until(lambda: _usable(caller), "the channel is open")
        assert await call(caller) == "by channel"
        assert caller._channels.ways["unknown"] == 1
        assert caller._channels.ways["no channel"] == 2
        await caller.close()


async def test_replicas_without_an_endpoint_are_called_by_the_handle():
    async with caller_to() as (caller, handle):
        handle._requests._replicas_list = [
            SimpleNamespace(replica_id=SimpleNamespace(unique_id=name), replica_metadata=data)
            for name, data in {"old": {}, "new": {METADATA: {"version": 2}}}.items()
        ]
        assert await call(caller) == "by handle"


async def test_what_user_code_raises_arrives_as_itself():
    async def fail(incoming):
        raise pack(KeyError("bad"))

    async with replica(fail) as server, caller_to(server) as (caller, handle):
        with pytest.raises(KeyError, match="bad"):
            await call(caller)
        assert "m1--a" in caller.answered
        assert handle.calls == 0


async def test_a_call_that_was_not_begun_goes_over_the_handle():
    async def full(incoming):
        raise CallRejectedError("full")

    async with replica(full) as server, caller_to(server) as (caller, handle):
        assert await call(caller) == "by handle"
        assert handle.calls == 1
        assert caller._channels.ways["rejected"] == 1


async def test_a_call_for_which_no_replica_has_room_is_refused_at_once():
    async def full(incoming):
        raise CallRejectedError("2 calls wait", reason=Reason.FULL)

    async with replica(full, "r1") as one, replica(full, "r2") as two, caller_to(one, two) as (caller, handle):
        with pytest.raises(RequestError) as caught:
            await call(caller)
        assert (caught.value.code, caught.value.status, caught.value.node) == ("Overloaded", 503, "m1")
        assert handle.calls == 0
        assert caller._channels.ways == {"channel": 1, "full": 1}
        assert time.monotonic() - caller.answered["m1--a"] < 60  # they did answer


async def test_a_replica_that_no_channel_leads_to_may_have_room():
    async def full(incoming):
        raise CallRejectedError("2 calls wait", reason=Reason.FULL)

    async with replica(full, "r1") as one, caller_to(one) as (caller, handle):
        other = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r2"), replica_metadata={})
        handle._requests._replicas_list = [*handle._requests._replicas_list, other]
        assert await call(caller) == "by handle"


async def test_a_replica_with_room_takes_it():
    async def full(incoming):
        raise CallRejectedError("2 calls wait", reason=Reason.FULL)

    async with replica(full, "r1") as one, replica(by_channel, "r2") as two, caller_to(one, two) as (caller, handle):
        assert {await call(caller) for _ in range(20)} == {"by channel"}
        assert handle.calls == 0


async def test_arguments_that_no_channel_takes_are_an_error_and_do_not_reach_the_handle():
    async with replica(by_channel) as server, caller_to(server) as (caller, handle):
        for channel in caller._channels._pools["m1--a"]._usable:
            channel._max_bytes = 1000
        with pytest.raises(RequestError) as caught:
            await call(caller, bytes(2000))
        assert (caught.value.code, caught.value.status, caught.value.node) == ("ValueTooLarge", 500, "m1")
        assert re.fullmatch(
            "node m1 was not called: the call is a value of 2,... bytes, more than the 1,000 that a channel takes",
            caught.value.what,
        )
        assert caught.value.fix.startswith("Hand over where the data is instead")
        assert handle.calls == 0
        assert caller._channels.ways == {"channel": 1, "too large": 1}
        assert "m1--a" in caller.answered  # nothing is wrong with it
        assert await call(caller, bytes(100)) == "by channel"


async def test_an_answer_that_no_channel_takes_is_an_error():
    async def large(incoming):
        return bytes(2000)

    async with replica(large) as server, caller_to(server) as (caller, handle):
        for connection in server._connections:
            connection._max_bytes = 1000
        with pytest.raises(RequestError) as caught:
            await call(caller)
        assert caught.value.code == "ValueTooLarge"
        assert caught.value.what.startswith("node m1 was called, but the answer is a value of 2,0")
        assert handle.calls == 0


def refusal(details, code=grpc.StatusCode.RESOURCE_EXHAUSTED):
    async def refuse(*args):
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)

    return refuse


SERVER_REFUSES = "SERVER: Received message larger than max (314572918 vs. 268435456)"
CLIENT_REFUSES = "Stream removed (CLIENT: Received message larger than max (314572918 vs. 268435456))"


async def test_what_serves_handle_does_not_take_is_sent_again_until_a_channel_is_open():
    async with replica(by_channel) as server, caller_to() as (caller, handle):
        refuse = refusal(SERVER_REFUSES)

        async def refuse_until_then(*args):
            handle.know(server)
            if handle.calls == 2:
                caller._channels._look("m1--a")
                await until(lambda: _usable(caller), "the channel is open")
            await refuse()

        handle.answer = refuse_until_then
        assert await call(caller, "large") == "by channel"
        assert handle.calls == 2


@pytest.mark.parametrize(("off", "calls"), [(False, 3), (True, 1)])
async def test_arguments_that_only_a_channel_would_take_are_an_error_that_says_so(monkeypatch, off, calls):
    if off:
        monkeypatch.setenv(CHANNEL, "off")
    async with caller_to() as (caller, handle):
        handle.answer = refusal(SERVER_REFUSES)
        with pytest.raises(RequestError) as caught:
            await call(caller, "large")
        assert handle.calls == calls
        assert (caught.value.code, caught.value.status, caught.value.node) == ("ValueTooLarge", 500, "m1")
        assert caught.value.what == (
            "node m1 was not called: the call is a value of 314,572,918 bytes, more than the 268,435,456 that Serve's "
            "handle takes"
        )
        assert "Over a channel it may have 1,073,741,824" in caught.value.fix


async def test_an_answer_that_serves_handle_does_not_take_is_not_asked_for_again():
    async with caller_to() as (caller, handle):
        handle.answer = refusal(CLIENT_REFUSES)
        with pytest.raises(RequestError) as caught:
            await call(caller)
        assert handle.calls == 1
        assert caught.value.code == "ValueTooLarge"
        assert caught.value.what.startswith("node m1 was called, but the answer is a value of 314,572,918 bytes")


@pytest.mark.parametrize(
    ("details", "code"),
    [("out of memory", grpc.StatusCode.RESOURCE_EXHAUSTED), (SERVER_REFUSES, grpc.StatusCode.INTERNAL), (None, None)],
)
async def test_other_errors_of_serves_handle_are_told_as_they_are(details, code):
    async with caller_to() as (caller, handle):
        handle.answer = refusal(details, code or grpc.StatusCode.RESOURCE_EXHAUSTED)
        with pytest.raises(grpc.aio.AioRpcError):
            await call(caller)
        assert handle.calls == 1


class Dying:
    """A replica that dies in the first call."""

    def __init__(self):
        self.server = None
        self.calls = 0

    async def __call__(self, incoming):
        self.calls += 1
        for connection in [*self.server._connections]:
            connection.abort("killed")
        await asyncio.Event().wait()


async def test_a_lost_call_is_made_again():
    dying = Dying()
    async with replica(dying) as server, caller_to(server) as (caller, handle):
        dying.server = server
        assert await call(caller) == "by handle"
        assert dying.calls == 1
        assert caller._channels.ways["lost"] == 1
        assert handle.calls == 1


async def test_a_lost_call_goes_to_another_replica():
    dying = Dying()
    async with replica(dying, "r1") as one, replica(by_channel, "r2") as two, caller_to(one, two) as (caller, handle):
        dying.server = one
        answers = {await call(caller) for _ in range(10)}
        assert answers == {"by channel"}
        assert dying.calls >= 1
        assert handle.calls == 0


async def test_a_node_that_must_not_see_a_call_twice_does_not():
    dying = Dying()
    settings = {"is_idempotent": lambda node: node != "m1"}
    async with replica(dying) as server, caller_to(server, **settings) as (caller, handle):
        dying.server = server
        with pytest.raises(RequestError) as caught:
            await call(caller)
        assert (caught.value.code, caught.value.status) == ("ReplicaLost", 502)
        assert (dying.calls, handle.calls) == (1, 0)


async def test_replicas_lost_by_the_handle_are_tried_three_times():
    async def die(*args):
        raise ActorDiedError

    async with caller_to() as (caller, handle):
        handle.answer = die
        with pytest.raises(RequestError) as caught:
            await call(caller)
        assert caught.value.code == "ReplicaLost"
        assert handle.calls == 3


async def test_a_deadline_ends_a_call_a_little_before_it():
    ended = []

    async def wait(incoming):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(time.time())

    async with replica(wait) as server, caller_to(server) as (caller, handle):
        caller.answered["m1--a"] = 1.0
        deadline = time.time() + serve_caller.MARGIN_S + 0.1
        with pytest.raises(StepTimeoutError) as caught:
            await call(caller, deadline=deadline)
        assert caught.value.node == "m1"
        await until(lambda: ended, "the replica has been told")
        assert caller.answered["m1--a"] == 1.0  # slow is not gone
        assert handle.calls == 0


async def test_cancelling_reaches_the_replica():
    began, ended = asyncio.Event(), asyncio.Event()

    async def wait(incoming):
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with replica(wait) as server, caller_to(server) as (caller, handle):
        task = asyncio.create_task(call(caller))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 30)
        assert handle.calls == 0


async def test_replicas_come_and_go_with_the_handles_list():
    async def second(incoming):
        return "second"

    async with replica(by_channel, "r1") as one, replica(second, "r2") as two, caller_to(one) as (caller, handle):
        handle.know(two)
        await call(caller)
        await until(lambda: _usable(caller) == 1 and two.connections, "the other channel is open")
        assert await call(caller) == "second"
        await until(lambda: one.connections == 0, "the first channel has ended")


async def test_applications_that_are_not_kept_lose_their_channels():
    async with replica(by_channel) as server, caller_to(server) as (caller, handle):
        await caller.keep_only({"other--b"})
        assert handle.shut_down
        await until(lambda: server.connections == 0, "the channel has ended")


async def test_another_serve_means_handles(caplog):
    async with replica(by_channel) as server, caller_to(server) as (caller, handle):
        handle._router = object()
        assert await call(caller) == "by handle"
        assert "over Serve's handles only" in caplog.text
        await until(lambda: server.connections == 0, "the channel has ended")
        assert await call(caller) == "by handle"
        assert caller._channels.ways["unexpected"] == 2


async def test_channels_can_be_turned_off(monkeypatch):
    monkeypatch.setenv(CHANNEL, "off")
    async with replica(by_channel) as server, caller_to() as (caller, handle):
        handle.know(server)
        assert await call(caller) == "by handle"
        assert caller._channels.ways == {"off": 1}


async def test_a_traced_request_uses_handles_which_carry_the_trace(monkeypatch):
    monkeypatch.setattr(node_channels, "traces", lambda: True)
    async with replica(by_channel) as server, caller_to(server) as (caller, _):
        assert await call(caller) == "by handle"
        assert caller._channels.ways == {"traced": 1}


@pytest.mark.parametrize(("setting", "way"), [("", "channel"), ("off", "off")])
async def test_the_ways_are_told_as_a_metric(monkeypatch, setting, way):
    monkeypatch.setattr(node_channels, "TELL_EVERY_S", 0.01)
    monkeypatch.setattr(node_channels, "LOOK_EVERY_S", 0.01)
    monkeypatch.setenv(CHANNEL, setting)
    counters = []

    def counter(name, **settings):
        assert (name, settings["tag_keys"]) == ("servepipe_node_calls", ("way",))
        counters.append(Counter())
        return counters[-1]

    monkeypatch.setattr(node_channels.metrics, "Counter", counter)
    async with replica(by_channel) as server, caller_to() as (caller, handle):
        handle.know(server)
        await until(lambda: _usable(caller) == (0 if setting else 1), "the channel is open")
        for _ in range(3):
            await call(caller)
        await until(lambda: counters and counters[0].counts.get(way) == 3, "three calls are told")
