"""A node's replica as the end of channels: each call runs through Serve's own request path, and counts as any other.

Serve counts a request when it begins to run. Over handles those that wait do so at the caller, where Serve counts them
too; here they wait in the replica, so they are counted here until they begin: autoscaling sees them, and a replica that
is about to end waits for them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle

from servepipe.channel.calls import IncomingCall
from servepipe.channel.errors import CallRejectedError, ChannelError, Reason
from servepipe.channel.server import ChannelServer
from servepipe.graph.calls import RequestContext
from servepipe.runtime import access_log, channel_tls
from servepipe.runtime.flags import CHANNEL
from servepipe.runtime.serve_internals import OwnReplica, UnexpectedServeError, own_replica, session_folder

__all__ = ["METADATA", "NodeChannel", "call_has_begun"]

log = logging.getLogger("servepipe.node")

METADATA = "servepipe.channel"
"""Key of the endpoint in the replica's metadata."""

METHOD = "call"
"""The method of the deployment's class that carries a call out, here and over handles."""

MAX_FOLDER = 80
"""Bytes of a path in which there is room for a folder and a socket: it may have 107."""

DRAIN_S = 2.0
"""How long clients have to take note of the end; Serve has waited for their calls before."""

_waiting: ContextVar[Callable[[], None] | None] = ContextVar("servepipe_waiting", default=None)


def call_has_begun() -> None:
    """What carries a call out says so: it no longer waits for its turn."""
    tell = _waiting.get()
    if tell is not None:
        tell()


class NodeChannel:
    """Args:
    replica: This process's replica.
    """

    def __init__(self, replica: OwnReplica) -> None:
        self._replica = replica
        self._run = replica.way(METHOD, access_log.is_left_out)
        self._queued = 0
        self._server: ChannelServer | None = None
        self._folder: Path | None = None

    @classmethod
    async def open(cls, application: str) -> NodeChannel | None:
        """Listen for callers of ``application``; None where that cannot be, for a reason that is in the log."""
        if os.environ.get(CHANNEL) == "off":
            return None
        try:
            replica = own_replica()
            channel = cls(replica)
            context = ray.get_runtime_context()
            address = ray.util.get_node_ip_address()
            await _on(replica.loop, channel._listen, application, context.get_node_id(), address)
        except (UnexpectedServeError, ChannelError, OSError) as error:
            log.warning("this replica is called over Serve's handles only: %s", error)
            return None
        return channel

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The endpoint, for Serve's metadata of this replica. It is secret: see `Endpoint`."""
        return {METADATA: self._server.endpoint.encode()} if self._server is not None else {}

    async def close(self) -> None:
        """Tell clients, and end."""
        await _on(self._replica.loop, self._end)

    async def _listen(self, application: str, machine: str, address: str) -> None:
        try:
            await self._listen_everywhere(application, machine, address)
        except BaseException:
            await self._end()
            raise

    async def _listen_everywhere(self, application: str, machine: str, address: str) -> None:
        self._server = ChannelServer(
            self.handle,
            application=application,
            replica=self._replica.id,
            machine=machine,
            fallback=cloudpickle.dumps,
        )
        self._folder = _new_folder()
        await self._server.listen_unix(self._folder)
        if not _is_loopback(address):  # such an address is none that others could use
            await self._server.listen_tcp(address, tls=channel_tls.server_context())

    async def _end(self) -> None:
        if self._server is not None:
            await self._server.drain(DRAIN_S)
            await self._server.close()
        if self._folder is not None:
            self._folder.rmdir()

    async def handle(self, call: IncomingCall) -> Any:
        """Run a call; see `servepipe.channel.calls`."""
        replica = self._replica
        if replica.ends:
            raise CallRejectedError("the replica is about to end", reason=Reason.DRAINING)
        context = RequestContext(call.request_id, call.deadline, call.pins)
        if not replica.is_full:
            return await self._run(call.request_id, call.method, call.args, call.kwargs, context)
        if 0 <= replica.max_queued_requests <= self._queued:
            raise CallRejectedError(f"{self._queued} calls wait for this replica", reason=Reason.FULL)
        waits = _Waits(self)
        _waiting.set(waits.has_begun)
        try:
            return await self._run(call.request_id, call.method, call.args, call.kwargs, context)
        finally:
            waits.end()


class _Waits:
    """A call that waits for its turn, counted until it begins or is gone."""

    def __init__(self, channel: NodeChannel) -> None:
        self._channel = channel
        self._counted = True
        channel._queued += 1
        channel._replica.count(1)

    def has_begun(self) -> None:
        """Called where user code runs, which may be another thread."""
        loop = self._channel._replica.loop
        if asyncio.get_running_loop() is loop:
            self.end()
        else:
            loop.call_soon_threadsafe(self.end)

    def end(self) -> None:
        if self._counted:
            self._counted = False
            self._channel._queued -= 1
            self._channel._replica.count(-1)


def _new_folder() -> Path:
    """A folder for the socket that only this user can enter; with Ray's own sockets, unless the path were too long."""
    session = session_folder()
    if session is not None and len(os.fsencode(session)) <= MAX_FOLDER:
        return Path(tempfile.mkdtemp(prefix="svp-", dir=session))
    return Path(tempfile.mkdtemp(prefix="svp-"))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


async def _on(loop: asyncio.AbstractEventLoop, work: Callable[..., Any], *args: Any) -> Any:
    """Await ``work(*args)`` on ``loop``."""
    if asyncio.get_running_loop() is loop:
        return await work(*args)
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(*args), loop))
