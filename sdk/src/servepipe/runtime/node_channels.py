"""The channels from this process to the replicas of nodes, found through the handles that Serve has anyway.

A replica publishes where it listens with its metadata, which Serve's controller sends to every handle. Handles replace
their list of replicas when it changes, so one comparison per call shows whether there is something new; a timer
looks as well, so that channels are open before the first call.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import ssl
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import ray
from ray import cloudpickle
from ray.serve.handle import DeploymentHandle
from ray.util import metrics

from servepipe.channel.endpoints import Endpoint
from servepipe.channel.errors import ChannelError
from servepipe.channel.frames import Limits
from servepipe.channel.pool import ChannelPool
from servepipe.runtime import channel_tls
from servepipe.runtime.flags import CHANNEL
from servepipe.runtime.node_channel import METADATA
from servepipe.runtime.serve_internals import UnexpectedServeError, known_replicas, metadata_of, traces

__all__ = ["NodeChannels"]

log = logging.getLogger("servepipe.runtime")

LOOK_EVERY_S = 0.2
TELL_EVERY_S = 1.0


class NodeChannels:
    """Belongs to the event loop on which it is first used.

    Args:
        margin_s: Seconds before its deadline at which a call is given up.

    Attributes:
        ways: How many calls went which way since they were last told: ``channel``, or a reason for a handle. One that
            a channel did not carry to its end counts twice: it was tried.
    """

    def __init__(self, margin_s: float) -> None:
        self._limits = Limits(margin_s=margin_s)
        self._known: dict[str, tuple[DeploymentHandle[Any], Sequence[Any]]] = {}
        self._pools: dict[str, ChannelPool] = {}
        self._off = "off" if os.environ.get(CHANNEL) == "off" else ""
        self._machine = ""
        self._tls: ssl.SSLContext | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.ways: Counter[str] = Counter()

    def pool(self, application: str) -> ChannelPool | None:
        """The channels to an application; None, which is counted, where there are none to use now."""
        known = self._known.get(application)
        if known is None:
            self.ways[self._off or "unknown"] += 1
            return None
        handle, seen = known
        try:
            if known_replicas(handle) is not seen:
                self._look(application)
        except UnexpectedServeError as error:
            self._give_up(str(error))
        pool = self._pools.get(application)
        if pool is None or not pool.usable:
            self.ways[self._off or "no channel"] += 1
            return None
        if traces():
            self.ways["traced"] += 1
            return None
        self.ways["channel"] += 1
        return pool

    @property
    def off(self) -> bool:
        """Whether this process uses handles only."""
        return bool(self._off)

    def add(self, application: str, handle: DeploymentHandle[Any]) -> None:
        """Keep channels to the replicas that ``handle`` knows."""
        if self._watcher is None:  # also where channels are off: it tells that they are
            self._watcher = asyncio.get_running_loop().create_task(self._watch(), context=contextvars.Context())
            try:
                self._machine = ray.get_runtime_context().get_node_id()
                self._tls = channel_tls.client_context()
            except (ChannelError, OSError) as error:
                self._give_up(str(error))
        if not self._off:
            self._known[application] = handle, ()

    def remove(self, applications: Collection[str]) -> None:
        """Let the channels to these end when their last call has."""
        for application in applications:
            self._known.pop(application, None)
            pool = self._pools.pop(application, None)
            if pool is not None:
                pool.update({})

    def _look(self, application: str) -> None:
        """Bring the channels to an application up to date."""
        handle, _ = self._known[application]
        replicas = known_replicas(handle)
        self._known[application] = handle, replicas
        found: dict[str, Endpoint] = {}
        for replica in replicas:
            unique_id, data = metadata_of(replica)
            endpoint = Endpoint.parse(data.get(METADATA))
            way = None if endpoint is None else endpoint.seen_from(self._machine)
            if way is not None:
                found[unique_id] = way
        pool = self._pools.get(application)
        if pool is None:
            if not found:
                return
            pool = self._pools[application] = ChannelPool(
                limits=self._limits, fallback=cloudpickle.dumps, tls=self._tls
            )
        pool.update(found, others=len(replicas) - len(found))

    def _give_up(self, why: str) -> None:
        """Use handles only from now on; what is under way ends as usual."""
        log.warning("nodes are called over Serve's handles only: %s", why)
        self._off = "unexpected"
        self._known.clear()
        for pool in self._pools.values():
            pool.update({})
        self._pools.clear()

    async def close(self) -> None:
        """End all channels now."""
        if self._watcher is not None:
            self._watcher.cancel()
        for pool in self._pools.values():
            await pool.close()
        self._pools.clear()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        told = loop.time()
        counter = metrics.Counter(
            "servepipe_node_calls",
            description="Calls of nodes by the way that they took: a channel, or Serve's handle, and why.",
            tag_keys=("way",),
        )
        while True:
            try:
                for application, (handle, seen) in [*self._known.items()]:
                    if known_replicas(handle) is not seen:
                        self._look(application)
                if loop.time() - told > TELL_EVERY_S:
                    told = loop.time()
                    ways, self.ways = self.ways, Counter()
                    for way, count in ways.items():
                        counter.inc(count, tags={"way": way})
            except UnexpectedServeError as error:
                self._give_up(str(error))
            except Exception:  # of Ray's metrics, for instance; calls go on
                log.exception("looking for replicas")
            await asyncio.sleep(LOOK_EVERY_S)
