"""The benchmarked graphs with all models in one Ray Serve deployment: what people do whom hops cost too much.

Nothing can be scaled or upgraded alone any more. `build` is what Serve's configuration names.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from peers import triage
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response
from workload import models


class Everything:
    """JSON in, the graph as plain Python, JSON out."""

    async def __call__(self, request: Request) -> Response:
        answer = await self.answer(*orjson.loads(await request.body()))
        return Response(orjson.dumps(answer), media_type="application/json")

    async def answer(self, *values: Any) -> Any:
        raise NotImplementedError


class Noop(Everything):
    async def answer(self, *values: Any) -> Any:
        return await models.echo(values[0])


class Diamond(Everything):
    def __init__(self) -> None:
        self.m1, self.m2 = models.Scale(1), models.Scale(2)

    async def answer(self, *values: Any) -> Any:
        a, b, c = values
        return await models.ensemble(*await asyncio.gather(self.m1.forward(a), self.m2.forward(b)), c)


class Chain(Everything):
    def __init__(self) -> None:
        self.models = [models.Increment() for _ in range(5)]

    async def answer(self, *values: Any) -> Any:
        value = values[0]
        for model in self.models:
            value = await model.forward(value)
        return value


class Fan(Everything):
    def __init__(self) -> None:
        self.models = [models.Scale(factor) for factor in range(1, 9)]

    async def answer(self, *values: Any) -> Any:
        return await models.total(*await asyncio.gather(*(model.forward(values[0]) for model in self.models)))


class Mixture(Everything):
    def __init__(self) -> None:
        self.work = models.Work()

    async def answer(self, *values: Any) -> Any:
        return await self.work.wait(values[0])


class Values(Everything):
    def __init__(self) -> None:
        self.left, self.right = models.Source(1), models.Source(2)

    async def answer(self, *values: Any) -> Any:
        return await models.measure(*await asyncio.gather(self.left.get(values[0]), self.right.get(values[0])))


class Batch(Everything):
    def __init__(self) -> None:
        self.kernel = models.Kernel()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def run(self, items: list[int]) -> list[int]:
        return await self.kernel.run(items)

    async def answer(self, *values: Any) -> Any:
        return await self.run(values[0])


_GRAPHS: dict[str, tuple[type[Everything], int]] = {
    "noop": (Noop, 1),
    "diamond": (Diamond, 1),
    "chain": (Chain, 1),
    "fan": (Fan, 1),
    "mixture": (Mixture, 2),
    "values": (Values, 1),
    "batch": (Batch, 2),
}


def build(args: dict[str, Any]) -> Application:
    """The application for ``args["graph"]``."""
    if args["graph"] == "triage":
        return triage.together()
    cls, replicas = _GRAPHS[args["graph"]]
    return serve.deployment(cls, name="everything", max_ongoing_requests=1000, num_replicas=replicas).bind()
