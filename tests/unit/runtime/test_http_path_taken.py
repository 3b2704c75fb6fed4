"""The short way of HTTP requests is taken only where it may be."""

from __future__ import annotations

import asyncio
import functools
import sys
from types import SimpleNamespace

import pytest
import ray
from channel_bed import until
from http_path_bed import Bed, answer, of_deployment, of_request
from ray.serve._private.replica import Replica
from serve_replica import serve_app

from servepipe.runtime import http_path
from servepipe.runtime.http_path import WRITTEN_AFTER, HttpWay, digest
from servepipe.runtime.http_request import UNWATCHED
from servepipe.runtime.serve_internals import OwnReplica

# What is left to Serve

SESSION, MODEL = (b"x-session-id", b"a"), (b"serve_multiplexed_model_id", b"a")


@pytest.mark.parametrize(
    ("asks", "seen"),
    [
        ({"path": "/-/healthz"}, [503]),
        ({"path": "/-/routes"}, [503]),
        ({"route": "/shop", "path": "/other"}, [404]),
        ({"root_path": "/mounted", "path": "/mounted/x"}, [200]),
        ({"headers": [SESSION]}, [200]),
        ({"headers": [(b"x_session-id", b"a")]}, [200]),
        ({"headers": [MODEL]}, [200]),
        ({"headers": [(b"serve-multiplexed-model-id", b"a")]}, [200]),
        ({"headers": [(b"x-request-timeout-seconds", b"20")]}, [200]),
        ({"headers": [UNWATCHED]}, [200]),
        ({"headers": [(b"x-request-id", b"")]}, [200]),
        ({"headers": [(b"x-request-id", b"1"), (b"x-request-id", b"2")]}, [200]),
        ({"headers": [(b"x-request-id", "é".encode())]}, [200]),
        ({"queued": 0}, [503]),
        ({"full": True, "queued": 0}, [503]),
        ({"traced": True}, [200]),
    ],
    ids=str,
)
async def test_all_others_are_left_to_serve(asks, seen, monkeypatch):
    monkeypatch.setattr(Replica, "_dataplane_health_check", unwell)
    asks = dict(asks)
    options = {name: asks.pop(name) for name in ("route", "queued") if name in asks}
    bed = Bed(answer, "short", **options)
    bed.serve._deployment_config.backpressure_config = None
    monkeypatch.setattr(
        Replica, "backpressure_config", SimpleNamespace(status_code=503, retry_after_s=None), raising=False
    )
    if asks.pop("full", False):
        monkeypatch.setattr(bed.serve._semaphore, "locked", lambda: True)
    if asks.pop("traced", False):
        bed.asgi._way._traced = lambda: True
    asked = await bed.ask(**asks)
    assert bed.took == [False]
    assert [status for status, _ in asked.starts] == seen


async def unwell(self):
    return False, "unwell"


async def test_requests_that_wait_for_their_turn():
    gate = asyncio.Event()

    async def app(scope, receive, send):
        await gate.wait()
        await answer(scope, receive, send)

    bed = Bed(app, "short", limit=2)
    tasks = [asyncio.create_task(bed.ask()) for _ in range(4)]
    await until(lambda: bed.serve._num_queued_requests == 2, "two wait")
    assert bed.took == [True, True, False, False]
    assert bed.serve._metrics_manager.ongoing == 2
    gate.set()
    assert [one.body for one in await asyncio.gather(*tasks)] == [b"ok"] * 4
    assert bed.counted == [of_deployment()] * 4 + [of_request("200")] * 4


async def test_before_serve_is_ready_it_says_so():
    bed = Bed(answer, "short")
    bed.serve._user_callable_initialized = False
    assert isinstance((await bed.ask()).raised, AssertionError)
    assert bed.took == [False]


# Where it is taken


async def test_the_source_of_this_ray_was_read():
    minor = ".".join(ray.__version__.split(".")[:2])
    # Where this fails: read what has changed in Serve, see whether `HttpWay` still does the same, and only then add the
    # digest.
    assert digest(serve_app(answer)) == WRITTEN_AFTER[minor]


def differently(serve):
    class Other(Replica):
        async def _direct_ingress_asgi(self, scope, receive, send):
            return await super()._direct_ingress_asgi(scope, receive, send)

    serve.__class__ = Other


def wrapped(serve):
    class Other(Replica):
        @functools.wraps(Replica._direct_ingress_asgi)
        def _direct_ingress_asgi(self, *args):
            return super()._direct_ingress_asgi(*args)

    serve.__class__ = Other


def replaced_here(serve):
    serve._record_errors_and_metrics = lambda *args: None


def with_routes(serve):
    serve._user_callable_asgi_app = SimpleNamespace(routes=[])


def having(name, value):
    return lambda serve: setattr(serve._user_callable_wrapper, name, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (differently, "was not written after"),
        (wrapped, "was not written after"),
        (replaced_here, "was not written after"),
        (having("_run_user_code_in_separate_thread", True), "thread of its own"),
        (having("_is_enabled_for_debug", True), "start of each request"),
        (with_routes, "has routes"),
        (having("_callable", SimpleNamespace(__call__=answer)), "none of ASGI's"),
    ],
)
async def test_elsewhere_it_is_not_taken(change, words):
    serve = serve_app(answer)
    change(serve)
    with pytest.raises(LookupError, match=words):
        HttpWay(serve, unlogged=lambda: True, traced=lambda: False)


GONE = [
    "ray.serve._private.http_util.RequestIdMiddleware",
    "ray.serve._private.http_util.ASGIAppReplicaWrapper",
    "ray.serve._private.http_util.parse_session_id_header",
    "ray.serve._private.replica.send_http_response",
    "ray.serve._private.replica.get_asgi_route_name",
    "ray.serve.context._RequestContext",
    "ray.serve._private.replica.Replica._track_queued_request",
    "ray.serve._private.replica.UserCallableWrapper._call_http_entrypoint",
]


@pytest.mark.parametrize("name", GONE)
async def test_a_serve_without_one_of_its_parts_goes_its_own_way(monkeypatch, caplog, name):
    replica = OwnReplica(serve_app(answer))
    assert isinstance(replica.http_way(lambda: True), HttpWay)
    monkeypatch.delattr(name)
    assert replica.http_way(lambda: True) is None
    assert "was not written after" in caplog.text
    assert caplog.records[-1].levelname == "WARNING"  # replicas show no less


async def test_a_serve_that_is_quite_different_goes_its_own_way(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "servepipe.runtime.http_path", None)  # what it imports is not there
    assert OwnReplica(serve_app(answer)).http_way(lambda: True) is None
    assert "the long way" in caplog.text


async def test_a_session_header_with_too_many_spellings(monkeypatch):
    monkeypatch.setattr(http_path.http_util, "SERVE_SESSION_ID", "-".join("abcdefghijk"))
    with pytest.raises(LookupError, match="spellings"):
        HttpWay(serve_app(answer), unlogged=lambda: True, traced=lambda: False)
