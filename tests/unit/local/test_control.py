"""The control server and its client, over a real socket."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from servepipe.errors import RunError, ServePipeError
from servepipe_operator.adapters.processes import Process
from servepipe_operator.local.client import ControlClient, post_json
from servepipe_operator.local.control import ControlServer
from servepipe_operator.local.run_folder import Run

RUN = Run("diamond", "Running", "http://127.0.0.1:1/", "", "secret", Process(1, "x"))


class Fake:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def snapshot(self) -> dict[str, Any]:
        return {"pipeline": "diamond"}

    async def apply(self, document: str, folder: str) -> dict[str, Any]:
        self.calls.append((document, folder))
        if document == "bad":
            raise ServePipeError("Unknown field 'replica'", where="spec.nodes.m1", fix="Did you mean 'replicas'?")
        return {"generation": 2}

    async def scale(self, node: str, replicas: int) -> dict[str, Any]:
        self.calls.append((node, replicas))
        return {"generation": 3}

    async def logs(self, node: str, follow: bool, previous: bool) -> AsyncIterator[str]:
        if previous:
            yield "ended"
        if node == "nobody":
            raise ServePipeError("There is no node 'nobody'")
        for line in ("one", "zwei ü") if node == "m/1" else ():
            yield line
        if follow:
            yield "more"

    def stop(self) -> None:
        self.calls.append("stop")


@pytest.fixture
async def served() -> AsyncIterator[tuple[Fake, ControlClient, str]]:
    fake = Fake()
    server = ControlServer(fake, "secret")
    url = await server.start()
    yield fake, ControlClient(replace(RUN, control=url)), url
    await server.stop()


Served = tuple[Fake, ControlClient, str]


async def test_it_listens_on_loopback_only(served: Served) -> None:
    assert served[2].startswith("http://127.0.0.1:")


async def test_every_call(served: Served) -> None:
    fake, client, _ = served

    def calls() -> None:
        assert client.status() == {"pipeline": "diamond"}
        assert client.apply("kind: ServePipeline", "/a folder/ü") == {"generation": 2}
        assert client.scale("m1", 3) == {"generation": 3}
        assert list(client.logs("m/1", follow=False)) == ["one", "zwei ü"]
        assert list(client.logs("m/1", follow=True)) == ["one", "zwei ü", "more"]
        assert list(client.logs("quiet", follow=False)) == []
        assert list(client.logs("quiet", follow=False, previous=True)) == ["ended"]
        client.down()

    await asyncio.to_thread(calls)
    assert fake.calls == [("kind: ServePipeline", "/a folder/ü"), ("m1", 3), "stop"]


async def test_a_refusal_arrives_as_it_was_raised(served: Served) -> None:
    _, client, _ = served
    with pytest.raises(ServePipeError) as caught:
        await asyncio.to_thread(client.apply, "bad", "")
    assert (caught.value.where, caught.value.fix) == ("spec.nodes.m1", "Did you mean 'replicas'?")
    with pytest.raises(ServePipeError, match="There is no node"):
        await asyncio.to_thread(lambda: list(client.logs("nobody", follow=True)))


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer secret", "Origin": "http://evil"}]
)
async def test_without_the_token_or_from_a_browser_nothing_happens(served: Served, headers: dict[str, str]) -> None:
    fake, _, url = served

    def down() -> int:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{url}/v1/down", b"", headers))
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        return 200

    assert await asyncio.to_thread(down) == 403
    assert fake.calls == []


@pytest.mark.parametrize("body", ["{", "[]", "{}", '{"node": "m1", "replicas": true}', '{"node": 1, "replicas": 1}'])
async def test_a_scale_without_sense(served: Served, body: str) -> None:
    _, client, _ = served
    with pytest.raises(ServePipeError):
        await asyncio.to_thread(client._request, "POST", "/v1/scale", body.encode())


async def test_nobody_there() -> None:
    with pytest.raises(RunError, match="does not answer"):
        await asyncio.to_thread(ControlClient(replace(RUN, control="http://127.0.0.1:1")).status)
    with pytest.raises(RunError, match="Nothing answers"):
        await asyncio.to_thread(post_json, "http://127.0.0.1:1/", b"[]")


async def test_requests_reach_the_pipeline(served: Served) -> None:
    status, kind, body = await asyncio.to_thread(post_json, f"{served[2]}/v1/scale", b"[1]")
    assert (status, kind) == (403, "application/json")
    assert "token" in json.loads(body)["error"]["what"]
