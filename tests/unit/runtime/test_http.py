"""What a pipeline means over HTTP, through the plain ASGI app."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import threading

import httpx
import numpy
import pydantic
import pytest
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, StreamingResponse

from servepipe.errors import BadRequestError, NodeError, NotReadyError
from servepipe.graph.ir import Attr, Call, DictOf, Graph, InputRef, ListOf, StepRef
from servepipe.runtime.http import Hook, HttpApp
from servepipe.runtime.interface import Interface


def reading(*paths, output=None):
    """The interface of a graph whose one step reads the input at these paths."""
    step = Call("predict", "model", args=tuple(InputRef(path) for path in paths))
    return Interface.of(Graph((step,), output or StepRef("predict")))


class Recorder:
    """A graph run that remembers its arguments and answers, or raises, what it was given."""

    def __init__(self, answer=None, error=None):
        self.answer, self.error, self.seen = answer, error, []

    async def __call__(self, args, kwargs, *, request_id, deadline):
        self.seen.append((tuple(args), dict(kwargs)))
        self.request_id, self.deadline = request_id, deadline
        if self.error:
            raise self.error
        return self.answer


def client(run, interface=None, **options):
    app = HttpApp(run, interface or reading((0,), (1,), (2,)), **options)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def ask(run, interface=None, content=b"[1, 2, 3]", **options):
    async with client(run, interface, **options) as http:
        return await http.post("/", content=content)


@pytest.mark.parametrize(
    ("paths", "body", "args", "kwargs"),
    [
        ([(0,), (1,), (2,)], "[1, 2, 3]", (1, 2, 3), {}),
        ([(0,)], "[5]", ([5],), {}),  # dag_input[0] of the single argument [5] is 5
        ([()], "[5]", (5,), {}),
        ([()], "[]", (), {}),
        ([("a",)], '{"a": 1}', (), {"a": 1}),
        ([(Attr("a"),)], '{"a": 1}', (), {"a": 1}),
        ([()], '{"a": 1}', ({"a": 1},), {}),
        ([(0, "a")], '[{"a": 1}]', ([{"a": 1}],), {}),
        ([()], '"text"', ("text",), {}),
        ([()], "null", (None,), {}),
        ([], "", (), {}),
    ],
)
async def test_a_body_becomes_arguments(paths, body, args, kwargs):
    run = Recorder("ok")
    response = await ask(run, reading(*paths), body.encode())
    assert response.status_code == 200
    assert run.seen == [(args, kwargs)]


@pytest.mark.parametrize("body", [b"", b"[1,", b"[NaN]", b"\xff\xfe", b"[" * 100_000, b"9" * 5000])
async def test_what_is_not_json_is_400(body):
    run = Recorder()
    response = await ask(run, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "InvalidJson"
    assert not run.seen


@dataclasses.dataclass
class Label:
    name: str
    score: float


class Answer(pydantic.BaseModel):
    labels: list[Label]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"a": [1, None, True, 2.5]}, {"a": [1, None, True, 2.5]}),
        ("text", "text"),
        (8, 8),
        (None, None),
        ((1, 2), [1, 2]),
        (Label("cat", 0.5), {"name": "cat", "score": 0.5}),
        ([Answer(labels=[Label("cat", 1.0)])], [{"labels": [{"name": "cat", "score": 1.0}]}]),
        (numpy.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        ({"score": numpy.float32(0.5)}, {"score": 0.5}),
        ("\ud800", "\ud800"),
    ],
)
async def test_answers_are_json(answer, expected):
    response = await ask(Recorder(answer))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert json.loads(response.content) == expected


async def test_bytes_are_an_octet_stream():
    response = await ask(Recorder(b"\x00\xff"))
    assert (response.content, response.headers["content-type"]) == (b"\x00\xff", "application/octet-stream")


async def test_a_response_is_sent_as_it_is():
    response = await ask(Recorder(PlainTextResponse("hello", 201, {"x-mine": "1"})))
    assert (response.status_code, response.text, response.headers["x-mine"]) == (201, "hello", "1")
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("answer", "output", "step", "message"),
    [
        (object(), None, "predict", "object, which has no JSON form"),
        ({"a": [float("nan")]}, None, "predict", "['a'][0] is nan"),
        ([1, {1, 2}], ListOf((StepRef("left"), StepRef("right"))), "right", "[1] is a set"),
        ({"x": b"raw"}, DictOf((("x", StepRef("left")),)), "left", "['x'] is a bytes"),
        ({(1, 2): 3}, None, "predict", "key of type tuple"),
        (numpy.array([numpy.inf]), None, "predict", "[0] is inf"),
    ],
)
async def test_an_answer_without_json_form_is_500_and_names_step_and_type(answer, output, step, message):
    response = await ask(Recorder(answer), reading((0,), output=output))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["step"]) == (500, "AnswerNotSupported", step)
    assert message in error["message"]


async def test_an_answer_that_contains_itself_is_500():
    answer = []
    answer.append(answer)
    assert "contains itself" in (await ask(Recorder(answer))).json()["error"]["message"]


async def test_other_paths_and_methods():
    async with client(Recorder(1)) as http:
        missing = await http.post("/other", content=b"[]")
        wrong = await http.get("/")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "NotFound")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "MethodNotAllowed")


async def test_the_route_is_left_out_of_the_path():
    app = HttpApp(Recorder(1), reading((0,)))
    for root_path, path, status in [("/pipe", "/pipe", 200), ("/pipe", "/pipe/", 200), ("/pipe", "/pipe/x", 404)]:
        transport = httpx.ASGITransport(app, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            assert (await http.post(path, content=b"[[1]]")).status_code == status


async def test_endpoints_answer_get():
    async def ready():
        return 503, {"notReady": ["m1"]}

    async with client(Recorder(), endpoints={"/-/ready": ready}) as http:
        response = await http.get("/-/ready")
        posted = await http.post("/-/ready")
    assert (response.status_code, response.json()) == (503, {"notReady": ["m1"]})
    assert posted.status_code == 405


async def test_a_large_body_is_413_with_and_without_content_length():
    async def chunks():
        yield b"[" + b"1" * 60
        yield b"1" * 60 + b"]"

    for content in (b"[" + b"1" * 120 + b"]", chunks()):
        response = await ask(Recorder(1), content=content, max_body_bytes=100)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "BodyTooLarge")


async def test_a_slow_graph_is_504():
    async def never(args, kwargs, *, request_id, deadline):
        await asyncio.Event().wait()

    response = await ask(never, timeout_s=0.01)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "Timeout")


async def test_a_timeout_error_of_user_code_is_not_the_requests_timeout():
    response = await ask(Recorder(error=TimeoutError("db")))
    assert (response.status_code, response.json()["error"]["code"]) == (500, "StepFailed")


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ValueError("bad pixel"), 500, {"code": "StepFailed", "message": "the graph failed: ValueError: bad pixel"}),
        (NodeError("a.B", "gone"), 500, {"code": "StepFailed", "message": "the graph failed: a.B: gone"}),
        (
            NotReadyError("node m1 is turned off", code="NodeScaledToZero", step="predict", node="m1"),
            503,
            {"code": "NodeScaledToZero", "message": "node m1 is turned off", "step": "predict", "node": "m1"},
        ),
        (NotReadyError("node m1 is gone"), 503, {"code": "NotReady", "message": "node m1 is gone"}),
        (BadRequestError("no such language"), 422, {"code": "InvalidInput", "message": "no such language"}),
    ],
)
async def test_errors_are_json(error, status, told):
    response = await ask(Recorder(error=error))
    body = response.json()["error"]
    assert response.status_code == status
    assert body.pop("requestId") == response.headers["x-request-id"]
    assert body == told


async def test_the_request_id_is_the_callers_where_it_is_sane():
    run = Recorder(1)
    async with client(run) as http:
        given = await http.post("/", content=b"[1,2,3]", headers={"x-request-id": "abc-1"})
        assert (given.headers["x-request-id"], run.request_id) == ("abc-1", "abc-1")
        for bad in ("x" * 500, "a\tb", ""):
            response = await http.post("/", content=b"[1,2,3]", headers={"x-request-id": bad})
            assert response.headers["x-request-id"] not in (bad, "abc-1")


@pytest.mark.parametrize("sync", [True, False])
async def test_a_preprocessor_makes_the_single_argument(sync):
    thread = threading.get_ident()

    def query(request: Request):
        assert threading.get_ident() != thread
        return request.query_params["n"]

    async def body(request: Request):
        return (await request.body()).decode()

    run = Recorder("ok")
    hook = Hook("mod:fn", query if sync else body)
    async with client(run, preprocessor=hook) as http:
        response = await http.post("/?n=7", content=b"7")
    assert response.status_code == 200
    assert run.seen == [(("7",), {})]


async def test_a_preprocessor_that_gives_too_little_is_422_and_named():
    async def to_int(request: Request):
        return int(await request.body())

    run = Recorder(error=BadRequestError("the input has no [0]"))
    response = await ask(run, content=b"5", preprocessor=Hook("diamond:to_int", to_int))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, "InvalidInput")
    assert "input[0], input[1], input[2], but the preprocessor diamond:to_int returned a single int" in error["message"]


async def test_a_preprocessor_that_raises_is_500_and_named():
    def broken(request):
        raise KeyError("user")

    response = await ask(Recorder(1), preprocessor=Hook("mod:broken", broken))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (500, "PreprocessorFailed")
    assert "mod:broken raised KeyError: 'user'" in error["message"]


async def test_a_preprocessor_may_refuse():
    def refuse(request):
        raise BadRequestError("only images", status=415, code="UnsupportedMedia")

    response = await ask(Recorder(1), preprocessor=Hook("mod:refuse", refuse))
    assert (response.status_code, response.json()["error"]["code"]) == (415, "UnsupportedMedia")


async def test_a_postprocessor_makes_the_answer():
    def shout(output):
        return PlainTextResponse(output.upper())

    class Later:
        async def __call__(self, output):
            return {"said": output}

    assert (await ask(Recorder("hi"), postprocessor=Hook("m:f", shout))).text == "HI"
    assert (await ask(Recorder("hi"), postprocessor=Hook("m:g", Later()))).json() == {"said": "hi"}


async def test_lifespan_and_websockets_are_answered():
    sent = []
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message["type"])

    app = HttpApp(Recorder(), reading((0,)))
    await app({"type": "lifespan"}, receive, send)
    await app({"type": "websocket"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]


def raises(error):
    def hook(_):
        raise error

    return hook


def raises_async(error):
    async def hook(_):
        raise error

    return hook


@pytest.mark.parametrize("make", [raises, raises_async], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (StopIteration(), "StopIteration"),
        (asyncio.CancelledError(), "CancelledError: the call was cancelled, though not by its caller"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_whatever_a_hook_raises_ends_its_request_and_nothing_else(make, error, told):
    hook = Hook("m:f", make(error))
    before = await ask(Recorder(1), reading(()), preprocessor=hook, timeout_s=20)
    assert (before.status_code, before.json()["error"]["code"]) == (500, "PreprocessorFailed")
    assert told in before.json()["error"]["message"]
    after = await ask(Recorder(1), postprocessor=hook, timeout_s=20)
    assert (after.status_code, after.json()["error"]["code"]) == (500, "PostprocessorFailed")


async def test_a_hook_that_is_cancelled_with_its_request_stays_cancelled():
    inside = asyncio.Event()

    async def wait(_):
        inside.set()
        await asyncio.Event().wait()

    asking = asyncio.create_task(ask(Recorder(1), reading(()), preprocessor=Hook("m:f", wait)))
    await asyncio.wait_for(inside.wait(), 10)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_preprocessor_that_reads_the_body_sees_that_its_caller_is_still_there():
    async def look(request):
        return [len(await request.body()), await request.is_disconnected()]

    body = [{"type": "http.request", "body": b"abc", "more_body": False}]
    left = asyncio.Event()

    async def receive():
        if body:
            return body.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    sent = []

    async def send(message):
        sent.append(message)

    run = Recorder(1)
    app = HttpApp(run, reading(()), preprocessor=Hook("m:f", look))
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    await app(dict(scope), receive, send)
    body.append({"type": "http.request", "body": b"abc", "more_body": False})
    left.set()
    await app(dict(scope), receive, send)
    assert [seen for (seen,), _ in run.seen] == [[3, False], [3, True]]


@pytest.mark.parametrize("status", [0, 99, 200, 399, 600, 799, "404", None])
async def test_a_status_that_is_no_error_is_500(status):
    error = BadRequestError("no")
    error.status = status
    answer = await ask(Recorder(error=error))
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "no")


async def test_a_content_length_of_thousands_of_digits_is_413():
    async with client(Recorder(1)) as http:
        answer = await http.post("/", content=b"[]", headers={"content-length": "9" * 5000})
    assert answer.status_code == 413


@dataclasses.dataclass
class Torn:
    value: int


class Refusing(dict):
    def items(self):
        raise KeyError("nothing here")


def torn():
    torn = Torn(1)
    del torn.value
    return torn


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torn(), "the answer is a"),
        ({"deep": [torn()]}, "the answer['deep'][0] is a"),
        (Refusing(a=1), "cannot be written as JSON: KeyError"),
        (10**5000, "cannot be written as JSON: ValueError"),
    ],
    ids=["torn", "torn inside", "refusing", "huge number"],
)
async def test_an_answer_that_fails_while_it_is_read_is_500_and_named(answer, message):
    told = await ask(Recorder(answer))
    assert (told.status_code, told.json()["error"]["code"]) == (500, "AnswerNotSupported")
    assert message in told.json()["error"]["message"]


async def test_a_response_that_cannot_be_sent_is_500(tmp_path):
    told = await ask(Recorder(FileResponse(tmp_path / "missing")))
    assert (told.status_code, told.json()["error"]["code"]) == (500, "StepFailed")
    assert "missing" in told.json()["error"]["message"]


async def test_a_response_that_fails_half_way_is_the_servers_to_end():
    async def half():
        yield b"half"
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await ask(Recorder(StreamingResponse(half())))


async def test_slow_hooks_leave_the_event_loops_threads_to_others():
    over, inside = threading.Event(), threading.Semaphore(0)

    def slow(_):
        inside.release()
        over.wait(30)

    most = min(32, (os.cpu_count() or 1) + 4)  # the loop's own threads
    asking = [asyncio.create_task(ask(Recorder(1), reading(()), preprocessor=Hook("m:f", slow))) for _ in range(most)]
    try:
        for _ in range(most):
            while not inside.acquire(blocking=False):
                await asyncio.wait(asking, timeout=0.01)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 1), 10) == 1
    finally:
        over.set()
    assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}
