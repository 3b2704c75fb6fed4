"""Between uvicorn and Serve: answers in one write, and callers that leave are seen by the app itself."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections import Counter
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace

import pytest
import uvicorn
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from servepipe.graph.ir import Call, Graph, InputRef, StepRef
from servepipe.runtime import direct_http
from servepipe.runtime.departure import LOOK_AFTER_S, Departure
from servepipe.runtime.direct_http import JOINED_BYTES, DirectHttp, middlewares
from servepipe.runtime.http import Hook, HttpApp
from servepipe.runtime.http_request import UNWATCHED, WATCHES
from servepipe.runtime.interface import Interface
from servepipe.runtime.serve_internals import UnexpectedServeError

WAIT_S = 20
INTERFACE = Interface.of(Graph((Call("predict", "model", args=(InputRef(()),)),), StepRef("predict")))


class Counted:
    """A transport whose writes are kept."""

    def __init__(self, transport, writes):
        self._transport = transport
        self._writes = writes

    def write(self, data):
        self._writes.append(bytes(data))
        self._transport.write(data)

    def __getattr__(self, name):
        return getattr(self._transport, name)


@asynccontextmanager
async def serving(app, protocol=HttpToolsProtocol, is_full=lambda: False):
    """uvicorn with ``app`` behind `DirectHttp`: its port, and what it wrote."""
    writes = []

    class Protocol(protocol):
        def connection_made(self, transport):
            super().connection_made(Counted(transport, writes))

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    config = uvicorn.Config(DirectHttp(app, is_full), http=Protocol, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    server.capture_signals = nullcontext
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield SimpleNamespace(port=sock.getsockname()[1], writes=writes)
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, WAIT_S)
        sock.close()


@asynccontextmanager
async def connected(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def request(method="POST", body=b"", *headers, path="/"):
    lines = [f"{method} {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def answer_of(reader, *, has_body=True):
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
    status = int(head.split()[1])
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
    body = b""
    if has_body and b"content-length" in headers:
        body = await asyncio.wait_for(reader.readexactly(int(headers[b"content-length"])), WAIT_S)
    elif has_body and headers.get(b"transfer-encoding") == b"chunked":
        while size := int(await asyncio.wait_for(reader.readline(), WAIT_S), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    return status, body


def graph(run, **options):
    async def running(args, kwargs, *, request_id, deadline):
        return await run(*args)

    return HttpApp(running, INTERFACE, **options)


async def echo(*args):
    return args[0] if len(args) == 1 else list(args)


@pytest.mark.parametrize("protocol", [HttpToolsProtocol, H11Protocol])
async def test_head_and_body_leave_in_one_write(protocol):
    async with serving(graph(echo), protocol) as server, connected(server) as (reader, writer):
        for n in range(3):  # on one connection
            writer.write(request(body=b"[%d, 2]" % n))
            assert await answer_of(reader) == (200, b"[%d,2]" % n)
            assert len(server.writes) == n + 1


async def test_requests_that_come_together_are_answered_in_order():
    async with serving(graph(echo)) as server, connected(server) as (reader, writer):
        writer.write(request(body=b"1") + request(body=b"2") + request(body=b"3"))
        assert [await answer_of(reader) for _ in range(3)] == [(200, b"1"), (200, b"2"), (200, b"3")]


async def test_the_connection_is_closed_after_the_answer_where_that_is_wished():
    async with serving(graph(echo)) as server, connected(server) as (reader, writer):
        writer.write(request("POST", b"1", "connection: close"))
        assert await answer_of(reader) == (200, b"1")
        assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
        assert len(server.writes) == 1


async def test_an_error_leaves_in_one_write_too():
    async with serving(graph(echo)) as server, connected(server) as (reader, writer):
        writer.write(request(body=b"[1,"))
        status, body = await answer_of(reader)
        assert (status, b"InvalidJson" in body, len(server.writes)) == (400, True, 1)


async def test_a_head_without_body():
    async def ready():
        return 200, "ready"

    app = graph(echo, endpoints={"/-/ready": ready})
    async with serving(app) as server, connected(server) as (reader, writer):
        for method, body in (("HEAD", b""), ("GET", b'"ready"'), ("HEAD", b"")):
            writer.write(request(method, path="/-/ready"))
            assert await answer_of(reader, has_body=method == "GET") == (200, body)


async def test_large_bodies_are_not_copied():
    size = JOINED_BYTES + 1
    async with serving(graph(lambda value: echo("x" * (size - 2)))) as server, connected(server) as (reader, writer):
        writer.write(request(body=b"1"))
        _, body = await answer_of(reader)
        assert (len(body), len(server.writes)) == (size, 2)


async def test_answers_of_all_kinds(tmp_path):
    (tmp_path / "file").write_bytes(b"f" * 200_000)

    async def pieces():
        for piece in (b"a", b"b", b"c"):
            yield piece

    answers = {
        b'"empty"': PlainTextResponse("", 204),
        b'"text"': PlainTextResponse("text"),
        b'"stream"': StreamingResponse(pieces()),
        b'"file"': FileResponse(tmp_path / "file"),
    }

    async def choose(value):
        return answers[f'"{value}"'.encode()]

    async with serving(graph(choose)) as server, connected(server) as (reader, writer):
        found = {}
        for body in answers:
            writer.write(request(body=body))
            found[body] = await answer_of(reader)
    assert found == {
        b'"empty"': (204, b""),
        b'"text"': (200, b"text"),
        b'"stream"': (200, b"abc"),
        b'"file"': (200, b"f" * 200_000),
    }


async def test_an_app_that_fails_after_the_head_gets_a_whole_answer():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        raise ValueError("bad")

    for between in (app, Serve(app)):  # Serve keeps the error to itself
        async with serving(between) as server, connected(server) as (reader, writer):
            writer.write(request())
            assert await answer_of(reader) == (500, b"Internal Server Error")


async def test_a_server_that_is_not_uvicorn_gets_the_messages_as_they_are():
    sent = []

    async def send(message):
        sent.append(message["type"])

    async def receive():
        return {"type": "http.request", "body": b"1", "more_body": False}

    await DirectHttp(graph(echo), lambda: False)(
        {"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send
    )
    assert sent == ["http.response.start", "http.response.body"]


# Callers that leave


class Serve:
    """What lies between: takes note of the status, and keeps from the server how the app ended, as Serve does."""

    def __init__(self, app):
        self.app = app
        self.seen = []
        self.ended = asyncio.Event()

    async def __call__(self, scope, receive, send):
        async def sending(message):
            if message["type"] == "http.response.start":
                self.seen.append(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except BaseException as error:
            self.seen.append(type(error))
        finally:
            self.ended.set()


class Long:
    """A graph that runs until it is cancelled, or told to end."""

    def __init__(self):
        self.began, self.go, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self, value=None):
        self.began.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return value


@pytest.mark.parametrize("timeout_s", [None, 60.0])
async def test_a_caller_that_leaves_ends_what_runs_for_it(timeout_s):
    run = Long()
    serve = Serve(graph(run, timeout_s=timeout_s))
    async with serving(serve) as server:
        async with connected(server) as (_, writer):
            writer.write(request(body=b"1"))
            await asyncio.wait_for(run.began.wait(), WAIT_S)
        await asyncio.wait_for(run.cancelled.wait(), WAIT_S)
        await asyncio.wait_for(serve.ended.wait(), WAIT_S)
    assert serve.seen == [499, asyncio.CancelledError]


async def test_a_caller_that_leaves_while_it_sends():
    serve = Serve(graph(echo))
    async with serving(serve) as server:
        async with connected(server) as (_, writer):
            writer.write(request(body=b"[1, 2]")[:-2])
        await asyncio.wait_for(serve.ended.wait(), WAIT_S)
    assert serve.seen == [499]


async def test_a_caller_that_stays_has_its_answer_however_long_it_takes():
    run = Long()
    serve = Serve(graph(run))
    async with serving(serve) as server, connected(server) as (reader, writer):
        writer.write(request(body=b"1"))
        await asyncio.wait_for(run.began.wait(), WAIT_S)
        with pytest.raises(TimeoutError):  # longer than it takes until somebody looks
            await asyncio.wait_for(serve.ended.wait(), 0.2)
        run.go.set()
        assert await answer_of(reader) == (200, b"1")
        writer.write(request(body=b"2"))
        assert await answer_of(reader) == (200, b"2")
    assert serve.seen == [200, 200]


async def test_a_body_that_comes_slowly_is_read_whole():
    async with serving(graph(echo)) as server, connected(server) as (reader, writer):
        whole = request(body=b"[1, 2, 3]")
        for piece in (whole[:-8], whole[-8:-4]):
            writer.write(piece)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
        writer.write(whole[-4:])
        assert await answer_of(reader) == (200, b"[1,2,3]")


class Swallows(Long):
    """Makes something else of being cancelled."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    async def __call__(self, value=None):
        try:
            return await super().__call__(value)
        except asyncio.CancelledError:
            if self.error is not None:
                raise self.error from None
            return "late"


@pytest.mark.parametrize("error", [None, ValueError("bad")])
async def test_whatever_is_made_of_being_cancelled_the_request_is(error):
    run = Swallows(error)
    serve = Serve(graph(run))
    async with serving(serve) as server:
        async with connected(server) as (_, writer):
            writer.write(request(body=b"1"))
            await asyncio.wait_for(run.began.wait(), WAIT_S)
        await asyncio.wait_for(serve.ended.wait(), WAIT_S)
    assert serve.seen == [499, asyncio.CancelledError]


async def test_a_caller_that_leaves_while_it_is_answered_ends_the_stream():
    class Endless(Response):
        """Does not look by itself whether anybody listens, as starlette's own do."""

        async def __call__(self, scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                await asyncio.sleep(0.01)

    async def pieces():
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    for answer, ends in ((Endless(), asyncio.CancelledError), (StreamingResponse(pieces()), None)):
        serve = Serve(graph(lambda value, answer=answer: echo(answer)))
        async with serving(serve) as server:
            async with connected(server) as (reader, writer):
                writer.write(request(body=b"1"))
                await asyncio.wait_for(reader.readuntil(b"x"), WAIT_S)
            await asyncio.wait_for(serve.ended.wait(), WAIT_S)
        assert serve.seen[0] == 200
        if ends is not None:  # starlette may see it first, and ends its stream as any other
            assert serve.seen[-1] is ends


async def test_a_caller_that_leaves_an_endpoint_ends_it():
    run = Long()
    serve = Serve(graph(echo, endpoints={"/-/ready": run}))
    async with serving(serve) as server:
        async with connected(server) as (_, writer):
            writer.write(request("GET", path="/-/ready"))
            await asyncio.wait_for(run.began.wait(), WAIT_S)
        await asyncio.wait_for(run.cancelled.wait(), WAIT_S)
        await asyncio.wait_for(serve.ended.wait(), WAIT_S)
    assert serve.seen == [499, asyncio.CancelledError]


async def test_requests_that_wait_for_their_turn_are_left_to_serve():
    seen = []

    async def app(scope, receive, send):
        seen.append(UNWATCHED in scope["headers"])
        await graph(echo)(scope, receive, send)

    full = iter([False, True, False])
    async with serving(app, is_full=lambda: next(full)) as server, connected(server) as (reader, writer):
        for _ in range(3):
            writer.write(request(body=b"1"))
            assert await answer_of(reader) == (200, b"1")
    assert seen == [True, False, True]


async def test_a_long_request_leaves_no_cycle():
    async def long(value):
        await asyncio.sleep(LOOK_AFTER_S * 2)
        return value

    gc.collect()
    gc.disable()
    try:
        async with serving(graph(long)) as server, connected(server) as (reader, writer):
            for _ in range(5):
                writer.write(request(body=b"1"))
                assert await answer_of(reader) == (200, b"1")
            await asyncio.sleep(0)
            kept = Counter(type(one) for one in gc.get_objects() if isinstance(one, Departure | RequestResponseCycle))
    finally:
        gc.enable()
    assert kept[Departure] == 0
    assert kept[RequestResponseCycle] <= 2  # of the connection, and of the request that has just ended


async def test_whoever_does_not_want_to_be_watched_is_not():
    run = Long()
    serve = Serve(graph(run))
    async with serving(serve) as server:
        async with connected(server) as (_, writer):
            writer.write(request("POST", b"1", "x-request-disconnect-disabled: ?1"))
            await asyncio.wait_for(run.began.wait(), WAIT_S)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run.cancelled.wait(), 0.2)
        run.go.set()
        await asyncio.wait_for(serve.ended.wait(), WAIT_S)
    assert serve.seen == [200]


@pytest.mark.parametrize("sent", [[], ["x-request-disconnect-disabled: ?1"]])
async def test_a_preprocessor_sees_what_the_caller_sent(sent):
    def look(request):
        return [request.headers.get(UNWATCHED[0].decode()), WATCHES in request.scope]

    async with serving(graph(echo, preprocessor=Hook("m:f", look))) as server, connected(server) as (reader, writer):
        writer.write(request("POST", b"1", *sent))
        assert await answer_of(reader) == (200, b'["?1",false]' if sent else b"[null,false]")


async def test_no_task_stays(caplog):
    run = Long()
    before = asyncio.all_tasks()
    async with serving(graph(run)) as server:
        for leaves in (True, False):
            async with connected(server) as (reader, writer):
                writer.write(request(body=b"1"))
                await asyncio.wait_for(run.began.wait(), WAIT_S)
                if not leaves:
                    run.go.set()
                    await answer_of(reader)
            run.began.clear()
    assert asyncio.all_tasks() == before
    assert not caplog.records


# Where it stands


async def test_it_stands_before_apps_that_watch_only(monkeypatch, caplog):
    monkeypatch.setattr(direct_http, "_watching", False)
    monkeypatch.setattr(direct_http, "runs_user_code_elsewhere", lambda: False)
    replica = SimpleNamespace(is_full=False, http_way=lambda unlogged: None)
    monkeypatch.setattr(direct_http, "own_replica", lambda: replica)
    assert middlewares() == []
    direct_http.watch_callers()
    (one,) = middlewares()
    assert isinstance(one.cls(graph(echo), **one.kwargs), DirectHttp)
    monkeypatch.setattr(direct_http, "runs_user_code_elsewhere", lambda: True)
    assert middlewares() == []


async def test_before_a_serve_that_is_not_as_expected_it_does_not_stand(monkeypatch, caplog):
    def other():
        raise UnexpectedServeError("Serve's Replica has no _semaphore")

    monkeypatch.setattr(direct_http, "_watching", True)
    monkeypatch.setattr(direct_http, "runs_user_code_elsewhere", lambda: False)
    monkeypatch.setattr(direct_http, "own_replica", other)
    assert middlewares() == []
    assert "has no _semaphore" in caplog.text
