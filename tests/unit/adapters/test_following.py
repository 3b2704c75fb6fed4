"""Where the ingress is asked."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from servepipe_operator.adapters.following import FollowingRouting, deployed_route
from servepipe_operator.adapters.routing import IngressRouting
from servepipe_operator.engine.state import Application


def application(config: Any) -> dict[str, Application]:
    return {"ingress": Application("ingress", "RUNNING", "", config)}


@pytest.mark.parametrize(
    ("applications", "route"),
    [({}, "/new"), (application(None), "/new"), (application({"route_prefix": "/old"}), "/old")],
)
def test_a_new_route_counts_once_serve_has_it(applications: dict[str, Application], route: str) -> None:
    assert deployed_route(applications, "/new") == route


async def test_the_routing_follows() -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        body = {"replicas": []} if request.path.endswith("routing") else {"ready": True}
        return web.json_response(body)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    routes = ["/old", "/new"]
    async with TestServer(app, host="127.0.0.1") as server, aiohttp.ClientSession() as session:
        routing = FollowingRouting(lambda: IngressRouting(session, str(server.make_url(routes.pop(0)))))
        assert await routing.ready() == (True, ())
        assert await routing.acks() == ()
    assert asked == ["/old/-/ready", "/new/-/routing"]
