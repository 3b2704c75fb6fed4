"""The document-triage example as HTTP services: each model one of its own, and the graph in the gateway.

Documents and texts travel as they are, images as `peers.arrays`, what was found as JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from peers.arrays import packed, unpacked
from peers.asgi import App, Receive, Scope, Send, read_body, send_bytes, send_json, with_lifespan
from peers.triage_graph import MODELS, Triage, busy, makers

Post = Callable[[int, bytes, dict[str, str]], Awaitable[bytes]]

_READABLE, _UNREADABLE = b"\x01", b"\x00"
_HEADERS = {"content-type": "application/octet-stream"}


@dataclass(frozen=True)
class Coding:
    """How a kind of value is a body."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


def _page(page: dict[str, Any]) -> bytes:
    return b"".join([_READABLE if page["readable"] else _UNREADABLE, *packed(page["lines"])])


def _page_of(body: bytes) -> dict[str, Any]:
    return {"readable": body[:1] == _READABLE, "lines": unpacked(body[1:])}


FILE = Coding(bytes, bytes)
TEXT = Coding(str.encode, bytes.decode)
JSON = Coding(orjson.dumps, orjson.loads)
PAGE = Coding(_page, _page_of)
IMAGE = Coding(lambda image: b"".join(packed([image])), lambda body: unpacked(body)[0])
IMAGES = Coding(lambda images: b"".join(packed(images)), unpacked)

#: Of each model the method, what it takes and what it gives.
CODINGS: dict[str, tuple[str, Coding, Coding]] = {
    "file_type": ("identify", FILE, JSON),
    "text_detection": ("find", FILE, PAGE),
    "orientation": ("upright", IMAGES, IMAGES),
    "recognition": ("read", IMAGE, JSON),
    "language_detector": ("detect", TEXT, JSON),
    "sentiment_analysis": ("rate", TEXT, JSON),
}


def model_app(name: str) -> App:
    """The service of one model, which has been loaded when this returns."""
    method, takes, gives = CODINGS[name]
    function = getattr(makers()[name](), method)
    limit = asyncio.Semaphore(busy(name))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        value = takes.decode(bytes(await read_body(receive)))
        async with limit:
            answer = await asyncio.to_thread(function, value)
        await send_bytes(send, gives.encode(answer))

    return with_lifespan(app)


class OverHttp(Triage):
    """Args:
    post: Sends a body to the model with a number, as in `MODELS`, and gives the answer's.
    """

    def __init__(self, post: Post) -> None:
        self._post = post

    async def call(self, model: str, method: str, value: Any) -> Any:
        _, takes, gives = CODINGS[model]
        return gives.decode(await self._post(MODELS.index(model), takes.encode(value), _HEADERS))


def gateway_app(post: Post, startup: Callable[[], Awaitable[None]]) -> App:
    """The gateway: a document in, JSON out."""
    triage = OverHttp(post)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, orjson.dumps(await triage.answer(bytes(await read_body(receive)))))

    return with_lifespan(app, startup)
