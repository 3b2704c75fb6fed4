"""The peers say what the benchmark expects, as far as that can be seen without Ray."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import orjson
import pytest
from graphbench.cases import CASES, Case, Request
from graphbench.contestants import CONTESTANTS
from graphbench.systems.http_services import MODELS
from graphbench.systems.ray_serve import applications_for
from peers import floor, handles, http_gateway, http_model, one_deployment
from peers.asgi import json_app
from ray import serve

PATIENCE_S = 30.0
SMALL = [case for case in CASES.values() if case.kind == "load" and case.name not in ("triage", "batch")]


def requests_of(case: Case) -> list[Request]:
    return [
        request for load in case.loads for request in load.requests if load.connections == 1 and "MiB" not in load.name
    ]


async def answer_of(app: Any, body: bytes, path: str = "/") -> Any:
    """What an ASGI app answers, whose body comes in two pieces."""
    pieces = [body[:2], body[2:]]
    sent: list[dict[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({"type": "http", "path": path}, receive, send)
    start, content = sent
    assert start["status"] == 200
    assert dict(start["headers"])[b"content-length"] == str(len(content["body"])).encode()
    return orjson.loads(content["body"])


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
async def test_one_deployment_answers_right(case: Case) -> None:
    cls, _ = one_deployment._GRAPHS[case.name]
    everything = cls()
    for request in requests_of(case):
        assert await everything.answer(*orjson.loads(request.body)) == request.answer


@pytest.mark.parametrize("graph", [graph for graph in handles._GRAPHS if graph not in ("batch", "triage")])
def test_handles_answer_right(graph: str) -> None:
    # Serve's own testing mode, in this process and without Ray; it has no batches.
    ingress = serve.run(handles.build({"graph": graph}), name=graph, _local_testing_mode=True)
    for request in requests_of(CASES[graph.partition("-")[0]]):
        answer = ingress.answer.remote(*orjson.loads(request.body)).result(timeout_s=PATIENCE_S)
        assert answer == request.answer


@pytest.mark.parametrize("case", [case for case in SMALL if "floor" in case.contestants], ids=lambda case: case.name)
async def test_the_floor_answers_right_and_the_no_op_the_last_value(case: Case) -> None:
    app = floor.app_for(case.name)
    for request in requests_of(case):
        assert await answer_of(app, request.body) == request.answer
        assert await answer_of(app, request.body, "/floor/noop") == request.noop


@pytest.mark.parametrize("case", [case for case in SMALL if "http" in case.contestants], ids=lambda case: case.name)
async def test_the_gateway_calls_the_models_in_their_order(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [json_app(http_model._model(*model)) for model in MODELS[case.name]]
    gateway = http_gateway.Gateway([""] * len(models))

    async def call(model: int, *values: Any) -> Any:
        return await answer_of(models[model], orjson.dumps(values))

    monkeypatch.setattr(gateway, "call", call)
    for request in requests_of(case):
        assert await getattr(gateway, case.name)(*orjson.loads(request.body)) == request.answer


def test_there_is_a_graph_for_every_application() -> None:
    for case in CASES.values():
        by_hand = [
            CONTESTANTS[name] for name in case.contestants if name in CONTESTANTS and CONTESTANTS[name].application
        ]
        for application in applications_for(case, by_hand, access_log=True):
            graph = application["args"]["graph"]
            match application["import_path"]:
                case "peers.handles:build":
                    assert graph in handles._GRAPHS
                case "peers.one_deployment:build":
                    assert graph == "triage" or graph in one_deployment._GRAPHS
                case "peers.floor:build":
                    assert graph in floor._FUNCTIONS
                case other:
                    pytest.fail(f"nobody builds {other}")
