"""What the ingress reads of a request: its path, the few headers that count, the body, the graph's arguments."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, TypeAlias

from servepipe.errors import BadRequestError
from servepipe.graph.calls import new_request_id
from servepipe.runtime import json_bytes
from servepipe.runtime.interface import Interface

__all__ = [
    "UNWATCHED",
    "WATCHES",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "arguments",
    "known_headers",
    "read_body",
    "replay",
    "request_id_of",
    "route_path",
    "too_large",
]

Message: TypeAlias = dict[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

MAX_REQUEST_ID_LENGTH = 128

UNWATCHED = (b"x-request-disconnect-disabled", b"?1")
"""The header by which Serve is asked not to watch whether the caller of a request is still there."""

WATCHES = "servepipe.watches"
"""Key of a scope: nobody but the app watches whether the caller is still there. See `servepipe.runtime.direct_http`."""


def arguments(body: bytes, interface: Interface) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that a JSON body stands for. Raises `BadRequestError` (400) for what is not JSON.

    An array with one element stays one argument, the array, where the graph reads its input by index: ``[5]`` then
    gives 5 for ``dag_input[0]``, as ``[5, 6]`` does.
    """
    try:
        value = json_bytes.parse(body)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        if body.strip():
            raise BadRequestError(f"the body is not JSON: {error}", status=400, code="InvalidJson") from None
        if interface.reads:
            raise BadRequestError(
                "the body is empty", status=400, code="InvalidJson", fix="Send a JSON array with one element per input."
            ) from None
        return (), {}
    if isinstance(value, list) and not (len(value) == 1 and interface.by_index):
        return tuple(value), {}
    if isinstance(value, dict) and interface.by_keyword:
        return (), value
    return (value,), {}


def request_id_of(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The caller's ``x-request-id`` where it is printable and of sane length, else a new one."""
    return known_headers(headers, 0)[0]


def known_headers(headers: Sequence[tuple[bytes, bytes]], max_body_bytes: int) -> tuple[str, bool]:
    """What `request_id_of` says, and whether a ``content-length`` is larger than ``max_body_bytes``."""
    request_id = ""
    over = False
    for name, value in headers:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if not request_id and len(text) <= MAX_REQUEST_ID_LENGTH and text.isascii() and text.isprintable():
                request_id = text
        elif name == b"content-length" and value.isdigit():
            # Python reads no integer of thousands of digits, and none of twenty fits any memory.
            over = over or len(value) > 20 or int(value) > max_body_bytes
    return request_id or new_request_id(), over


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body. Raises `BadRequestError`: more than ``limit`` bytes, or its caller has left."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise too_large(limit)
        return body
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise BadRequestError("the caller went away while it sent the body", status=499, code="Disconnected")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()


def too_large(limit: int) -> BadRequestError:
    """The 413 for a body of more than ``limit`` bytes."""
    return BadRequestError(
        f"the body is larger than {limit} bytes", status=413, code="BodyTooLarge", fix="See spec.ingress.maxBodyBytes."
    )


def replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body once more, and after that what the server says: whether the caller is there."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


def route_path(scope: Scope) -> str:
    """The path below the route. ``path`` includes ``root_path`` (ASGI), except from servers that strip it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :]
    return path
