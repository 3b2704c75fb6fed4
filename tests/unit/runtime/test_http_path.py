"""The short way of HTTP requests through Serve's replica does what the long one does, and is taken only where it may
be."""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
import time
import uuid
from types import SimpleNamespace

import pytest
import ray
import ray.serve.context as serve_context
from channel_bed import until
from ray.serve._private import replica as serve_replicas
from ray.serve._private.common import RequestMetadata, RequestProtocol
from ray.serve._private.http_util import RequestIdMiddleware
from ray.serve._private.replica import Replica
from serve_log import serves_log
from serve_replica import serve_app

from servepipe.graph.ir import Call, Graph, InputRef, StepRef
from servepipe.runtime import http_path
from servepipe.runtime.direct_http import DirectHttp
from servepipe.runtime.http import HttpApp
from servepipe.runtime.http_path import WRITTEN_AFTER, HttpWay, digest
from servepipe.runtime.http_request import UNWATCHED, WATCHES
from servepipe.runtime.interface import Interface
from servepipe.runtime.serve_internals import OwnReplica

HEADERS = ((b"host", b"x"), (b"content-type", b"application/json"))


@pytest.fixture
def heard(monkeypatch):
    with serves_log(
        monkeypatch, lambda record, text, error: (record.levelname, text, error and repr(error))
    ) as records:
        yield records


class Asked:
    """What came of a request."""

    def __init__(self):
        self.sent = []
        self.scope = None
        self.headers = []
        self.raised = None

    @property
    def starts(self):
        return [
            (one["status"], [(name, value) for name, value in one["headers"] if name != b"x-request-id"])
            for one in self.sent
            if one["type"] == "http.response.start"
        ]

    @property
    def body(self):
        return b"".join(one.get("body", b"") for one in self.sent if one["type"] == "http.response.body")

    @property
    def request_ids(self):
        return [value for one in self.sent for name, value in one.get("headers", ()) if name == b"x-request-id"]


class Bed:
    """Serve with an app, behind `DirectHttp`."""

    def __init__(self, app, way, *, unlogged=False, **options):
        self.serve = serve_app(self._app, **options)
        self.app = app
        self.inside = None
        self.asked = []
        short = HttpWay(self.serve, unlogged=lambda: unlogged, traced=lambda: False) if way == "short" else None
        self.took = []
        if short is not None:
            take = short.take
            short.take = lambda *args: self._note(take(*args))
        long = RequestIdMiddleware(self.serve._direct_ingress_asgi)
        self.asgi = DirectHttp(long, self.serve._semaphore.locked, short)

    def _note(self, taken):
        self.took.append(taken is not None)
        return taken

    async def _app(self, scope, receive, send):
        self.inside = SimpleNamespace(
            scope=dict(scope),
            ongoing=self.serve._metrics_manager.ongoing,
            context=serve_context._get_serve_request_context(),
        )
        await self.app(scope, receive, send)

    async def ask(self, *, method="POST", path="/", headers=HEADERS, **more):
        asked = Asked()
        body = [{"type": "http.request", "body": b"1", "more_body": False}]

        async def receive():
            if not body:
                await asyncio.Event().wait()  # the caller stays
            return body.pop()

        async def send(message):
            asked.sent.append(message)

        asked.scope = {"type": "http", "method": method, "path": path, "root_path": "", "client": ("1.2.3.4", 5)}
        asked.headers = [*headers]
        asked.scope |= {"headers": asked.headers, **more}
        self.asked.append(asked)
        try:
            await self.asgi(asked.scope, receive, send)
        except Exception as error:
            asked.raised = error
        return asked

    @property
    def counted(self):
        """What Serve has recorded, without times."""
        manager = self.serve._metrics_manager
        assert manager.ongoing == self.serve._semaphore._value == self.serve._num_queued_requests == 0
        return [
            {name: value for name, value in one.items() if name != "latency_ms"}
            for one in (*manager.recorded, *manager.requests)
        ]


@pytest.fixture(params=["short", "long"])
def bed_of(request):
    def make(app, **options):
        return Bed(app, request.param, **options)

    yield make
    # Serve leaves tasks whose errors nobody has asked for; that is told now, and not in the middle of another test.
    gc.collect()


async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def of_deployment(route="/", *, error=None):
    return {"route": route, "is_error": error is not None, "exception_type": error}


def of_request(status, route="/", method="POST"):
    return {
        "protocol": "HTTP",
        "method": method,
        "route": route,
        "app_name": "ingress",
        "deployment_name": "ingress",
        "is_error": status[0] in "45",
        "status_code": status,
    }


async def test_an_answer(bed_of, heard, monkeypatch):
    for module in (http_path, serve_replicas):
        monkeypatch.setattr(module, "RAY_SERVE_ENABLE_DIRECT_INGRESS", True)
    bed = bed_of(answer)
    asked = await bed.ask(headers=[*HEADERS, (b"x-request-id", b"theirs")])
    assert (asked.starts, asked.body, asked.request_ids) == (
        [(200, [(b"content-length", b"2")])],
        b"ok",
        [b"theirs"],
    )
    assert bed.counted == [of_deployment(), of_request("200")]
    assert bed.inside.ongoing == 1
    context = bed.inside.context
    assert context._internal_request_id not in ("", "theirs")
    assert context == serve_context._RequestContext(
        route="/",
        request_id="theirs",
        _internal_request_id=context._internal_request_id,
        app_name="ingress",
        _client="1.2.3.4:5",
        cancel_on_parent_request_cancel=True,
    )
    assert heard == [("INFO", "POST / 200", None)]
    assert bed.serve._access_log_context["request_id"] == "theirs"
    assert bed.inside.scope[WATCHES] is True


async def test_an_answer_of_which_nobody_wants_a_line_in_the_log_has_none(heard):
    bed = Bed(answer, "short", unlogged=True)
    assert (await bed.ask()).body == b"ok"
    assert (heard, bed.counted) == ([], [of_deployment(), of_request("200")])


@pytest.mark.parametrize("unlogged", [True, False])
async def test_the_time_it_took_is_in_milliseconds(bed_of, unlogged):
    async def app(scope, receive, send):
        await asyncio.sleep(0.1)
        await answer(scope, receive, send)

    bed = bed_of(app, unlogged=unlogged)
    await bed.ask()
    manager = bed.serve._metrics_manager
    for one in (*manager.recorded, *manager.requests):
        assert 99 < one["latency_ms"] < 20_000


async def test_what_the_server_adds_to_its_headers_later_is_not_for_the_app(bed_of):
    """Trailers of a body, with httptools."""
    bed = bed_of(answer)
    for headers in ([], [(b"x-request-id", b"theirs")]):
        asked = await bed.ask(headers=headers)
        assert bed.inside.scope["headers"] is not asked.headers
        assert asked.headers == headers


async def test_who_sends_no_id_gets_one_which_the_app_sees(bed_of):
    bed = bed_of(answer)
    ids = set()
    for _ in range(3):
        (told,) = (await bed.ask()).request_ids
        assert uuid.UUID(told.decode()).version == 4
        assert [value for name, value in bed.inside.scope["headers"] if name == b"x-request-id"] == [told]
        assert bed.inside.context.request_id == told.decode()
        ids.add((told, bed.inside.context._internal_request_id))
    assert len({one for pair in ids for one in pair}) == 6


@pytest.mark.parametrize("status", [204, 404, 499, 503])
async def test_the_status_is_counted(bed_of, status):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    bed = bed_of(app, unlogged=True)
    assert (await bed.ask(method="PUT")).starts == [(status, [])]
    assert bed.counted == [of_deployment(), of_request(str(status), method="PUT")]


async def test_only_the_first_status_is_counted(bed_of):
    async def app(scope, receive, send):
        await answer(scope, receive, send)
        await send({"type": "http.response.start", "status": 499, "headers": []})

    bed = bed_of(app)
    asked = await bed.ask()
    assert [status for status, _ in asked.starts] == [200, 499]
    assert len(asked.request_ids) == 2
    assert bed.counted == [of_deployment(), of_request("200")]


async def test_an_app_that_answers_nothing(bed_of):
    async def app(scope, receive, send): ...

    bed = bed_of(app, unlogged=True)
    assert (await bed.ask()).sent == []
    assert bed.counted == [of_deployment()]


@pytest.mark.parametrize("after", [False, True])
async def test_an_error_of_the_app(bed_of, heard, after):
    async def app(scope, receive, send):
        if after:
            await answer(scope, receive, send)
        raise ValueError("bad")

    bed = bed_of(app, unlogged=True)
    failed = []
    bed.serve._on_request_failed = lambda *told: failed.append(told)
    asked = await bed.ask(headers=[(b"x-request-id", b"theirs")])
    assert asked.raised is None  # Serve keeps it from the HTTP server
    ((metadata, error),) = failed
    assert repr(error) == "ValueError('bad')"
    assert metadata == RequestMetadata(
        request_id="theirs",
        internal_request_id=bed.inside.context._internal_request_id,
        route="/",
        app_name="ingress",
        is_streaming=True,
        _http_method="POST",
        _client="1.2.3.4:5",
        _request_protocol=RequestProtocol.HTTP,
        is_direct_ingress=True,
    )
    assert bed.counted == [of_deployment(error="ValueError"), *([of_request("200")] if after else [])]
    assert heard == [("ERROR", "Request", "ValueError('bad')"), ("INFO", f"POST / {200 if after else 'ERROR'}", None)]


class Odd(BaseException):
    """What Serve neither counts nor tells."""


async def test_what_is_no_error_goes_through(bed_of):
    async def app(scope, receive, send):
        raise Odd

    bed = bed_of(app)
    with pytest.raises(Odd):
        await bed.ask()
    assert bed.counted == []


@pytest.mark.parametrize("status", [None, 499])
async def test_a_request_that_is_cancelled_with_the_calls_that_it_made(bed_of, heard, status):
    running = asyncio.Event()

    async def app(scope, receive, send):
        inside = serve_context._get_serve_request_context()._internal_request_id
        serve_context._add_in_flight_request(inside, "other", made)
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            if status:
                await send({"type": "http.response.start", "status": status, "headers": []})

    cancelled = []
    made = SimpleNamespace(cancel=lambda: cancelled.append("other"))
    bed = bed_of(app)
    task = asyncio.create_task(bed.ask())
    await running.wait()
    task.cancel()
    assert (await task).raised is None
    assert cancelled == ["other"]
    assert bed.counted == [of_deployment(error="CancelledError"), *([of_request("499")] if status else [])]
    assert heard == [("INFO", f"POST / {status or 'CANCELLED'}", None)]


class Slow:
    """Runs until it is cancelled.

    Args:
        starts: Begins to answer before that.
        then: What it makes of being cancelled.
    """

    def __init__(self, starts=False, then=None):
        self.starts, self.then = starts, then
        self.cancelled = asyncio.Event()
        self.calls = []

    async def __call__(self, scope, receive, send):
        inside = serve_context._get_serve_request_context()._internal_request_id
        for number, call in enumerate(self.calls):
            serve_context._add_in_flight_request(inside, number, call)
        if self.starts:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            if self.then is None:
                raise
            await self.then()


async def nothing(): ...


async def fails():
    raise ValueError("bad")


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("then", [None, nothing, fails])
async def test_serves_own_timeout(bed_of, heard, starts, then):
    app = Slow(starts, then)
    bed = bed_of(app, timeout_s=0.2)
    cancelled = []
    app.calls.append(SimpleNamespace(cancel=lambda: cancelled.append("other")))
    asked = await bed.ask(headers=[(b"x-request-id", b"theirs")])
    await app.cancelled.wait()
    assert "other" in cancelled
    assert [status for status, _ in asked.starts] == [200 if starts else 408]
    assert asked.body == (b"" if starts else b"Request theirs timed out after 0.2s.")
    assert asked.request_ids == [b"theirs"]
    await until(lambda: bed.serve._metrics_manager.ongoing == 0, "the app has ended")
    assert bed.counted == [of_deployment(error="CancelledError"), of_request("408")]
    assert [record for record in heard if record[0] == "INFO"] == [("INFO", "POST / 408", None)]


async def test_the_end_of_an_app_that_takes_no_notice_is_not_waited_for(bed_of, heard):
    gate = asyncio.Event()
    bed = bed_of(Slow(then=gate.wait), timeout_s=0.2)
    asking = asyncio.create_task(bed.ask())
    await until(lambda: bed.asked and len(bed.asked[0].sent) == 2, "the caller is told")
    assert bed.asked[0].starts[0][0] == 408
    assert [one["status_code"] for one in bed.serve._metrics_manager.requests] == ["408"]
    gate.set()
    assert (await asking).raised is None
    await until(lambda: bed.serve._metrics_manager.ongoing == 0, "the app has ended")
    assert bed.counted == [of_deployment(error="CancelledError"), of_request("408")]
    assert heard == [("INFO", "POST / 408", None)]


async def test_half_an_answer_is_ended_at_the_limit():
    """uvicorn does that when Serve returns."""
    closed = []

    async def goes_on():
        await send_on({"type": "http.response.body", "body": b"tail"})

    async def app(scope, receive, send):
        nonlocal send_on
        send_on = send
        await slow(scope, receive, send)

    slow, send_on = Slow(starts=True, then=goes_on), None
    bed = Bed(app, "short", timeout_s=0.1)
    take = bed.asgi._way.take
    bed.asgi._way.take = lambda scope, receive, send, _: take(scope, receive, send, lambda: closed.append("closed"))
    asked = await bed.ask()
    assert (closed, asked.body) == (["closed"], b"")


async def test_what_an_app_does_after_its_answer_is_not_limited(bed_of):
    done = []

    async def app(scope, receive, send):
        await answer(scope, receive, send)
        await asyncio.sleep(0.5)
        done.append("done")

    bed = bed_of(app, timeout_s=0.1)
    assert (await bed.ask()).body == b"ok"
    await until(lambda: bed.serve._metrics_manager.ongoing == 0, "the app has ended")
    assert (done, bed.counted) == (["done"], [of_deployment(), of_request("200")])


async def test_what_comes_in_the_moment_of_the_limit_is_in_time(bed_of):
    came = asyncio.Event()

    async def app(scope, receive, send):
        await came.wait()
        await answer(scope, receive, send)

    bed = bed_of(app, timeout_s=0.2)
    asking = asyncio.create_task(bed.ask())
    await until(lambda: bed.inside, "it runs")
    time.sleep(0.3)  # noqa: ASYNC251 - the loop is blocked meanwhile
    came.set()
    assert (await asking).starts[0][0] == 200
    assert bed.counted == [of_deployment(), of_request("200")]


async def test_a_caller_who_cannot_be_told_is_not(caplog):
    async def gone(message):
        raise OSError("gone")

    gc.collect()
    caplog.clear()
    bed = Bed(Slow(), "short", timeout_s=0.1)
    scope = {"type": "http", "method": "POST", "path": "/", "client": None, "headers": []}
    await bed.asgi(scope, lambda: asyncio.Event().wait(), gone)
    gc.collect()
    assert bed.counted == [of_deployment(error="CancelledError"), of_request("408")]
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_one_timer_is_for_all():
    gate = asyncio.Event()
    bed = Bed(lambda scope, receive, send: gate.wait(), "short", timeout_s=30.0)
    timeout = bed.asgi._way._timeout
    first = asyncio.create_task(bed.ask())
    await until(lambda: timeout._timer, "it is set")
    timer = timeout._timer
    others = [asyncio.create_task(bed.ask()) for _ in range(3)]
    await until(lambda: len(timeout._until) == 4, "all run")
    assert timeout._timer is timer
    gate.set()
    await asyncio.gather(first, *others)
    timer.cancel()


async def test_a_request_in_time_is_not_touched_by_the_end_of_others():
    gate = asyncio.Event()
    bed = Bed(lambda scope, receive, send: gate.wait(), "short", timeout_s=0.3)
    early = asyncio.create_task(bed.ask())
    await asyncio.sleep(0.2)
    bed.app = answer
    assert (await bed.ask()).starts[0][0] == 200
    late = Slow()
    bed.app = late
    asking = asyncio.create_task(bed.ask())
    assert (await early).starts == [(408, early.result().starts[0][1])]
    assert not late.cancelled.is_set()
    assert (await asking).starts[0][0] == 408
    bed.app = answer
    assert (await bed.ask()).starts[0][0] == 200
    timeout = bed.asgi._way._timeout
    assert timeout._until == {}
    await until(lambda: timeout._timer is None, "nothing waits any longer")


@pytest.mark.parametrize("path", ["/shop", "/shop/", "/shop/-/ready", "/shopping"])
async def test_below_a_route(bed_of, path):
    bed = bed_of(answer, route="/shop")
    assert (await bed.ask(path=path)).body == b"ok"
    assert (bed.inside.scope["path"], bed.inside.scope["root_path"]) == (path, "/shop")
    assert bed.counted == [of_deployment("/shop"), of_request("200", "/shop")]


async def test_the_route_may_change(bed_of):
    bed = bed_of(answer, route="/shop")
    bed.serve._route_prefix = "/"
    assert (await bed.ask()).body == b"ok"
    assert bed.inside.scope["root_path"] == ""
    assert bed.counted == [of_deployment(), of_request("200")]


async def test_a_request_without_a_client(bed_of):
    bed = bed_of(answer)
    assert (await bed.ask(client=None)).body == b"ok"
    assert bed.inside.context._client == ""


async def test_requests_leave_no_cycles():
    """So the ingress lets Python look for them rarely."""
    interface = Interface.of(Graph((Call("predict", "model", args=(InputRef(()),)),), StepRef("predict")))

    async def run(args, kwargs, *, request_id, deadline):
        await asyncio.sleep(0)
        return args[0]

    bed = Bed(HttpApp(run, interface), "short", unlogged=True, timeout_s=310.0)
    for _ in range(10):
        assert (await bed.ask()).body == b"1"
    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            await bed.ask()
        assert gc.collect() < 100
    finally:
        gc.enable()
    assert all(bed.took)


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
