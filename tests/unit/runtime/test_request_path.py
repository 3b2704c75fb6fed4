"""The short way through Serve's replica does what the long one does, and is taken only where it was written for."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
from contextlib import suppress
from types import SimpleNamespace

import pytest
import ray
import ray.serve.context as serve_context
from ray.serve._private.replica import Replica
from serve_log import serves_log
from serve_replica import serve_replica

from servepipe.runtime import request_path, serve_internals
from servepipe.runtime.request_path import WRITTEN_AFTER, digest
from servepipe.runtime.serve_internals import OwnReplica


@pytest.fixture(params=["short", "long"])
def way_of(request, monkeypatch):
    """Makes the way of a replica, short or long."""
    if request.param == "long":
        monkeypatch.setattr(serve_internals, "short_way", lambda *args, **kwargs: None)

    def make(serve, *, unlogged=False):
        return OwnReplica(serve).way("call", lambda: unlogged)

    return make


@pytest.fixture
def heard(monkeypatch):
    with serves_log(
        monkeypatch,
        lambda record, text, error: (record.levelname, text, type(error).__name__, record.__dict__.get("route")),
    ) as records:
        yield records


class Odd(BaseException):
    """What Serve neither counts nor tells."""


def told(serve):
    recorded = serve._metrics_manager.recorded
    return [{name: value for name, value in one.items() if name != "latency_ms"} for one in recorded]


OK = {"route": "", "is_error": False, "exception_type": None}


async def test_an_answer(way_of, heard):
    async def call(*args):
        return args, serve._metrics_manager.ongoing, serve_context._get_serve_request_context()

    serve = serve_replica(call)
    args, ongoing, context = await way_of(serve)("id", 1, "two")
    assert (args, ongoing) == ((1, "two"), 1)
    assert context == serve_context._RequestContext(
        request_id="id",
        _internal_request_id="x1y2-1",
        app_name="m1--a",
        cancel_on_parent_request_cancel=context.cancel_on_parent_request_cancel,
    )
    assert told(serve) == [OK]
    assert serve._metrics_manager.recorded[0]["latency_ms"] >= 0
    assert serve._metrics_manager.ongoing == serve._semaphore._value == 0
    assert heard == [("INFO", "CALL call OK", "NoneType", "")]
    assert serve._access_log_context["request_id"] == "id"


@pytest.mark.parametrize("error", [ValueError("bad"), ExceptionGroup("bad", [KeyError("a")])])
async def test_an_error(way_of, heard, error):
    async def call():
        try:
            raise KeyError("before")
        except KeyError as cause:
            raise error from cause

    serve = serve_replica(call)
    failed = []
    serve._on_request_failed = lambda metadata, error: failed.append((metadata.request_id, error))
    with pytest.raises(type(error)) as caught:
        await way_of(serve)("id")
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert failed == [("id", error)]
    assert told(serve) == [{"route": "", "is_error": True, "exception_type": type(error).__name__}]
    assert serve._metrics_manager.ongoing == serve._semaphore._value == 0
    assert heard == [("ERROR", "Request", type(error).__name__, None), ("INFO", "CALL call ERROR", "NoneType", "")]


async def test_a_cancelled_call_and_the_calls_that_it_made(way_of, heard):
    running = asyncio.Event()

    async def call():
        inside = serve_context._get_serve_request_context()._internal_request_id
        serve_context._add_in_flight_request(inside, "other", made)
        running.set()
        await asyncio.Event().wait()

    cancelled = []
    made = SimpleNamespace(cancel=lambda: cancelled.append("other"))
    serve = serve_replica(call)
    task = asyncio.create_task(way_of(serve)("id"))
    await running.wait()
    assert serve._metrics_manager.ongoing == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled == ["other"]
    assert told(serve) == [{"route": "", "is_error": True, "exception_type": "CancelledError"}]
    assert serve._metrics_manager.ongoing == serve._semaphore._value == 0
    assert heard == [("INFO", "CALL call CANCELLED", "NoneType", "")]


async def test_calls_wait_for_their_turn_and_may_leave_before_it(way_of):
    gate = asyncio.Event()
    order = []

    async def call(n):
        order.append(n)
        await gate.wait()
        return n

    serve = serve_replica(call, limit=1)
    way = way_of(serve)
    first, second, third = (asyncio.create_task(way("id", n)) for n in range(3))
    for _ in range(3):
        await asyncio.sleep(0)
    assert (order, serve._metrics_manager.ongoing) == ([0], 1)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.set()
    assert await asyncio.gather(first, third) == [0, 2]
    assert order == [0, 2]
    assert [one["is_error"] for one in told(serve)] == [True, False, False]
    assert serve._metrics_manager.ongoing == serve._semaphore._value == 0


async def test_what_serve_neither_counts_nor_tells(way_of, heard):
    async def call():
        raise Odd

    serve = serve_replica(call)
    with pytest.raises(Odd):
        await way_of(serve)("id")
    assert told(serve) == heard == []
    assert serve._metrics_manager.ongoing == serve._semaphore._value == 0


async def test_without_the_access_log_all_the_rest_is_told(way_of, heard):
    async def call(fails):
        if fails:
            raise ValueError("bad")

    serve = serve_replica(call)
    way = way_of(serve, unlogged=True)
    await way("id", False)
    with pytest.raises(ValueError, match="bad"):
        await way("id", True)
    assert told(serve) == [OK, {"route": "", "is_error": True, "exception_type": "ValueError"}]
    assert ("ERROR", "Request", "ValueError", None) in heard


async def test_nothing_of_a_failed_call_is_kept(way_of, monkeypatch):
    # pytest keeps what it hears, and with an error its frames.
    monkeypatch.setattr(logging.getLogger("ray.serve"), "disabled", True)

    class Big:
        pass

    async def call(big):
        raise ValueError("bad")

    way = way_of(serve_replica(call))

    async def once():
        with suppress(ValueError):
            await way("id", Big())

    for _ in range(3):
        await once()
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is Big]


# Where it is taken


async def nothing():
    pass


def short_of(serve):
    return request_path.short_way(
        serve, "call", metadata=lambda *ids: OwnReplica(serve)._metadata("call", *ids), unlogged=lambda: False
    )


async def test_it_was_written_after_the_ray_that_is_installed():
    # If this fails for a new Ray: read what changed in `request_path._REPLICA` and `_USER_CODE`, make the short way do
    # the same, and only then add the digest.
    minor = ".".join(ray.__version__.split(".")[:2])
    assert digest(serve_replica(nothing)) == WRITTEN_AFTER[minor]
    assert short_of(serve_replica(nothing)) is not None


def differently(serve):
    class Other(Replica):
        async def handle_request(self, request_metadata, *args):
            return await super().handle_request(request_metadata, *args)

    serve.__class__ = Other


def replaced_here(serve):
    serve._record_errors_and_metrics = lambda *args: None


def wrapped(serve):
    class Other(Replica):
        @functools.wraps(Replica._start_request)
        def _start_request(self, request_metadata):
            return super()._start_request(request_metadata)

    serve.__class__ = Other


def having(name, value):
    return lambda serve: setattr(serve._user_callable_wrapper, name, value)


def unreadable(serve):
    serve.__class__ = type("Other", (Replica,), {"handle_request": print})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (differently, "was not written after"),
        (unreadable, "was not written after"),
        (replaced_here, "was not written after"),
        (wrapped, "was not written after"),
        (having("_run_user_code_in_separate_thread", True), "thread of its own"),
        (having("_is_enabled_for_debug", True), "start of each request"),
        (lambda serve: setattr(serve._user_callable_wrapper._callable, "call", lambda: 0), "call is not async"),
    ],
)
async def test_elsewhere_it_is_not_taken(change, words, caplog):
    caplog.set_level(logging.INFO, "servepipe.node")
    serve = serve_replica(nothing)
    change(serve)
    assert short_of(serve) is None
    assert words in caplog.text
