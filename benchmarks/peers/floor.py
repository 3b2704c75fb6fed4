"""The floor: the graph as a plain function, called by the smallest ASGI app that there is, in a Serve ingress.

A request below ``/noop`` reads the same JSON, computes nothing and writes the last of the values: the floor's floor.
`build` is what Serve's configuration names.
"""

from __future__ import annotations

from typing import Any

from peers.asgi import Answer, Receive, Scope, Send, json_app
from ray import serve
from ray.serve import Application
from workload import models


async def diamond(a: int, b: int, c: int) -> int:
    return 1 * a + 2 * b + c


async def chain(x: int) -> int:
    return x + 5


async def fan(x: int) -> int:
    return sum(factor * x for factor in range(1, 9))


async def last(*values: Any) -> Any:
    return values[-1]


_FUNCTIONS: dict[str, Answer] = {
    "noop": models.echo,
    "diamond": diamond,
    "chain": chain,
    "fan": fan,
    "mixture": models.Work().wait,
}


def app_for(graph: str) -> Any:
    """The ASGI app of one graph."""
    function, noop = json_app(_FUNCTIONS[graph]), json_app(last)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (noop if scope.get("path", "").endswith("/noop") else function)(scope, receive, send)

    return app


def build(args: dict[str, Any]) -> Application:
    """The application for ``args["graph"]``."""
    graph: str = args["graph"]

    @serve.deployment(name="floor", max_ongoing_requests=1000)
    @serve.ingress(lambda: app_for(graph))
    class Floor:
        pass

    return Floor.bind()
