"""The short way of HTTP requests through Serve's replica does what the long one does."""

from __future__ import annotations

import asyncio
import gc
import uuid
from types import SimpleNamespace

import pytest
import ray.serve.context as serve_context
from http_path_bed import HEADERS, Bed, answer, of_deployment, of_request
from ray.serve._private import replica as serve_replicas
from ray.serve._private.common import RequestMetadata, RequestProtocol

from servepipe.graph.ir import Call, Graph, InputRef, StepRef
from servepipe.runtime import http_path
from servepipe.runtime.http import HttpApp
from servepipe.runtime.http_request import WATCHES
from servepipe.runtime.interface import Interface


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
