"""The in-process client: the ingress's HTTP behaviour for every form in which a pipeline can be given."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

import servepipe
from servepipe import ServeInputNode, ServePipeError, api, build, remote
from servepipe.testing import TestClient

SOURCE = """
from servepipe import ServeInputNode, build, remote

@remote
class Model:
    def __init__(self, val):
        self.val = val
    def forward(self, x):
        return self.val * x

@remote
def ensemble(a, b, c):
    return a + b + c

async def from_request(request):
    return [int(number) for number in request.query_params["numbers"].split(",")]

def with_unit(total):
    return {"total": total}

with ServeInputNode(PREPROCESSOR) as i:
    m1 = Model.bind(1)
    m2 = Model.bind(2)
    m1_output = m1.forward.bind(i[0])
    m2_output = m2.forward.bind(i[1])
    dag = ensemble.bind(m1_output, m2_output, i[2])

app = build(dag, name="diamond"POSTPROCESSOR)
"""

Written = Callable[..., Any]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """A module with the diamond, imported."""
    monkeypatch.syspath_prepend(tmp_path)
    count = 0

    def write(preprocessor: str = "", postprocessor: str = "") -> ModuleType:
        nonlocal count
        count += 1
        name = f"client_pipeline_{count}"
        source = SOURCE.replace("PREPROCESSOR", preprocessor).replace("POSTPROCESSOR", postprocessor)
        (tmp_path / f"{name}.py").write_text(source)
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    return write


def test_every_form_of_a_pipeline_answers_the_same(written: Written, tmp_path: Path) -> None:
    module = written()
    path = tmp_path / "pipeline.yaml"
    module.app.to_yaml(path)

    for pipeline in (module.app, module.dag, path, str(path), servepipe.load(path), api.read(path)):
        with TestClient(pipeline) as client:
            response = client.post("/", json=[1, 2, 3])
            assert (response.status_code, response.json(), response.text, response.content) == (200, 8, "8", b"8")
            assert response.headers["Content-Type"] == "application/json"
            assert client.post("/", content="[1, 2, 3]").json() == 8
            assert (
                client.post("/", content=b"[1, 2, 3]", headers={"X-Request-ID": "r7"}).headers["x-request-id"] == "r7"
            )


def test_errors_are_those_of_the_ingress(written: Written, caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(written().app) as client:

        def error(status: int, method: str = "POST", path: str = "/", **request: Any) -> Any:
            response = client.request(method, path, **request)
            assert response.status_code == status, response
            return response.json()["error"]

        assert error(400, content="[1, 2")["code"] == "InvalidJson"
        assert error(404, path="/nowhere", json=1)["code"] == "NotFound"
        assert error(405, method="GET")["code"] == "MethodNotAllowed"
        missing = error(422, json=1)
        assert missing["code"] == "InvalidInput"
        assert all(name in missing["message"] for name in ("input[0]", "input[1]", "input[2]"))
        failed = error(500, json=[1, "x", 3])
        assert (failed["code"], failed["step"], failed["node"]) == ("StepFailed", "dag", "ensemble")
        assert "TypeError" in failed["message"]
    assert "in step dag, calling ensemble" in caplog.text


def test_exceptions_of_every_sort_are_a_500_that_names_the_step() -> None:
    class OddConstructorError(Exception):
        def __init__(self, one: int, two: int) -> None:
            self.both = one, two

    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text either")

    class Outside(BaseException):
        pass

    class Model:
        def sync(self, kind: int) -> None:
            raise raised[kind]

        async def awaited(self, kind: int) -> None:
            raise raised[kind]

    raised = [
        OddConstructorError(1, 2),
        UnprintableError(),
        Outside("!"),
        TimeoutError("mine"),
        ExceptionGroup("g", [OSError()]),
    ]
    for method in ("sync", "awaited"):
        with ServeInputNode() as i:
            model = remote(Model).bind()
            out = getattr(model, method).bind(i)
        with TestClient(out) as client:
            for kind, error in enumerate(raised):
                response = client.post("/", json=kind)
                told = response.json()["error"]
                assert (response.status_code, told["code"], told["step"]) == (500, "StepFailed", "out")
                assert type(error).__name__ in told["message"]


def test_endpoints(written: Written) -> None:
    with TestClient(written().app) as client:
        ready = client.get("/-/ready")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        described = client.get("/-/graph").json()
        assert described["pipeline"] == "diamond"
        assert [step["name"] for step in described["graph"]["steps"]] == ["m1-output", "m2-output", "dag"]


def test_preprocessor_and_postprocessor_run_for_http(written: Written, tmp_path: Path) -> None:
    module = written("preprocessor=from_request", ", postprocessor=with_unit")
    path = tmp_path / "pipeline.yaml"
    module.app.to_yaml(path)

    for pipeline in (module.app, path):
        with TestClient(pipeline) as client:
            assert client.get("/?numbers=1,2,3").json() == {"total": 8}
            failed = client.get("/?number=1").json()["error"]
            assert (failed["code"], "from_request" in failed["message"]) == ("PreprocessorFailed", True)
            short = client.get("/?numbers=1")
            assert short.status_code == 422
            assert "from_request" in short.json()["error"]["message"]


def test_fakes_and_life_cycle() -> None:
    events: list[str] = []

    @remote
    class Expensive:
        def __init__(self) -> None:
            events.append("built")

        def answer(self, question: str) -> str:
            return question

        def close(self) -> None:
            events.append("closed")

    class Fake:
        def answer(self, question: str) -> str:
            return f"{question}? 42"

    with ServeInputNode() as i:
        big_oracle = Expensive.bind()
        reply = big_oracle.answer.bind(i)

    app = build(reply, name="oracle")
    for name in ("big_oracle", "big-oracle"):
        with TestClient(app, fakes={name: Fake()}) as client:
            assert client.post("/", json="why").json() == "why? 42"
    assert events == []
    with pytest.raises(ServePipeError, match="no node 'oracle'"):
        TestClient(app, fakes={"oracle": Fake()})
    with TestClient(app) as client:
        assert events == ["built"]
        assert client.post("/", json="why").json() == "why"
    assert events == ["built", "closed"]


def test_a_node_that_cannot_be_built_shows_when_the_client_starts() -> None:
    @remote
    class Broken:
        def __init__(self) -> None:
            raise OSError("weights are missing")

        def f(self) -> None: ...

    with ServeInputNode():
        broken = Broken.bind()
        out = broken.f.bind()

    with pytest.raises(OSError, match="weights are missing"), TestClient(build(out, name="broken")):
        pass


def test_limits_of_the_ingress_hold(written: Written) -> None:
    @remote
    class Slow:
        async def f(self, x: Any) -> None:
            await asyncio.Event().wait()

    with ServeInputNode() as i:
        slow = Slow.bind()
        out = slow.f.bind(i)

    app = build(out, name="slow")
    app.ingress.set_options(request_timeout_s=1, max_body_bytes=10)
    with TestClient(app) as client:
        assert client.post("/", json="x" * 20).status_code == 413
        timed_out = client.post("/", json="x")
        assert (timed_out.status_code, timed_out.json()["error"]["code"]) == (504, "Timeout")


def test_what_an_answer_may_be() -> None:
    @remote
    def answer(kind: str) -> Any:
        return {"bytes": b"\x00\x01", "response": PlainTextResponse("short", 418, {"x-a": "1"}), "none": None}[kind]

    with ServeInputNode() as i:
        out = answer.bind(i)

    with TestClient(build(out, name="answers")) as client:
        raw = client.post("/", json="bytes")
        assert (raw.content, raw.headers["content-type"]) == (b"\x00\x01", "application/octet-stream")
        own = client.post("/", json="response")
        assert (own.status_code, own.text, own.headers["X-A"]) == (418, "short", "1")
        assert client.post("/", json="none").json() is None
        assert repr(own) == "<Response 418: b'short'>"
        assert {"x-a", "content-length"} <= set(own.headers)
        assert len(own.headers) == len(list(own.headers))
        assert "x-a" in repr(own.headers)


def test_a_preprocessor_sees_the_whole_request() -> None:
    async def everything(request: Request) -> Any:
        return {
            "method": request.method,
            "path": request.url.path,
            "query": dict(request.query_params),
            "agent": request.headers["user-agent"],
            "body": (await request.body()).decode(),
        }

    @remote
    def same(value: Any) -> Any:
        return value

    with ServeInputNode(preprocessor=everything) as i:
        out = same.bind(i)

    with TestClient(build(out, name="mirror")) as client:
        response = client.request("PUT", "/?a=b%20c", content="ä", headers={"User-Agent": "test"})
    assert json.loads(response.text) == {
        "method": "PUT",
        "path": "/",
        "query": {"a": "b c"},
        "agent": "test",
        "body": "ä",
    }


def test_only_pipelines_can_be_tested() -> None:
    with pytest.raises(ServePipeError, match="cannot test a int"):
        TestClient(5)
