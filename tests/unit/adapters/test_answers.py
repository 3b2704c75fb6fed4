"""Answers of pods as text, whatever they say of themselves."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web

from servepipe_operator.adapters.answers import text_of
from servepipe_operator.ports import UnreachableError


async def answered(body: bytes, content_type: str | None) -> str:
    """What ``text_of`` makes of an answer."""

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(body=body, headers={"Content-Type": content_type} if content_type else {})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return await text_of(response)
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        (b"", None, ""),
        (b"", "application/octet-stream", ""),
        ("é".encode(), "text/plain", "é"),
        ("é".encode(), "application/json", "é"),
        ("é".encode("latin-1"), "text/plain; charset=latin-1", "é"),
    ],
)
async def test_an_answer_needs_to_say_nothing_of_its_charset(body: bytes, content_type: str | None, text: str) -> None:
    assert await answered(body, content_type) == text


@pytest.mark.parametrize("content_type", ["text/plain", "text/plain; charset=unheard-of"])
async def test_what_is_no_text_says_nothing(content_type: str) -> None:
    with pytest.raises(UnreachableError, match="no text"):
        await answered(b"\xff\xfe\xfa", content_type)
