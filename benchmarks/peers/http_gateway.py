"""A small gateway that runs a graph over models which are HTTP services: raw ASGI under uvicorn, aiohttp as the client.

    GRAPH=diamond MODELS=http://127.0.0.1:9001,http://127.0.0.1:9002,… uvicorn peers.http_gateway:app

Connections to the models are pooled without a limit, and dropped before the models drop them (start uvicorn with
--timeout-keep-alive 120). Large values stream from the models that give them to the one that takes them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
from peers import http_triage
from peers.arrays import CONTENT_TYPE
from peers.asgi import Answer, App, json_app

KEEP_ALIVE_S = 75
TIMEOUT_S = 60
#: Values that together are not larger are read before they are sent on: a stream costs more than it saves.
WHOLE_BYTES = 1024 * 1024

_JSON = {"content-type": "application/json"}


class Gateway:
    """Args:
    models: URLs, in the order in which the graph calls them; the one that joins comes last.
    """

    def __init__(self, models: list[str]) -> None:
        self._models = models
        self._busy = [0] * len(models)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("user-agent", "accept", "accept-encoding"),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        )

    async def opened(self, model: int, content: Any, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """A response whose body has not been read yet, and which is to be closed."""
        assert self._session is not None
        response = await self._session.post(self._models[model], data=content, headers=headers)
        if response.status != 200:
            response.close()
            raise RuntimeError(f"{self._models[model]}: HTTP {response.status}")
        return response

    async def post(self, model: int, content: Any, headers: dict[str, str]) -> bytes:
        async with await self.opened(model, content, headers) as response:
            return await response.read()

    async def call(self, model: int, *values: Any) -> Any:
        return orjson.loads(await self.post(model, orjson.dumps(values), _JSON))

    async def least_busy(self, *values: Any) -> Any:
        """The models are replicas of one: the one with the fewest calls under way."""
        model = min(range(len(self._models)), key=self._busy.__getitem__)
        self._busy[model] += 1
        try:
            return await self.call(model, *values)
        finally:
            self._busy[model] -= 1

    async def noop(self, x: Any) -> Any:
        return await self.call(0, x)

    async def diamond(self, a: int, b: int, c: int) -> Any:
        return await self.call(2, *await asyncio.gather(self.call(0, a), self.call(1, b)), c)

    async def chain(self, x: int) -> Any:
        value: Any = x
        for model in range(len(self._models)):
            value = await self.call(model, value)
        return value

    async def fan(self, x: int) -> Any:
        last = len(self._models) - 1
        return await self.call(last, *await asyncio.gather(*(self.call(model, x) for model in range(last))))

    async def values(self, size: int) -> Any:
        content = orjson.dumps([size])
        left, right = await asyncio.gather(self.opened(0, content, _JSON), self.opened(1, content, _JSON))
        async with left, right:
            total = (left.content_length or 0) + (right.content_length or 0)
            if total <= WHOLE_BYTES:
                both: Any = b"".join(await asyncio.gather(left.read(), right.read()))
            else:
                both = _one_after_the_other(left, right)
            headers = {"content-type": CONTENT_TYPE, "content-length": str(total)}
            return orjson.loads(await self.post(2, both, headers))


async def _one_after_the_other(*responses: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    for response in responses:
        async for piece in response.content.iter_any():
            yield piece


def gateway_app(graph: str, models: list[str]) -> App:
    """The ASGI app of one graph."""
    gateway = Gateway(models)
    if graph == "triage":
        return http_triage.gateway_app(gateway.post, gateway.start)
    answers: dict[str, Answer] = {
        "noop": gateway.noop,
        "diamond": gateway.diamond,
        "chain": gateway.chain,
        "fan": gateway.fan,
        "mixture": gateway.least_busy,
        "batch": gateway.least_busy,
        "values": gateway.values,
    }
    return json_app(answers[graph], startup=gateway.start)


app = gateway_app(os.environ.get("GRAPH", "noop"), os.environ.get("MODELS", "").split(","))
