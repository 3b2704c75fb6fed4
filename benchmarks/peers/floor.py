"""The floor: the graph as a plain function behind the ingress that servepipe's pipelines have.

Behind HAProxy come the same HTTP server with the same short way through Serve's replica, and the same app, which reads,
answers and keeps to a limit of time (`servepipe.runtime.ingress`). What is not there is all that makes it a graph: the
interpreter, routes, nodes. It wants a Serve with servepipe's flags and callbacks. `build` is what Serve's configuration
names.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

from peers.batcher import Batcher
from peers.triage_graph import Together
from ray import serve
from ray.serve import Application
from workload import models

from servepipe.graph.ir import Const
from servepipe.runtime import access_log, direct_http
from servepipe.runtime.http import Hook, HttpApp
from servepipe.runtime.ingress import YOUNG_OBJECTS
from servepipe.runtime.interface import Interface

Function = Callable[..., Awaitable[Any]]


async def diamond(a: int, b: int, c: int) -> int:
    return 1 * a + 2 * b + c


async def chain(x: int) -> int:
    return x + 5


async def fan(x: int) -> int:
    return sum(factor * x for factor in range(1, 9))


def values() -> Function:
    left, right = models.Source(1), models.Source(2)

    async def measured(size: int) -> list[int]:
        return await models.measure(*await asyncio.gather(left.get(size), right.get(size)))

    return measured


def batch() -> Function:
    # As many devices as the others have replicas.
    kernels = cycle([Batcher(models.Kernel().run), Batcher(models.Kernel().run)])

    async def one(item: int) -> Any:
        return await next(kernels).one(item)

    return one


_FUNCTIONS: dict[str, Callable[[], Function]] = {
    "noop": lambda: models.echo,
    "diamond": lambda: diamond,
    "chain": lambda: chain,
    "fan": lambda: fan,
    "mixture": lambda: models.Work().wait,
    "values": values,
    "batch": batch,
    "triage": lambda: Together().answer,
}


def app_for(graph: str) -> HttpApp:
    """The ASGI app of one graph."""
    function = _FUNCTIONS[graph]()

    async def run(args: Sequence[Any], kwargs: Mapping[str, Any], *, request_id: str, deadline: float | None) -> Any:
        return await function(*args)

    preprocessor = _preprocessor() if graph == "triage" else None
    return HttpApp(run, Interface((), Const(None)), preprocessor=preprocessor, sends_request_id=False)


def _preprocessor() -> Hook:
    """The example's own."""
    import answers

    return Hook("answers:body_of", answers.body_of)


class Floor:
    """Prepares its process as servepipe's ingress does."""

    def __init__(self, graph: str) -> None:
        access_log.leave_out()
        direct_http.watch_callers()
        gc.set_threshold(YOUNG_OBJECTS)
        self._app = app_for(graph)

    def __serve_build_asgi_app__(self) -> HttpApp:
        return self._app


def build(args: dict[str, Any]) -> Application:
    """The application for ``args["graph"]``."""
    ingress = serve.deployment(serve.ingress()(Floor), name="floor", max_ongoing_requests=1000)
    return ingress.bind(args["graph"])
