"""The end of channels at a replica: listens, lets peers in, runs their calls.

    async with ChannelServer(handle, application="m1--6f3a91c2", replica="…") as server:
        await server.listen_unix(folder)
        await server.listen_tcp("10.0.0.7")
        endpoint = server.endpoint            # for those who may call

Each call is one task with an empty context of its own: nothing of one request, or of whoever started the server, is
seen by another. It is cancelled when its caller says so, or is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import ssl
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from servepipe.channel.accepted import Accepted, Identity, Owner
from servepipe.channel.calls import Handle
from servepipe.channel.endpoints import Endpoint
from servepipe.channel.errors import ChannelError
from servepipe.channel.frames import Limits
from servepipe.channel.values import Dumps

__all__ = ["ChannelServer"]

log = logging.getLogger("servepipe.channel")

MAX_PATH = 107
"""Bytes that the kernel allows for the path of a unix socket."""


class ChannelServer:
    """Belongs to the event loop on which it is made.

    Args:
        handle: Runs a call; see `servepipe.channel.calls`.
        application: The Serve application that clients have to ask for.
        replica: The id of this replica in it, likewise.
        token: What clients have to know; None: 32 random bytes.
        machine: Names this machine, or container, to clients; see `Endpoint`.
        limits: What is accepted.
        fallback: Pickles answers that ``pickle`` refuses.
    """

    def __init__(
        self,
        handle: Handle,
        *,
        application: str,
        replica: str,
        token: bytes | None = None,
        machine: str = "",
        limits: Limits | None = None,
        fallback: Dumps | None = None,
    ) -> None:
        self._limits = limits or Limits()
        identity = Identity(application, replica, token or secrets.token_bytes(32))
        self._owner = Owner(identity, handle, self._limits, self._admit, self._ended, fallback)
        self._endpoint = Endpoint(application, replica, identity.token, machine=machine)
        self._loop = asyncio.get_running_loop()
        self._connections: set[Accepted] = set()
        self._listening: list[asyncio.Server] = []
        self._path: Path | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._all_gone = asyncio.Event()
        self._all_gone.set()

    async def __aenter__(self) -> ChannelServer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def endpoint(self) -> Endpoint:
        """How to get here. With the token: whoever can read it can run code here."""
        return self._endpoint

    @property
    def connections(self) -> int:
        """How many there are, with those in their handshake."""
        return len(self._connections)

    @property
    def running(self) -> int:
        """Calls under way."""
        return sum(len(connection.running) for connection in self._connections)

    async def listen_unix(self, folder: Path) -> None:
        """Listen on a socket in ``folder``, for processes of this machine and user.

        Raises:
            ChannelError: The folder is not this user's own, or its path is too long.
        """
        path = _new_path(folder)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(os.fspath(path))
            self._path = path
            self._listening.append(await self._loop.create_unix_server(self._accept, sock=sock, backlog=256))
        except BaseException:
            sock.close()
            raise
        self._endpoint = replace(self._endpoint, path=str(path))
        self._sweep_later()

    async def listen_tcp(self, host: str, port: int = 0, *, tls: ssl.SSLContext | None = None) -> None:
        """Listen for other machines, at ``port`` (0: any free one) of the address ``host``, which goes to clients.

        Without ``tls`` the token keeps strangers out, but whoever can change packets on their way can do anything.
        """
        server = await self._loop.create_server(
            self._accept,
            host,
            port,
            ssl=tls,
            ssl_handshake_timeout=self._limits.handshake_s if tls is not None else None,
            backlog=256,
        )
        self._listening.append(server)
        port = server.sockets[0].getsockname()[1]
        self._endpoint = replace(self._endpoint, host=host, port=port, tls=tls is not None)
        self._sweep_later()

    async def drain(self, timeout_s: float) -> bool:
        """Begin no call any more, tell all clients, and wait until those under way have been answered.

        Returns:
            False after ``timeout_s`` seconds: some are still under way.
        """
        self._owner.draining = True
        self._stop_listening()
        for connection in [*self._connections]:
            connection.say_goodbye()
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_gone.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End at once: calls under way are cancelled, their callers see a lost channel."""
        self._owner.draining = True
        self._stop_listening()
        for connection in [*self._connections]:
            connection.abort("the server was closed")
        await self._all_gone.wait()

    def _accept(self) -> Accepted:
        return Accepted(self._owner)

    def _admit(self, connection: Accepted) -> bool:
        """Take note of a connection; False: it is one too many."""
        self._connections.add(connection)
        self._all_gone.clear()
        limits = self._limits
        if len(self._connections) > limits.max_connections:
            return False
        return sum(not other.is_open for other in self._connections) <= limits.max_strangers

    def _ended(self, connection: Accepted) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._all_gone.set()

    def _stop_listening(self) -> None:
        for server in self._listening:
            server.close()
        self._listening.clear()
        if self._path is not None:
            with suppress(FileNotFoundError):
                self._path.unlink()
            self._path = None
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _sweep_later(self) -> None:
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._limits.idle_s / 2, self._close_idle)

    def _close_idle(self) -> None:
        self._sweep = None
        silent_since = self._loop.time() - self._limits.idle_s
        for connection in [*self._connections]:
            if connection.is_open and not connection.running and connection.last_frame < silent_since:
                connection.end_idle()
        self._sweep_later()


def _new_path(folder: Path) -> Path:
    """A path for a socket that only this user can reach."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ChannelError(
            f"{folder} is no folder that only this user can enter, and sockets in it could be anybody's",
            fix=f"Use a folder made by tempfile.mkdtemp(), or `chmod 0700 {folder}`.",
        )
    path = folder / secrets.token_hex(4)
    if len(os.fsencode(path)) > MAX_PATH:
        raise ChannelError(
            f"the path of a socket in {folder} would be longer than {MAX_PATH} bytes",
            fix="Use a folder with a shorter path.",
        )
    return path
