"""The little that the raw ASGI apps of the peers share: read the body, write JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Answer = Callable[..., Awaitable[Any]]


def json_app(answer: Answer, *, startup: Callable[[], Awaitable[None]] | None = None) -> App:
    """An ASGI app that calls ``answer`` with the items of a JSON array and writes what it returns.

    Args:
        startup: Awaited before the first request.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        content = orjson.dumps(await answer(*orjson.loads(await read_body(receive))))
        await send_json(send, content)

    return with_lifespan(app, startup)


def with_lifespan(app: App, startup: Callable[[], Awaitable[None]] | None = None) -> App:
    """``app`` as an app of ASGI that also starts and ends.

    Args:
        startup: Awaited before the first request.
    """

    async def whole(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                if startup is not None:
                    await startup()
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await app(scope, receive, send)

    return whole


async def read_body(receive: Receive) -> bytes | bytearray:
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        return body
    whole = bytearray(body)  # grows in place: bytes would be copied for each piece
    while message.get("more_body"):
        message = await receive()
        whole += message.get("body", b"")
    return whole


async def send_json(send: Send, content: bytes) -> None:
    await send_bytes(send, content, b"application/json")


async def send_bytes(send: Send, content: bytes, content_type: bytes = b"application/octet-stream") -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})
