"""A server that gives one answer to whatever it is sent: what is left is the load client.

python -m graphbench.reference PORT BODY
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import cast

__all__ = ["serve"]


class Constant(asyncio.Protocol):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(self._answer)  # the requests of the benchmark are small: each comes in one piece


async def serve(port: int, body: bytes) -> None:
    """Until SIGTERM. Args: the port on loopback, and the body of every answer."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    answer = head.encode() + body
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    server = await loop.create_server(lambda: Constant(answer), "127.0.0.1", port)
    async with server:
        await ended.wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(int(sys.argv[1]), sys.argv[2].encode()))
