"""The watch of the Kubernetes API: one long answer, a line of JSON for each change.

A connection whose other end is gone without a word looks like a cluster in which nothing happens. So the server is
asked for bookmarks, which come about once a minute, and silence for longer ends the watch.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from typing import Any

import aiohttp

from servepipe_operator.adapters.kube_errors import Unavailable, error_from
from servepipe_operator.engine.state import Json

__all__ = ["follow", "lines"]

CONNECT_S = 10.0
#: More than the minute between two bookmarks.
SILENCE_S = 100.0
WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Whole lines of any length; a last one without an end is half an answer and left out."""
    rest: list[bytes] = []
    async for chunk in chunks:
        *whole, tail = chunk.split(b"\n")
        for line in whole:
            rest.append(line)
            yield b"".join(rest)
            rest.clear()
        rest.append(tail)


@asynccontextmanager
async def follow(
    session: aiohttp.ClientSession,
    what: str,
    url: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    tls: ssl.SSLContext | bool,
    on_answer: Callable[[int, float], None],
) -> AsyncIterator[AsyncIterator[Json]]:
    """A watch, entered once the server agreed; what it gives is that of `changes`.

    Args:
        on_answer: Told the HTTP status (0: no answer) and the seconds until it came.

    Raises:
        KubeError: The server refused, or there is none.
    """
    began, code = time.monotonic(), 0
    try:
        answer = await session.get(
            url, params=query, headers={**headers, "Accept": "application/json"}, ssl=tls, timeout=WATCH_TIMEOUT
        )
        code = answer.status
    except (aiohttp.ClientError, OSError) as error:
        raise Unavailable(f"{what}: {str(error) or type(error).__name__}") from error
    finally:
        on_answer(code, time.monotonic() - began)
    with closing(answer):
        if code >= 400:
            raise error_from(what, code, await _text(answer), answer.headers)
        yield changes(what, answer)


async def changes(what: str, answer: aiohttp.ClientResponse) -> AsyncIterator[Json]:
    """The changes of a watch, each ``{"type", "object"}``, until the server ends it or falls silent.

    Args:
        what: The verb and the path, for messages.

    Raises:
        Gone: The version from which to watch is too old: list again.
        Unavailable: The answer is no watch, or the server gave up.
    """
    try:
        async for line in lines(answer.content.iter_any()):
            for change in _read(what, line):
                if change["type"] == "ERROR":
                    said: dict[str, Any] = change["object"] if isinstance(change["object"], dict) else {}
                    raise error_from(what, int(said.get("code") or 500), json.dumps(said), {})
                yield change
    except (aiohttp.ClientError, TimeoutError, OSError):
        return  # cut off, or silent: whoever watches goes on from where it was


async def _text(answer: aiohttp.ClientResponse) -> str:
    """The body of a refusal; the status alone says enough where it does not come whole."""
    try:
        return await answer.text()
    except (aiohttp.ClientError, OSError, UnicodeDecodeError):
        return ""


def _read(what: str, line: bytes) -> Iterator[Json]:
    if not line.strip():
        return
    try:
        change = json.loads(line)
        change["type"], change["object"]
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"{what}: not a change of a watch: {line[:200]!r}") from error
    yield change
