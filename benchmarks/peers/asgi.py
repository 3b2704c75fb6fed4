"""The little that the raw ASGI apps of the peers share: read the body, write JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Answer = Callable[..., Awaitable[Any]]


def json_app(answer: Answer, *, startup: Callable[[], Awaitable[None]] | None = None) -> Any:
    """An ASGI app that calls ``answer`` with the items of a JSON array and writes what it returns.

    Args:
        startup: Awaited before the first request.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                if startup is not None:
                    await startup()
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        content = orjson.dumps(await answer(*orjson.loads(await read_body(receive))))
        await send_json(send, content)

    return app


async def read_body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return body


async def send_json(send: Send, content: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})
