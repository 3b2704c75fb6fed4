"""Lists and watches that keep the caches, and say which pipelines are worth a look.

Each kind (in each namespace of a namespaced installation) has one task that lists and then follows. Whatever ends a
watch, the task goes on: from where it was, or from a new list. A list is compared with the cache, so that what vanished
while nobody watched is noticed too. After `resync_s` it lists in any case.

Nothing is told before all kinds of a namespace were listed once: a reconciler must not take for missing what was not
looked for yet.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence

from servepipe_operator.adapters.kube import Kube
from servepipe_operator.adapters.kube_errors import Forbidden, Gone, KubeError, NotFound, Unavailable
from servepipe_operator.controller.context import Key
from servepipe_operator.controller.discovery import Discovery
from servepipe_operator.controller.health import Health
from servepipe_operator.controller.queue import Backoff
from servepipe_operator.controller.store import Cache, Place, WatchStore
from servepipe_operator.engine.state import Json

__all__ = ["Watches"]

log = logging.getLogger(__name__)

WATCH_S = 300.0
#: What belongs to a pipeline changes in bursts: a pod that starts is written five times, one that we make comes back as
#: news. One look at the end of a burst sees as much as one for each, and writes less.
BURST_S = 0.2
#: A watch that ends sooner than this was cut off, not ended.
SHORT_S = 1.0


class Watches:
    """All watches of one installation.

    Args:
        namespaces: Which to look at; empty means all, with one watch of each kind.
        tell: Told each pipeline that is worth a look, and within how many seconds.
        resync_s: Seconds after which everything is listed anew.
    """

    def __init__(
        self,
        kube: Kube,
        store: WatchStore,
        discovery: Discovery,
        health: Health,
        tell: Callable[[Key, float], None],
        *,
        namespaces: Sequence[str] = (),
        resync_s: float = 300.0,
        backoff: Callable[[], Backoff[str]] = lambda: Backoff(0.2, 15.0),
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store, self._tell, self._chance = store, tell, chance
        self._spread_s = min(resync_s / 10, 30.0)
        self._watches = [
            _Watch(self, kube, cache, scope, discovery, health, resync_s, backoff(), chance)
            for scope in (namespaces or ("",))
            for cache in store.caches
        ]
        self._unsettled: dict[str, set[str]] = {}
        for watch in self._watches:
            self._unsettled.setdefault(watch.scope, set()).add(watch.cache.kind.name)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for watch in self._watches:
                group.create_task(watch.run(), name=f"watch {watch.cache.kind.name} {watch.scope}")

    def settled(self, watch: _Watch) -> None:
        """``watch`` knows what there is, or that its kind is missing."""
        waiting = self._unsettled[watch.scope]
        if watch.cache.kind.name in waiting:
            waiting.discard(watch.cache.kind.name)
            if not waiting:
                where = f"namespace {watch.scope}" if watch.scope else "all namespaces"
                log.info("watching %s; pipelines: %d", where, len(self._of(watch.scope)))
                self.all(watch.scope, 0.0)

    def changed(self, watch: _Watch, keys: Iterable[Key]) -> None:
        """``watch`` saw something of these pipelines."""
        if self._unsettled[watch.scope]:
            return
        own = watch.cache is self._store.pipelines
        known = keys if own else [key for key in keys if self._store.pipelines.of(key)]
        for key in known:
            self._tell(key, 0.0 if own else BURST_S)

    def all(self, scope: str, spread_s: float | None = None) -> None:
        """Look at every pipeline of ``scope``, by default not all at once."""
        if not self._unsettled[scope]:
            for key in self._of(scope):
                self._tell(key, self._chance() * (self._spread_s if spread_s is None else spread_s))

    def resynced(self, watch: _Watch) -> None:
        """``watch`` is about to list anew because it is time."""
        if watch.cache is self._store.pipelines:
            self.all(watch.scope)

    def missing(self, watch: _Watch, missing: bool) -> None:
        """``watch`` found out whether its kind is served."""
        self._store.is_missing(watch.cache.kind.name, missing)

    def _of(self, scope: str) -> list[Key]:
        return [key for key in self._store.pipelines.owners() if scope in ("", key.namespace)]


class _Watch:
    """One kind in one namespace, or in all ("")."""

    def __init__(
        self,
        watches: Watches,
        kube: Kube,
        cache: Cache,
        scope: str,
        discovery: Discovery,
        health: Health,
        resync_s: float,
        backoff: Backoff[str],
        chance: Callable[[], float],
    ) -> None:
        self._watches, self._kube, self.cache, self.scope = watches, kube, cache, scope
        self._discovery, self._health, self._resync_s = discovery, health, resync_s
        self._backoff, self._chance = backoff, chance
        self._missing = False
        self._what = cache.kind.name + (f" in {scope}" if scope else "")

    async def run(self) -> None:
        """List and follow, for ever."""
        while True:
            try:
                version = await self._list()
                self._found(self._what)
                self._came()
                self._watches.settled(self)
                await self._follow(version)
            except Gone as error:
                log.info("%s: listing again: %s", self._what, error)
                await self._pause()
            except NotFound as error:
                if not await self._confirmed():
                    await self._pause()
                    continue
                await self._come(str(error))
            except Forbidden as error:
                self._wait(self._what, f"the operator lacks a right: {error}")
                await self._pause()
            except KubeError as error:
                self._wait(self._what, str(error))
                await self._pause()

    async def _list(self) -> str:
        """Compare all there is with the cache; the version to follow from."""
        kind = self.cache.kind
        version, seen, touched = "", set[Place](), set[Key]()
        async for page in self._kube.pages(kind.resource, self.scope, kind.labels, kind.fields):
            version = version or page.version
            for live in page.items:
                live.setdefault("apiVersion", kind.resource.api_version)  # items of a list do not say what they are
                live.setdefault("kind", kind.resource.kind)
                seen.add(_place(live))
                touched |= self.cache.put(live)
        touched |= self.cache.keep_only(seen, self.scope)
        self._watches.changed(self, touched)
        return version

    async def _follow(self, version: str) -> None:
        """Keep the cache until it is time for a new list."""
        kind = self.cache.kind
        until = time.monotonic() + self._resync_s * (0.9 + 0.2 * self._chance())
        while (left := until - time.monotonic()) > 0:
            began = time.monotonic()
            seconds = max(int(min(left, WATCH_S * (0.8 + 0.2 * self._chance()))), 1)
            try:
                async with (
                    asyncio.timeout(left),  # the server counts whole seconds
                    self._kube.watch(
                        kind.resource, self.scope, kind.labels, kind.fields, since=version, seconds=seconds
                    ) as changes,
                ):
                    self._found(self._what)
                    async for change in changes:
                        version = change["object"]["metadata"]["resourceVersion"]
                        self._see(change)
            except TimeoutError:
                break
            except Unavailable as error:
                self._wait(self._what, str(error))
                await self._pause()
                continue
            if time.monotonic() - began < SHORT_S:
                await self._pause()
            else:
                self._backoff.forget(self._what)
        self._watches.resynced(self)

    def _see(self, change: Json) -> None:
        live = change["object"]
        match change["type"]:
            case "ADDED" | "MODIFIED":
                self._watches.changed(self, self.cache.put(live))
            case "DELETED":
                self._watches.changed(self, self.cache.drop(_place(live)))
            case _:
                pass  # a bookmark: only a version

    async def _confirmed(self) -> bool:
        """Whether the kind is missing and not only unknown to a server that just started."""
        try:
            return await self._discovery.is_missing(self.cache.kind.resource)
        except KubeError:
            return False

    async def _come(self, error: str) -> None:
        """The kind is not served, so there are no objects of it; return once it is served."""
        self._missing = True
        self._watches.missing(self, True)
        self._wait(self.cache.kind.name, f"the API server does not know it; is its CRD installed? ({error})")
        self._watches.changed(self, self.cache.keep_only(set(), self.scope))
        self._watches.settled(self)
        self._watches.all(self.scope, 0.0)  # their status has to say so
        await self._discovery.wait_for(self.cache.kind.resource)
        self._backoff.forget(self._what)

    def _came(self) -> None:
        """A list worked: if the kind was missing, every pipeline may go on."""
        if self._missing:
            self._missing = False
            self._watches.missing(self, False)
            self._found(self.cache.kind.name)
            self._watches.all(self.scope, 0.0)

    async def _pause(self) -> None:
        await asyncio.sleep(self._backoff.next_s(self._what))

    def _wait(self, what: str, why: str) -> None:
        if self._health.waiting.get(what) != why:
            self._health.wait_for(what, why)
            log.warning("waiting for %s: %s", what, why)

    def _found(self, what: str) -> None:
        if what in self._health.waiting:
            self._health.found(what)
            log.info("%s is there", what)


def _place(live: Json) -> Place:
    return (str(live["metadata"].get("namespace") or ""), str(live["metadata"]["name"]))
