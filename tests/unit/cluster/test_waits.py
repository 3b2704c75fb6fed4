"""Waits have an end also while the API server does not answer: it hangs, refuses, or comes back in the end."""

from __future__ import annotations

import argparse
import asyncio
import io
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from servepipe.errors import RunError
from servepipe_operator.adapters.kube import Kube
from servepipe_operator.adapters.kube_errors import NotFound, Unavailable
from servepipe_operator.cluster import backend, call, operate, waiting
from servepipe_operator.cluster.connection import ClusterError, Connection, NotNowError

Json = dict[str, Any]
#: Much longer than any wait below, much shorter than any timeout of a request.
MUCH_S = 10.0


def pipeline(ready: bool = False) -> Json:
    conditions = [{"type": "Ready", "status": str(ready), "reason": "Starting", "message": "m1 starts"}]
    return {
        "metadata": {"name": "shop", "namespace": "ns", "uid": "u1", "generation": 1, "resourceVersion": "7"},
        "spec": {"graph": {}, "ingress": {"requestTimeoutSeconds": 1}},
        "status": {"observedGeneration": 1, "conditions": conditions},
    }


class Silent:
    """An API server whose answers are these in turn, and the last for ever: an object, an error, or none at all."""

    def __init__(self, *answers: Json | Exception | None) -> None:
        self._answers: Iterator[Json | Exception | None] = iter(answers)
        self._last: Json | Exception | None = None
        self.asked = 0

    async def get(self, *_: Any) -> Json:
        self.asked += 1
        self._last = answer = next(self._answers, self._last)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        return answer

    def connection(self) -> Connection:
        return Connection(cast("Kube", self), "tests", "ns")


REFUSED = Unavailable("get /apis/...: cannot connect")
SILENCES = pytest.mark.parametrize("silence", [None, REFUSED], ids=["hangs", "refuses"])


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (waiting, operate, backend):
        monkeypatch.setattr(module, "POLL_S", 0.02)
        monkeypatch.setattr(module, "SILENCE_S", 0.1)


@SILENCES
async def test_apply_waits_no_longer_than_it_was_told_to(silence: Exception | None) -> None:
    async with asyncio.timeout(MUCH_S):
        status, text = await waiting.wait_until_ready(
            Silent(pipeline(), silence).connection(), pipeline(), 0.5, stream=io.StringIO()
        )
    assert status == waiting.LATE
    assert "The cluster does not answer" in text
    assert text.endswith("before that: Starting: m1 starts")


async def test_apply_goes_on_when_the_cluster_answers_again() -> None:
    server = Silent(pipeline(), REFUSED, REFUSED, pipeline(ready=True))
    said = io.StringIO()
    assert await waiting.wait_until_ready(server.connection(), pipeline(), MUCH_S, stream=said) == (0, "Ready")
    assert said.getvalue().count("The cluster does not answer") == 1


async def test_a_pipeline_that_is_late_is_not_blamed_on_the_cluster() -> None:
    _, text = await waiting.wait_until_ready(Silent(pipeline()).connection(), pipeline(), 0.3, stream=io.StringIO())
    assert text == "Not ready after 0 s, and still going on: Starting: m1 starts"


@SILENCES
async def test_delete_waits_no_longer_than_it_was_told_to(silence: Exception | None) -> None:
    async with asyncio.timeout(MUCH_S):
        with pytest.raises(ClusterError, match=r"not gone after 0 s; The cluster does not answer"):
            await operate._until_gone(Silent(pipeline(), silence).connection(), "shop", "u1", [], 0.5)


async def test_delete_goes_on_when_the_cluster_answers_again(capsys: pytest.CaptureFixture[str]) -> None:
    server = Silent(pipeline(), REFUSED, REFUSED, NotFound("gone", 404))
    await operate._until_gone(server.connection(), "shop", "u1", [], MUCH_S)
    assert server.asked == 4
    assert capsys.readouterr().err.count("The cluster does not answer") == 1


@SILENCES
async def test_deploy_waits_no_longer_than_it_was_told_to(silence: Exception | None) -> None:
    deploying = backend.KubernetesBackend(timeout_s=0.5)
    async with asyncio.timeout(MUCH_S):
        with pytest.raises(RunError, match=r"is not ready after 0 s: The cluster does not answer .* m1 starts"):
            await deploying._serving(Silent(pipeline(), silence).connection(), pipeline(), [])


async def test_deploy_goes_on_when_the_cluster_answers_again() -> None:
    server = Silent(REFUSED, pipeline(ready=True))
    live = await backend.KubernetesBackend(timeout_s=MUCH_S)._serving(server.connection(), pipeline(), [])
    assert live == pipeline(ready=True)


def test_call_does_not_wait_for_an_answer_that_cannot_come_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(self: call.Route, body: bytes) -> None:
        await asyncio.Event().wait()

    @asynccontextmanager
    async def connected(*_: object) -> AsyncIterator[Connection]:
        yield Silent(pipeline()).connection()

    monkeypatch.setattr(call, "REACH_S", 0.1)
    monkeypatch.setattr(call, "PROXY_S", 0.1)
    monkeypatch.setattr(call, "connect_as", connected)
    monkeypatch.setattr(call.Route, "post", silent)
    began = time.monotonic()
    with pytest.raises(NotNowError, match="No answer within 1 s; the pipeline may have had the request"):
        call.call(argparse.Namespace(body="[]", pipeline="shop"))
    assert time.monotonic() - began < MUCH_S
