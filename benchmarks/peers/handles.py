"""The benchmarked graphs as one writes them for Ray Serve by hand: model composition with DeploymentHandles.

One application for each graph; responses are passed on to the next deployment without being waited for, as Serve's
guide to model composition says. The ingresses read and write JSON with orjson. `build` is what Serve's configuration
names.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import orjson
from peers import triage
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response
from workload import models

BUSY = 100
"""``max_ongoing_requests`` of a model, as in the pipelines that servepipe runs; of an ingress ten times as many."""

Scale = serve.deployment(models.Scale, max_ongoing_requests=BUSY)
Increment = serve.deployment(models.Increment, max_ongoing_requests=BUSY)
Source = serve.deployment(models.Source, max_ongoing_requests=BUSY)
Work = serve.deployment(models.Work, max_ongoing_requests=BUSY, num_replicas=2)


@serve.deployment(max_ongoing_requests=BUSY)
class Echo:
    async def __call__(self, x: Any) -> Any:
        return await models.echo(x)


@serve.deployment(max_ongoing_requests=BUSY)
class Ensemble:
    async def __call__(self, a: int, b: int, c: int) -> int:
        return await models.ensemble(a, b, c)


@serve.deployment(max_ongoing_requests=BUSY)
class Total:
    async def __call__(self, *values: int) -> int:
        return await models.total(*values)


@serve.deployment(max_ongoing_requests=BUSY)
class Measure:
    async def __call__(self, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> list[int]:
        return await models.measure(a, b)


@serve.deployment(max_ongoing_requests=BUSY, num_replicas=2)
class Kernel(models.Kernel):
    # As many as the requests that may be under way, in batches that wait no longer than a fraction of the kernel.
    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def __call__(self, items: list[int]) -> list[int]:
        return await self.run(items)


class Ingress:
    """What all ingresses share: JSON in, JSON out."""

    async def __call__(self, request: Request) -> Response:
        answer = await self.answer(*orjson.loads(await request.body()))
        return Response(orjson.dumps(answer), media_type="application/json")

    async def answer(self, *values: Any) -> Any:
        raise NotImplementedError


class Single(Ingress):
    """One model behind the ingress."""

    def __init__(self, model: DeploymentHandle) -> None:
        self.model = model

    async def answer(self, *values: Any) -> Any:
        return await self.model.remote(*values)


class Waiting(Ingress):
    def __init__(self, work: DeploymentHandle) -> None:
        self.work = work

    async def answer(self, *values: Any) -> Any:
        return await self.work.wait.remote(values[0])


class Diamond(Ingress):
    def __init__(self, m1: DeploymentHandle, m2: DeploymentHandle, ensemble: DeploymentHandle) -> None:
        self.m1, self.m2, self.ensemble = m1, m2, ensemble

    async def answer(self, *values: Any) -> Any:
        a, b, c = values
        return await self.ensemble.remote(self.m1.forward.remote(a), self.m2.forward.remote(b), c)


class Chain(Ingress):
    def __init__(self, *models: DeploymentHandle) -> None:
        self.models = models

    async def answer(self, *values: Any) -> Any:
        value = values[0]
        for model in self.models:
            value = model.forward.remote(value)
        return await value


class Fan(Ingress):
    def __init__(self, total: DeploymentHandle, *models: DeploymentHandle) -> None:
        self.total, self.models = total, models

    async def answer(self, *values: Any) -> Any:
        return await self.total.remote(*[model.forward.remote(values[0]) for model in self.models])


class Eight(Ingress):
    def __init__(self, *models: DeploymentHandle) -> None:
        self.models = models

    async def answer(self, *values: Any) -> Any:
        return await asyncio.gather(*(model.forward.remote(values[0]) for model in self.models))


class Values(Ingress):
    """Large values from two models to a third.

    Args:
        by_reference: Through Ray's object store, or inside the messages (Serve's default where it is tuned).
    """

    def __init__(
        self, left: DeploymentHandle, right: DeploymentHandle, measure: DeploymentHandle, by_reference: bool
    ) -> None:
        self.left, self.right, self.measure = (h.options(_by_reference=by_reference) for h in (left, right, measure))

    async def answer(self, *values: Any) -> Any:
        size = values[0]
        return await self.measure.remote(self.left.get.remote(size), self.right.get.remote(size))


def build(args: dict[str, Any]) -> Application:
    """The application for ``args["graph"]``."""
    return _GRAPHS[args["graph"]]()


def _ingress(cls: type[Ingress], *args: Any) -> Application:
    return serve.deployment(cls, name="ingress", max_ongoing_requests=10 * BUSY).bind(*args)


def _scales(first: int, last: int) -> list[Application]:
    return [Scale.options(name=f"m{factor}").bind(factor) for factor in range(first, last + 1)]


def _values(by_reference: bool) -> Application:
    left, right = Source.options(name="left").bind(1), Source.options(name="right").bind(2)
    return _ingress(Values, left, right, Measure.bind(), by_reference)


_GRAPHS = {
    "noop": lambda: _ingress(Single, Echo.bind()),
    "diamond": lambda: _ingress(Diamond, *_scales(1, 2), Ensemble.bind()),
    "chain": lambda: _ingress(Chain, *(Increment.options(name=f"s{n}").bind() for n in range(1, 6))),
    "fan": lambda: _ingress(Fan, Total.bind(), *_scales(1, 8)),
    "mixture": lambda: _ingress(Waiting, Work.bind()),
    "values": lambda: _values(by_reference=True),
    "values-by-value": lambda: _values(by_reference=False),
    "batch": lambda: _ingress(Single, Kernel.bind()),
    "startup": lambda: _ingress(Eight, *_scales(1, 8)),
    "triage": triage.separate,
}
