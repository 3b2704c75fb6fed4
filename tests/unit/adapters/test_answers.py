"""Reading what pods answer."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from servepipe_operator.adapters.answers import text_of
from servepipe_operator.ports import UnreachableError


async def read(answer: web.Response) -> str:
    async def handle(request: web.Request) -> web.Response:
        return answer

    app = web.Application()
    app.router.add_get("/", handle)
    async with (
        TestServer(app) as server,
        aiohttp.ClientSession() as session,
        session.get(server.make_url("/")) as response,
    ):
        return await text_of(response)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (web.Response(), ""),  # as Serve answers a PUT
        (web.Response(body="ä".encode()), "ä"),
        (web.Response(text="ä", content_type="text/plain", charset="latin-1"), "ä"),
        (web.Response(body="ä".encode(), headers={"Content-Type": "application/json"}), "ä"),
    ],
)
async def test_text_is_utf_8_where_nothing_else_is_said(answer: web.Response, text: str) -> None:
    assert await read(answer) == text


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(body=b"\xff"),
        web.Response(body=b"a", headers={"Content-Type": "text/plain; charset=no-such"}),
    ],
)
async def test_what_is_no_text_is_no_answer(answer: web.Response) -> None:
    with pytest.raises(UnreachableError, match="no text"):
        await read(answer)
