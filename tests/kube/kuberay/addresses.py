"""Loopback addresses for pods, and HTTP servers on them."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable

from aiohttp import web

Handler = Callable[[str, int, web.BaseRequest], Awaitable[web.StreamResponse]]
"""Given the address and port that was called."""


class Addresses:
    """Addresses of one block of 127.0.0.0/8, each given once, and the servers that listen there.

    Args:
        handler: Answers every request.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        # Another stand-in on this machine takes another block, most of the time; `listen` finds out.
        self._block = random.SystemRandom().randrange(1 << 14, 1 << 16)
        self._last = 0
        self._servers: dict[tuple[str, int], asyncio.Server] = {}
        self._protocols = web.Server(self._handle, access_log=None, keepalive_timeout=300)

    def new(self) -> str:
        """An address that no pod has."""
        self._last += 1
        number = (self._block << 8) + self._last + 2 * (self._last // 254)
        return f"127.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"

    async def listen(self, ip: str, port: int) -> bool:
        """False if somebody else listens there."""
        if (ip, port) in self._servers:
            return True
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(self._protocols, ip, port, reuse_address=True, backlog=64)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        self._servers[ip, port] = server
        return True

    def refuse(self, ip: str, port: int) -> None:
        """Stop to listen, and end what is connected."""
        server = self._servers.pop((ip, port), None)
        if server is None:
            return
        server.close()
        for connection in list(self._protocols.connections):
            transport = connection.transport
            if transport is not None and transport.get_extra_info("sockname")[:2] == (ip, port):
                transport.abort()

    async def close(self) -> None:
        """Stop to listen anywhere; every connection is gone when this returns."""
        servers = list(self._servers.values())
        for ip, port in list(self._servers):
            self.refuse(ip, port)
        await self._protocols.shutdown(0.1)
        for server in servers:
            await server.wait_closed()
        await asyncio.sleep(0)  # transports that were aborted close in the loop's next round

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        ip, port = request.transport.get_extra_info("sockname")[:2]
        return await self._handler(ip, port, request)
