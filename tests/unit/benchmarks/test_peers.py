"""The peers say what the benchmark expects, as far as that can be seen without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import orjson
import pytest
from graphbench.cases import CASES, Case, Request
from graphbench.contestants import CONTESTANTS
from graphbench.systems.http_services import MODELS, HttpSystem
from graphbench.systems.ray_serve import applications_for
from peers import floor, handles, http_gateway, http_model, http_triage, noop, one_deployment, triage_graph
from peers.arrays import packed, unpacked
from peers.asgi import json_app
from peers.batcher import Batcher
from ray import serve

PATIENCE_S = 30.0
SMALL = [case for case in CASES.values() if case.kind == "load" and case.name not in ("triage", "batch")]


def requests_of(case: Case) -> list[Request]:
    return [
        request for load in case.loads for request in load.requests if load.connections == 1 and "MiB" not in load.name
    ]


async def bytes_of(app: Any, body: bytes) -> bytes:
    """What an ASGI app answers, whose body comes in two pieces."""
    pieces = [body[:2], body[2:]]
    sent: list[dict[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
    start, *rest = sent
    content = b"".join(message["body"] for message in rest)
    assert start["status"] == 200
    assert dict(start["headers"])[b"content-length"] == str(len(content)).encode()
    assert [bool(message.get("more_body")) for message in rest] == [True] * (len(rest) - 1) + [False]
    return content


async def answer_of(app: Any, body: bytes) -> Any:
    return orjson.loads(await bytes_of(app, body))


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


@pytest.mark.parametrize("case", [*SMALL, CASES["batch"]], ids=lambda case: case.name)
async def test_the_floor_and_the_no_op_answer_right(case: Case) -> None:
    app, no_op = floor.app_for(case.name), json_app(noop.last)
    for request in requests_of(case):
        assert await answer_of(app, request.body) == request.answer
        assert await answer_of(no_op, request.body) == request.noop


JSON_OVER_HTTP = [case for case in (*SMALL, CASES["batch"]) if case.name != "values"]


@pytest.mark.parametrize("case", JSON_OVER_HTTP, ids=lambda case: case.name)
async def test_the_gateway_calls_the_models_in_their_order(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [http_model.model_app(*model) for model in MODELS[case.name]]

    async def post(gateway: http_gateway.Gateway, model: int, content: bytes, headers: Any) -> bytes:
        return await bytes_of(models[model], content)

    monkeypatch.setattr(http_gateway.Gateway, "post", post)
    gateway = http_gateway.gateway_app(case.name, [""] * len(models))
    for request in requests_of(case):
        assert await answer_of(gateway, request.body) == request.answer


async def test_the_gateway_sends_to_the_replica_with_the_fewest_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = http_gateway.Gateway(["", ""])
    asked: list[int] = []
    waiting = asyncio.Event()

    async def call(model: int, *values: Any) -> Any:
        asked.append(model)
        await waiting.wait()

    monkeypatch.setattr(gateway, "call", call)
    calls = [asyncio.create_task(gateway.least_busy(number)) for number in range(4)]
    await asyncio.sleep(0)
    assert asked == [0, 1, 0, 1]
    waiting.set()
    await asyncio.gather(*calls)
    await gateway.least_busy(5)
    assert asked[-1] == 0, "all of them have ended"


@pytest.mark.parametrize("size", [64 * 1024, 2 * 1024 * 1024], ids=["whole", "streamed"])
async def test_values_go_over_http_from_process_to_process(size: int, tmp_path: Path) -> None:
    assert (size < http_gateway.WHOLE_BYTES) == (size == 64 * 1024)
    system = HttpSystem(CASES["values"], tmp_path)
    try:
        await system.start()
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                async with session.post(system.url(CONTESTANTS["http"]), data=orjson.dumps([size])) as response:
                    assert await response.json() == [size, 1, 1, size, 2, 2]
    finally:
        await system.stop()


@pytest.mark.parametrize(
    "values",
    [
        [],
        [np.arange(5, dtype=np.int16)],
        [np.zeros((2, 3, 4), np.uint8), np.array(1.5), np.asfortranarray(np.arange(6.0).reshape(2, 3))],
        [np.zeros((0, 3))],
    ],
    ids=len,
)
def test_arrays_come_out_as_they_went_in(values: list[Any]) -> None:
    found = unpacked(b"".join(packed(values)))
    assert len(found) == len(values)
    for value, came in zip(values, found, strict=True):
        assert (came.dtype, came.shape) == (value.dtype, value.shape)
        assert np.array_equal(came, value)


@pytest.mark.parametrize("name", http_triage.CODINGS)
async def test_models_of_the_example_take_and_give_what_the_graph_sends(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    takes = {
        "orientation": [image, image[:1]],
        "recognition": image,
        "language_detector": "äh",
        "sentiment_analysis": "äh",
    }
    gives = {"text_detection": {"readable": True, "lines": [image]}, "orientation": [image]}
    value, answer = takes.get(name, b"\x00file"), gives.get(name, {"found": ["ä", 1]})
    method, _, _ = http_triage.CODINGS[name]
    taken: list[Any] = []

    def compute(value: Any) -> Any:
        taken.append(value)
        return answer

    monkeypatch.setattr(http_triage, "makers", lambda: {name: lambda: SimpleNamespace(**{method: compute})})
    model = http_triage.model_app(name)

    async def post(number: int, content: bytes, headers: Any) -> bytes:
        assert triage_graph.MODELS[number] == name
        return await bytes_of(model, content)

    found = await http_triage.OverHttp(post).call(name, method, value)
    np.testing.assert_equal(taken, [value])
    np.testing.assert_equal(found, answer)


def test_a_page_that_is_not_readable_stays_so_over_http() -> None:
    _, _, gives = http_triage.CODINGS["text_detection"]
    for page in ({"readable": False, "lines": []}, {"readable": True, "lines": []}):
        assert gives.decode(gives.encode(page)) == page


def test_the_gateway_of_the_example_has_a_service_for_each_model() -> None:
    assert [argument for _, argument in MODELS["triage"]] == list(triage_graph.MODELS) == list(http_triage.CODINGS)


async def test_what_meets_is_one_batch_and_what_comes_meanwhile_the_next() -> None:
    batches: list[list[int]] = []

    async def run(items: list[int]) -> list[int]:
        batches.append(items)
        await asyncio.sleep(0.05)
        return [item + 1 for item in items]

    batcher = Batcher(run, max_size=3, max_wait_s=0.01)
    found = [asyncio.create_task(batcher.one(item)) for item in range(4)]
    await asyncio.sleep(0.03)
    found.append(asyncio.create_task(batcher.one(4)))
    assert await asyncio.gather(*found) == [1, 2, 3, 4, 5]
    assert batches == [[0, 1, 2], [3, 4]]


async def test_a_batch_that_fails_fails_those_in_it() -> None:
    async def run(items: list[int]) -> list[float]:
        await asyncio.sleep(0)
        return [1 / item for item in items]

    batcher = Batcher(run, max_size=2, max_wait_s=0.01)
    found = await asyncio.gather(*(batcher.one(item) for item in (1, 0, 2, 4)), return_exceptions=True)
    assert [type(one) for one in found[:2]] == [ZeroDivisionError] * 2
    assert found[2:] == [0.5, 0.25]


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
                case "peers.noop:build":
                    pass
                case other:
                    pytest.fail(f"nobody builds {other}")
