"""Reading answers of pods. What runs there is the users' and may answer anything, of any length."""

from __future__ import annotations

import aiohttp

from servepipe_operator.ports import UnreachableError

__all__ = ["MOST_BYTES", "text_of"]

#: Many times what Serve says of a resource as large as etcd takes; a hundred of them still fit into the operator.
MOST_BYTES = 16 * 1024 * 1024


async def text_of(response: aiohttp.ClientResponse) -> str:
    """The body as text.

    Raises:
        UnreachableError: It is longer than `MOST_BYTES`, or no text.
    """
    body = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        body += chunk
        if len(body) > MOST_BYTES:
            response.close()
            raise UnreachableError(f"{response.url}: the answer is longer than {MOST_BYTES} bytes")
    try:
        # Not `get_encoding`, which guesses from a body that it must have read itself: Serve answers a PUT without one.
        return body.decode(response.charset or "utf-8")
    except (ValueError, LookupError) as error:
        raise UnreachableError(f"{response.url}: the answer is no text: {error}") from error
