"""Which kinds the API server knows, asked only while one of them seems to be missing.

Watching CustomResourceDefinitions would tell more, at the price of a right over the whole cluster that a namespaced
installation does not get. Every account may ask for discovery.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from servepipe_operator.adapters.kube import Kube, Resource
from servepipe_operator.adapters.kube_errors import Forbidden, KubeError

__all__ = ["Discovery"]


class Discovery:
    """One for all watches: what they ask at the same time is one request.

    Args:
        poll_s: Between looks while a kind is missing.
        confirm_s: A kind counts as missing only when it was missing for so long. A server that just started answers
            404 for custom resources whose definitions it has not read yet.
        clock: Monotonic seconds.
        sleep: Replaced by tests.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        poll_s: float = 5.0,
        confirm_s: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._kube, self._poll_s, self._confirm_s = kube, poll_s, confirm_s
        self._clock, self._sleep = clock, sleep
        self._answers: dict[str, tuple[float, frozenset[str]]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def is_missing(self, resource: Resource) -> bool:
        """Whether the server, for some seconds and each time asked, did not know ``resource``.

        Raises:
            KubeError: It did not answer.
        """
        until = self._clock() + self._confirm_s
        while not await self._serves(resource, self._confirm_s / 4):
            if self._clock() >= until:
                return True
            await self._sleep(self._confirm_s / 3)
        return False

    async def wait_for(self, resource: Resource) -> None:
        """Return once the server knows ``resource``, or when only trying can tell."""
        while True:
            await self._sleep(self._poll_s)
            try:
                if await self._serves(resource, self._poll_s / 2):
                    return
            except Forbidden:
                return
            except KubeError:
                continue

    async def _serves(self, resource: Resource, fresh_s: float) -> bool:
        version = resource.api_version
        async with self._locks.setdefault(version, asyncio.Lock()):
            at, plurals = self._answers.get(version, (-1e9, frozenset[str]()))
            if self._clock() - at >= fresh_s:
                plurals = await self._kube.discover(version)
                self._answers[version] = (self._clock(), plurals)
        return resource.plural in plurals
