"""The example in examples/document_triage by hand on Ray Serve: the same classes, another graph around them.

`separate` has a deployment for each model, as the example's resource has; `together` has all of them in one.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from peers.triage_graph import MODELS, Together, Triage, busy, makers
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response


class Model:
    """One model; its methods run in threads, at most as many at a time as Serve lets in."""

    def __init__(self, name: str) -> None:
        self._model = makers()[name]()

    async def call(self, method: str, value: Any) -> Any:
        return await asyncio.to_thread(getattr(self._model, method), value)


class Ingress(Triage):
    """A document in, JSON out."""

    async def __call__(self, request: Request) -> Response:
        return Response(orjson.dumps(await self.answer(await request.body())), media_type="application/json")


class Separate(Ingress):
    def __init__(self, **handles: DeploymentHandle) -> None:
        self._handles = handles

    async def call(self, model: str, method: str, value: Any) -> Any:
        return await self._handles[model].call.remote(method, value)


class Everything(Together, Ingress):
    pass


def separate() -> Application:
    """A deployment for each model, and an ingress."""
    handles = {name: serve.deployment(Model, name=name, max_ongoing_requests=busy(name)).bind(name) for name in MODELS}
    return serve.deployment(Separate, name="ingress", max_ongoing_requests=1000).bind(**handles)


def together() -> Application:
    """Everything in one deployment."""
    return serve.deployment(Everything, name="everything", max_ongoing_requests=1000).bind()
