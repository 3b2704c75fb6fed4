"""A small gateway that runs a graph over models which are HTTP services: raw ASGI under uvicorn, aiohttp as the client.

    GRAPH=diamond MODELS=http://127.0.0.1:9001,http://127.0.0.1:9002,… uvicorn peers.http_gateway:app

Connections to the models are pooled without a limit, and dropped before the models drop them (start uvicorn with
--timeout-keep-alive 120).
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import aiohttp
import orjson
from peers.asgi import Answer, json_app

KEEP_ALIVE_S = 75
TIMEOUT_S = 60

_HEADERS = {"content-type": "application/json"}


class Gateway:
    """Args:
    models: URLs, in the order in which the graph calls them; the one that joins comes last.
    """

    def __init__(self, models: list[str]) -> None:
        self._models = models
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("user-agent", "accept", "accept-encoding"),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        )

    async def call(self, model: int, *values: Any) -> Any:
        assert self._session is not None
        content = orjson.dumps(values)
        async with self._session.post(self._models[model], data=content, headers=_HEADERS) as response:
            if response.status != 200:
                raise RuntimeError(f"{self._models[model]}: HTTP {response.status}")
            return orjson.loads(await response.read())

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


_gateway = Gateway(os.environ.get("MODELS", "").split(","))
_graphs: dict[str, Answer] = {
    "noop": _gateway.noop,
    "diamond": _gateway.diamond,
    "chain": _gateway.chain,
    "fan": _gateway.fan,
}

app = json_app(_graphs[os.environ.get("GRAPH", "noop")], startup=_gateway.start)
