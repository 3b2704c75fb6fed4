"""What the ingress says about itself, read through HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from servepipe_operator.adapters.routing import IngressRouting
from servepipe_operator.engine.state import RoutingAck
from servepipe_operator.ports import UnreachableError


@pytest.fixture
async def ingress() -> AsyncIterator[tuple[dict[str, tuple[int, Any]], IngressRouting]]:
    answers: dict[str, tuple[int, Any]] = {}

    async def answer(request: web.Request) -> web.Response:
        status, body = answers.get(request.path, (404, "nothing here"))
        if isinstance(body, str):
            return web.Response(status=status, text=body)
        return web.json_response(body, status=status)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        yield answers, IngressRouting(session, f"http://127.0.0.1:{runner.addresses[0][1]}/triage/")
    await runner.cleanup()


async def test_acknowledgements(ingress: tuple[dict[str, tuple[int, Any]], IngressRouting]) -> None:
    answers, routing = ingress
    ack = {"replica": "r1", "application": "ingress", "table": "t", "busy": {"m1--a": 3}, "errors": {"f--b": "boom"}}
    answers["/triage/-/routing"] = (200, {"replicas": [ack]})
    assert await routing.acks() == (RoutingAck("r1", "ingress", "t", {"m1--a": 3}, {"f--b": "boom"}),)


@pytest.mark.parametrize("body", [{}, {"replicas": [{"replica": "r1"}]}, {"replicas": 3}, "text"])
async def test_acknowledgements_of_unknown_form(
    ingress: tuple[dict[str, tuple[int, Any]], IngressRouting], body: Any
) -> None:
    ingress[0]["/triage/-/routing"] = (200, body)
    with pytest.raises(UnreachableError, match="unknown form"):
        await ingress[1].acks()


async def test_ready_and_not_ready(ingress: tuple[dict[str, tuple[int, Any]], IngressRouting]) -> None:
    answers, routing = ingress
    answers["/triage/-/ready"] = (200, {"ready": True, "notReady": []})
    assert await routing.ready() == (True, ())
    answers["/triage/-/ready"] = (503, {"ready": False, "notReady": ["m1", "m2"]})
    assert await routing.ready() == (False, ("m1", "m2"))


async def test_a_proxy_that_has_no_ingress_yet_is_no_answer(
    ingress: tuple[dict[str, tuple[int, Any]], IngressRouting],
) -> None:
    answers, routing = ingress
    for status, body in ((404, "Path not found"), (503, "no replicas"), (500, {"ready": True})):
        answers["/triage/-/ready"] = (status, body)
        with pytest.raises(UnreachableError):
            await routing.ready()
    with pytest.raises(UnreachableError, match="HTTP 404"):
        await routing.acks()


async def test_nobody_there() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(UnreachableError):
            await IngressRouting(session, "http://127.0.0.1:1/").acks()
