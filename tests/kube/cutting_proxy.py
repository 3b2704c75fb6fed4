"""A way to the API server that can be cut, closed and stopped up. It passes bytes, so TLS goes through it whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from urllib.parse import urlsplit

from bed.client import write_kubeconfig
from bed.control_plane import ControlPlane
from in_thread import LoopThread

CHUNK = 65536


class CuttingProxy:
    """Listens on a free port of 127.0.0.1, for which the API server's certificate holds too.

    Args:
        url: What is behind it, by default the API server.
    """

    def __init__(self, plane: ControlPlane, url: str = "") -> None:
        self._plane = plane
        server = urlsplit(url or plane.url)
        self._host, self._port = str(server.hostname), int(server.port or 0)
        self._open: set[asyncio.StreamWriter] = set()
        self._closed = False
        self.connections = 0
        """How many were made so far, those that were refused not counted."""
        self._thread = LoopThread("cutting-proxy")
        self._answers, self.url = self._thread.call(self._start())

    def kubeconfig(self, other: Path, folder: Path) -> Path:
        """As whom ``other`` logs in, through here."""
        return through(self.url, self._plane, other, folder / "cutting-proxy.kubeconfig")

    def cut(self) -> int:
        """Break all connections there are; how many."""
        return self._thread.call(self._cut())

    def close(self) -> None:
        """Break all connections and take no new ones until `reopen`."""
        self._closed = True
        self.cut()

    def reopen(self) -> None:
        """Take connections again."""
        self._closed = False

    def stop_up(self) -> None:
        """From now on nothing comes back from the server, and no connection breaks: what a lost route looks like."""
        self._thread.call(self._flow(False))

    def let_flow(self) -> None:
        """What was held back arrives, and everything after it."""
        self._thread.call(self._flow(True))

    def stop(self) -> None:
        """The end of it."""
        self._thread.call(self._end())
        self._thread.stop()

    async def _start(self) -> tuple[asyncio.Event, str]:
        answers = asyncio.Event()
        answers.set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return answers, f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _end(self) -> None:
        self._server.close()
        await self._cut()

    async def _cut(self) -> int:
        count = len(self._open)
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()
        return count // 2

    async def _flow(self, on: bool) -> None:
        self._answers.set() if on else self._answers.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed:
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self.connections += 1
        ends = {writer, up_writer}
        self._open |= ends
        try:
            await asyncio.gather(self._pass(reader, up_writer, None), self._pass(up_reader, writer, self._answers))
        finally:
            self._open -= ends
            for end in ends:
                end.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event | None
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK):
                if gate is not None:
                    await gate.wait()
                writer.write(chunk)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()


def through(url: str, plane: ControlPlane, kubeconfig: Path, path: Path) -> Path:
    """A kubeconfig like ``kubeconfig``, which has one user, with ``url`` in the place of the API server's."""
    content = json.loads(kubeconfig.read_text())
    namespace = content["contexts"][0]["context"].get("namespace", "default")
    return write_kubeconfig(path, url, plane.authority, content["users"][0]["user"], namespace)
