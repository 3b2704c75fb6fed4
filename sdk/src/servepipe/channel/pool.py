"""The channels from this process to the replicas of one application.

    pool = ChannelPool()
    pool.update({"replica-1": endpoint, …})      # whenever the replicas change; connections are made in the background
    answer = await pool.call("forward", (x,), {}, context)

A call goes to the less loaded of two replicas, by this process's own count. One that did not begin it is followed by
another; a call that may have begun is never made twice here. `NoChannelError` and `CallRejectedError` mean that no
replica began it: the caller has another way for it. So does `QueueFullError`, but no other way would be a better one.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import ssl
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from servepipe.channel.choice import backoff, choose, differences
from servepipe.channel.client import Channel
from servepipe.channel.endpoints import Endpoint
from servepipe.channel.errors import (
    CallRejectedError,
    ChannelLostError,
    HandshakeError,
    NoChannelError,
    QueueFullError,
    Reason,
)
from servepipe.channel.frames import Limits
from servepipe.channel.metadata import CallContext
from servepipe.channel.values import Dumps

__all__ = ["ChannelPool"]

log = logging.getLogger("servepipe.channel")

ATTEMPTS = 3
"""Replicas that are asked before a call is given up here, with those that only have no room not counted."""

_FINAL = {Reason.VERSION, Reason.IDENTITY, Reason.TOKEN}


class ChannelPool:
    """Belongs to the event loop on which it is made.

    Args:
        limits: Of each channel.
        fallback: Pickles arguments that ``pickle`` refuses.
        tls: For endpoints that speak TLS.
        rng: Draws replicas and waiting times.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        fallback: Dumps | None = None,
        tls: ssl.SSLContext | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._fallback = fallback
        self._tls = tls
        self._rng = rng or random.Random()
        self._loop = asyncio.get_running_loop()
        self._members: dict[str, Endpoint] = {}
        self._others = 0
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._open: dict[str, Channel] = {}
        self._usable: list[Channel] = []
        self._retiring: set[Channel] = set()

    @property
    def replicas(self) -> Mapping[str, Endpoint]:
        """What `update` has set."""
        return self._members

    @property
    def usable(self) -> int:
        """Channels that take calls now."""
        return len(self._usable)

    @property
    def in_flight(self) -> int:
        """Calls that replicas have not ended."""
        return sum(channel.in_flight for channel in {*self._open.values(), *self._retiring})

    def update(self, replicas: Mapping[str, Endpoint], others: int = 0) -> None:
        """Keep channels to these replicas and no others. Those that go end when their last call has its answer.

        Args:
            others: How many replicas there are that no channel leads to.
        """
        self._others = others
        new, gone = differences(self._members, replicas)
        self._members = dict(replicas)
        for replica in gone:
            self._keepers.pop(replica).cancel()
            channel = self._open.pop(replica, None)
            if channel is not None:
                self._retiring.add(channel)
                channel.ended.add_done_callback(partial(self._retired, channel))
                channel.retire()
        for replica, endpoint in new.items():
            self._keepers[replica] = self._loop.create_task(
                self._keep(replica, endpoint), context=contextvars.Context(), name=f"channel to {endpoint!r}"
            )

    async def call(
        self, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], context: CallContext
    ) -> Any:
        """Make a call; see `Channel.call`.

        Raises:
            NoChannelError: There is no channel.
            CallRejectedError: Every replica that was asked rejected it.
            QueueFullError: There are no others than these, and each has as many calls waiting as it may.
            ChannelLostError: The connection ended when the call may have begun.
        """
        refusal: Exception | None = None
        asked: list[Channel] = []
        full: set[Channel] = set()
        while len(asked) - len(full) < ATTEMPTS:
            channels = self._usable if not asked else [one for one in self._usable if one not in asked]
            channel = choose(channels, self._rng)
            if channel is None:
                break
            try:
                return await channel.call(method, args, kwargs, context)
            except CallRejectedError as error:
                refusal = error
                if error.reason is Reason.FULL:
                    full.add(channel)
            except ChannelLostError as error:
                if error.sent:
                    raise
                refusal = error
            asked.append(channel)
        if full and not self._others and all(self._open.get(replica) in full for replica in self._members):
            raise QueueFullError(f"each of {len(full)} replicas has as many calls waiting as it may")
        raise refusal if isinstance(refusal, CallRejectedError) else NoChannelError("no replica can be reached")

    async def close(self) -> None:
        """End all channels now; calls under way see a lost channel."""
        keepers = [*self._keepers.values()]
        for keeper in keepers:
            keeper.cancel()
        self._keepers.clear()
        self._members = {}
        channels = {*self._open.values(), *self._retiring}
        self._open.clear()
        for channel in channels:
            channel.abort("the pool was closed")
        await asyncio.gather(*keepers, *(channel.ended for channel in channels), return_exceptions=True)

    async def _keep(self, replica: str, endpoint: Endpoint) -> None:
        """Keep a channel open as long as the replica is wanted."""
        failures = 0
        while True:
            try:
                channel = await Channel.connect(
                    endpoint, limits=self._limits, fallback=self._fallback, tls=self._tls, on_unusable=self._forget
                )
            except (HandshakeError, OSError) as error:
                final = isinstance(error, HandshakeError) and error.reason in _FINAL
                failures = 16 if final else failures + 1
                level = logging.WARNING if failures in (3, 16) else logging.DEBUG
                log.log(level, "no channel to %r: %s", endpoint, error or type(error).__name__)
            else:
                failures = 1
                self._open[replica] = channel
                if channel.usable:
                    self._usable.append(channel)
                await self._stay(channel)
                self._open.pop(replica, None)
            await asyncio.sleep(backoff(failures, self._rng))

    async def _stay(self, channel: Channel) -> None:
        """Wait for the end of a channel; let the replica know meanwhile that somebody is still there."""
        while not channel.ended.done():
            await asyncio.wait([channel.ended], timeout=self._limits.idle_s / 3)
            if channel.alive:
                channel.greet()

    def _retired(self, channel: Channel, ended: asyncio.Future[None]) -> None:
        self._retiring.discard(channel)

    def _forget(self, channel: Channel) -> None:
        if channel in self._usable:
            self._usable.remove(channel)
