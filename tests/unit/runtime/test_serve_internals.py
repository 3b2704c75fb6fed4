"""What the channel takes of Serve's private parts: it fits the Serve that is installed, and is refused elsewhere."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import ray.serve.context as serve_context
from ray.serve._private.replica import ReplicaMetricsManager, UserCallableWrapper
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve._private.router import AsyncioRouter, CurrentLoopRouter, SingletonThreadRouter
from serve_replica import serve_replica

from servepipe.runtime import serve_internals
from servepipe.runtime.serve_internals import (
    OwnReplica,
    UnexpectedServeError,
    known_replicas,
    metadata_of,
    own_replica,
)


def no():
    return False


async def test_a_request_takes_serves_own_path():
    async def call(one, *, two=0):
        return one + two

    serve = serve_replica(call)
    replica = OwnReplica(serve)
    assert replica.id == "x1y2"
    assert replica.loop is asyncio.get_running_loop()
    assert await replica.way("call", no)("request", 3) == 3
    assert serve._metrics_manager.ongoing == 0
    assert serve._metrics_manager.most == 1
    assert [what["is_error"] for what in serve._metrics_manager.recorded] == [False]


async def test_errors_and_cancelling_are_recorded_as_serve_does():
    async def call(kind):
        if kind == "wait":
            await asyncio.Event().wait()
        raise ValueError("bad")

    serve = serve_replica(call)
    replica = OwnReplica(serve)
    with pytest.raises(ValueError, match="bad"):
        await replica.way("call", no)("request", "raise")
    task = asyncio.create_task(replica.way("call", no)("request", "wait"))
    await asyncio.sleep(0)
    assert serve._metrics_manager.ongoing == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert serve._metrics_manager.ongoing == 0
    assert [what["exception_type"] for what in serve._metrics_manager.recorded] == ["ValueError", "CancelledError"]


async def test_serves_limit_holds():
    gate = asyncio.Event()

    async def call():
        await gate.wait()

    serve = serve_replica(call, limit=2)
    replica = OwnReplica(serve)
    way = replica.way("call", no)
    tasks = [asyncio.create_task(way("r")) for _ in range(3)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert replica.is_full
    assert serve._metrics_manager.ongoing == 2
    gate.set()
    await asyncio.gather(*tasks)
    assert not replica.is_full


async def test_every_request_has_an_id_of_its_own_inside():
    async def call():
        return serve_context._get_serve_request_context()

    way = OwnReplica(serve_replica(call)).way("call", no)
    one, other = [await asyncio.create_task(way("same")) for _ in range(2)]
    assert one.request_id == other.request_id == "same"
    assert one._internal_request_id != other._internal_request_id


async def test_a_traced_request_takes_serves_own_path(monkeypatch):
    async def call(*args):
        return args

    serve = serve_replica(call)
    way = OwnReplica(serve).way("call", no)
    seen = []

    async def call_user_method(request_metadata, args, kwargs):
        seen.append(request_metadata.request_id)
        return args

    serve._user_callable_wrapper.call_user_method = call_user_method
    await way("short", 1)
    monkeypatch.setattr(serve_internals, "is_tracing_enabled", lambda: True)
    assert await way("traced", 2) == (2,)
    assert seen == ["traced"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda replica: delattr(replica, "_quiescing"), "has no _quiescing"),
        (lambda replica: setattr(replica, "_quiescing", 0), "_quiescing is a int, not a bool"),
        (lambda replica: delattr(replica, "_semaphore"), "has no _semaphore"),
        (lambda replica: setattr(replica, "_event_loop", None), "_event_loop is a NoneType"),
        (lambda replica: setattr(replica, "_metrics_manager", object()), "has no inc_num_ongoing_requests"),
        (lambda replica: setattr(replica, "handle_request", lambda request_metadata: 0), "is not async"),
        (lambda replica: setattr(replica, "handle_request", lambda request: 0), "takes something else"),
        (lambda replica: setattr(replica, "_replica_id", "m1#a"), "has no unique_id"),
    ],
)
async def test_what_is_not_as_expected_is_said(change, words):
    replica = serve_replica(None)
    change(replica)
    with pytest.raises(UnexpectedServeError, match=words):
        OwnReplica(replica)


def test_serves_metrics_manager_is_the_one_that_is_expected():
    for name in ("inc_num_ongoing_requests", "dec_num_ongoing_requests"):
        assert [*getattr(ReplicaMetricsManager, name).__annotations__] == ["request_metadata", "return"]
    assert callable(UserCallableWrapper.call_user_method)


async def test_the_replica_of_this_process_is_found(monkeypatch):
    monkeypatch.setattr(serve_internals.global_worker, "actors", {})
    with pytest.raises(UnexpectedServeError, match="runs 0 of Serve's replicas"):
        own_replica()
    replica = serve_replica(None)
    actors = {"other": object(), "this": SimpleNamespace(_replica_impl=replica)}
    monkeypatch.setattr(serve_internals.global_worker, "actors", actors)
    assert own_replica().id == "x1y2"


def handle_with(requests):
    return SimpleNamespace(_router=SimpleNamespace(_asyncio_router=SimpleNamespace(_request_router=requests)))


def test_the_replicas_that_a_handle_knows():
    assert known_replicas(handle_with(None)) == ()
    replicas = [object()]
    assert known_replicas(handle_with(SimpleNamespace(_replicas_list=replicas))) is replicas


@pytest.mark.parametrize(
    "handle",
    [
        SimpleNamespace(),
        SimpleNamespace(_router=None),
        SimpleNamespace(_router=SimpleNamespace()),
        handle_with(SimpleNamespace()),
        handle_with(SimpleNamespace(_replicas_list={})),
    ],
)
def test_handles_of_another_kind(handle):
    with pytest.raises(UnexpectedServeError):
        known_replicas(handle)


def test_handles_of_the_installed_serve_have_these_parts():
    source = {kind: kind.__init__.__code__.co_names for kind in (CurrentLoopRouter, SingletonThreadRouter)}
    assert all("_asyncio_router" in names for names in source.values())
    assert "_request_router" in AsyncioRouter.__init__.__code__.co_names
    update = PowerOfTwoChoicesRequestRouter.update_replicas.__code__.co_names
    assert "_replicas_list" in update


def test_metadata_of_a_replica():
    replica = SimpleNamespace(replica_id=SimpleNamespace(unique_id="x"), replica_metadata={"a": 1})
    assert metadata_of(replica) == ("x", {"a": 1})
    with pytest.raises(UnexpectedServeError):
        metadata_of(SimpleNamespace(replica_id=SimpleNamespace(unique_id="x")))


def test_nothing_is_traced_here():
    assert serve_internals.traces() is False
