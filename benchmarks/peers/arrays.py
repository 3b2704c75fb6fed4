"""Arrays as the bodies of HTTP requests and responses: as they lie in memory, behind a line of JSON about them.

One array is four bytes (the length of the line), the line (type and shape) and the array's bytes; several follow one
another. Neither packing nor unpacking copies what is in an array (unless that lies in another order).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from peers.asgi import Send

Array = np.ndarray[Any, Any]

CONTENT_TYPE = "application/octet-stream"

_LENGTH_BYTES = 4
#: Below it one write is worth more than a copy that is spared.
_SMALL = 64 * 1024


def packed(arrays: Sequence[Array]) -> list[bytes | memoryview]:
    """The pieces of a body."""
    pieces: list[bytes | memoryview] = []
    for array in arrays:
        line = orjson.dumps([array.dtype.str, array.shape])
        pieces += [len(line).to_bytes(_LENGTH_BYTES, "big") + line, array.ravel().view(np.uint8).data]
    return pieces


def unpacked(body: bytes | bytearray) -> list[Array]:
    """The arrays in a body, which keep it alive."""
    found = []
    at, view = 0, memoryview(body)
    while at < len(body):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(view[at:start], "big")
        dtype, shape = orjson.loads(view[start:at])
        array = np.frombuffer(body, dtype, count=int(np.prod(shape)), offset=at).reshape(shape)
        at += array.nbytes
        found.append(array)
    return found


async def send_arrays(send: Send, arrays: Sequence[Array]) -> None:
    """Answer with them."""
    pieces = packed(arrays)
    size = sum(map(len, pieces))
    headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", b"%d" % size)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if size <= _SMALL:
        pieces = [b"".join(pieces)]
    for piece in pieces[:-1]:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": pieces[-1]})
