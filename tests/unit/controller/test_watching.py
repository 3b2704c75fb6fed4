"""Lists, watches and what they tell, against a stand-in of the API server behind real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from fake_kube import FakeKube, serving, status

from servepipe_operator.controller.context import Key
from servepipe_operator.controller.discovery import Discovery
from servepipe_operator.controller.health import Health
from servepipe_operator.controller.kinds import CHILDREN, pipelines
from servepipe_operator.controller.queue import Backoff
from servepipe_operator.controller.store import Cache, WatchStore
from servepipe_operator.controller.watching import BURST_S, Watches

A, B = Key("ns", "a"), Key("ns", "b")
OWN, KUBERAY = "servepipelines.servepipe.dev", "rayclusters.ray.io"


@dataclass
class World:
    fake: FakeKube = field(default_factory=FakeKube)
    health: Health = field(default_factory=Health)
    told: list[Key] = field(default_factory=list)
    within_s: dict[Key, float] = field(default_factory=dict)
    store: WatchStore = field(
        default_factory=lambda: WatchStore(
            Cache(pipelines("ours")), [Cache(CHILDREN[kind]) for kind in ("RayCluster", "Service")]
        )
    )

    @asynccontextmanager
    async def watching(self, **options: Any) -> AsyncIterator[None]:
        async with serving(self.fake) as kube:
            watches = Watches(
                kube,
                self.store,
                Discovery(kube, poll_s=0.02, confirm_s=0.02),
                self.health,
                self.tell,
                backoff=lambda: Backoff(0.01, 0.05),
                **options,
            )
            task = asyncio.create_task(watches.run())
            try:
                async with asyncio.timeout(20):
                    yield
            finally:
                assert not task.done(), task
                task.cancel()
                self.fake.cut_watches()
                await asyncio.gather(task, return_exceptions=True)

    def tell(self, key: Key, within_s: float) -> None:
        self.told.append(key)
        self.within_s[key] = within_s

    async def until(self, what: str, check: Callable[[], object]) -> None:
        try:
            async with asyncio.timeout(10):
                while not check():  # noqa: ASYNC110 - what is waited for is no event
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"no {what}; told {self.told}, waiting for {self.health.waiting}") from None

    async def until_told(self, *keys: Key) -> None:
        await self.until(f"word of {keys}", lambda: set(self.told) >= set(keys))
        self.told.clear()

    async def until_watched(self) -> None:
        await self.until("three watches", lambda: self.fake.watches == 3)


def pipe(name: str, namespace: str = "ns", **labels: str) -> dict[str, Any]:
    metadata = {"namespace": namespace, "name": name, "labels": labels, "generation": 1}
    return {"apiVersion": "servepipe.dev/v1alpha1", "kind": "ServePipeline", "metadata": metadata}


def service(name: str, pipeline: str) -> dict[str, Any]:
    metadata = {"namespace": "ns", "name": name, "labels": {"servepipe.dev/pipeline": pipeline}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata}


async def test_what_is_there_and_what_changes_is_told() -> None:
    world = World()
    world.fake.put(pipe("a"))
    one = world.fake.put(service("s", "a"))
    async with world.watching():
        await world.until_told(A)
        await world.until_watched()
        world.fake.put(pipe("b"))
        await world.until_told(B)
        world.fake.put({**one, "spec": {"x": 1}})
        await world.until_told(A)
        assert world.store.children("Service", A)[0]["spec"] == {"x": 1}
        world.fake.put(service("t", "nobody"))
        world.fake.remove(one)
        await world.until("word of a", lambda: A in world.told)
        assert world.store.children("Service", A) == ()
        assert world.told == [A], "a pipeline that is not there is nobody's business"


async def test_a_wish_is_looked_at_at_once_and_what_belongs_to_it_at_the_end_of_a_burst() -> None:
    world = World()
    wish = world.fake.put(pipe("a"))
    one = world.fake.put(service("s", "a"))
    async with world.watching():
        await world.until_told(A)
        await world.until_watched()
        world.fake.put({**one, "spec": {"x": 1}})
        await world.until_told(A)
        assert world.within_s[A] == BURST_S
        world.fake.put({**wish, "metadata": {**wish["metadata"], "generation": 2}})
        await world.until_told(A)
        assert world.within_s[A] == 0


async def test_what_vanished_while_the_watch_was_cut_is_told_after_the_version_is_too_old() -> None:
    world = World()
    both = [world.fake.put(pipe(name)) for name in "ab"]
    child = world.fake.put(service("s", "b"))
    async with world.watching():
        await world.until_told(A, B)
        await world.until_watched()
        world.fake.remove(both[0], seen=False)
        world.fake.remove(child, seen=False)
        world.fake.version += 100
        world.fake.oldest_version = world.fake.version
        world.fake.cut_watches()
        await world.until_told(A, B)
        assert world.store.pipeline(A) is None
        assert world.store.children("Service", B) == ()


async def test_a_watch_that_is_cut_goes_on_without_a_new_list() -> None:
    world = World()
    world.fake.put(pipe("a"))
    async with world.watching():
        await world.until_told(A)
        await world.until_watched()
        lists = len([r for r in world.fake.requests if r.startswith("GET")])
        world.fake.cut_watches()
        world.fake.put(pipe("b"))
        await world.until_told(B)
        await world.until_watched()
        assert len(world.fake.requests) - lists == 3


async def test_everything_is_listed_anew_after_a_while_though_no_watch_told() -> None:
    world = World()
    gone = world.fake.put(pipe("a"))
    world.fake.put(pipe("b"))
    async with world.watching(resync_s=0.5):
        await world.until_told(A, B)
        world.fake.remove(gone, seen=False)
        await world.until_told(A, B)
        await world.until("the loss", lambda: world.store.pipeline(A) is None)


async def test_nothing_is_told_before_all_kinds_were_listed() -> None:
    world = World()
    world.fake.put(pipe("a"))
    refused = True

    def refuse(method: str, path: str) -> web.Response | None:
        return status(403, "Forbidden", "may not list rayclusters") if refused and "rayclusters" in path else None

    world.fake.faults.append(refuse)
    async with world.watching():
        await world.until("the missing right", lambda: KUBERAY in world.health.waiting)
        assert "lacks a right" in world.health.waiting[KUBERAY]
        await world.until("the pipelines", lambda: world.store.pipeline(A))
        assert world.told == []
        refused = False
        await world.until_told(A)
        assert world.health.waiting == {}


@pytest.mark.parametrize(("plural", "name"), [("servepipelines", OWN), ("rayclusters", KUBERAY)])
async def test_a_kind_that_is_missing_is_waited_for(plural: str, name: str) -> None:
    world = World()
    own = plural == "servepipelines"
    world.fake.missing_kinds.add(plural)
    if not own:
        world.fake.put(pipe("a"))
    async with world.watching():
        await world.until("the wait", lambda: name in world.health.waiting)
        assert world.store.missing() == {name}
        if not own:
            await world.until_told(A)  # so that its status can say so
        world.fake.missing_kinds.clear()
        await world.until("the end of the wait", lambda: not world.health.waiting)
        if own:
            world.fake.put(pipe("a"))
        await world.until_told(A)
        assert world.store.missing() == frozenset()
        await world.until_watched()
        world.fake.missing_kinds.add(plural)  # the CRD is deleted again, and with it what there was
        world.fake.cut_watches()
        await world.until("the second wait", lambda: name in world.health.waiting)
        if own:
            assert world.store.pipeline(A) is None
        await world.until_told(A)


async def test_a_server_that_does_not_know_a_kind_for_a_moment_is_not_believed() -> None:
    world = World()
    world.fake.put(pipe("a"))
    async with world.watching():
        await world.until_told(A)
        await world.until_watched()
        unknown = [web.Response(status=404, text="404 page not found\n") for _ in range(2)]
        world.fake.faults.append(
            lambda method, path: unknown.pop() if unknown and path.endswith("servepipelines") else None
        )
        world.fake.cut_watches()
        await world.until("both answers to be used", lambda: not unknown)
        await world.until_watched()
        assert world.store.pipeline(A) is not None
        assert world.told == [], "it was believed, and the pipeline taken for gone"
        assert world.health.waiting == {}


async def test_a_server_that_is_away_is_said_until_it_is_back() -> None:
    world = World()
    world.fake.put(pipe("a"))
    away = False
    world.fake.faults.append(lambda method, path: status(503, "ServiceUnavailable", "away") if away else None)
    async with world.watching():
        await world.until_told(A)
        await world.until_watched()
        away = True
        world.fake.cut_watches()
        await world.until("three complaints", lambda: len(world.health.waiting) == 3)
        away = False
        await world.until("their end", lambda: not world.health.waiting)
        world.fake.put(pipe("b"))
        await world.until_told(B)


async def test_a_namespace_that_cannot_be_read_holds_up_no_other() -> None:
    world = World()
    world.fake.put(pipe("a"))
    world.fake.put(pipe("a", "closed"))
    world.fake.faults.append(
        lambda method, path: status(403, "Forbidden", "no") if "/namespaces/closed/" in path else None
    )
    async with world.watching(namespaces=("ns", "closed")):
        await world.until_told(A)
        await world.until("the complaint", lambda: f"{OWN} in closed" in world.health.waiting)
        assert f"{OWN} in ns" not in world.health.waiting
        assert Key("closed", "a") not in world.told
        assert world.store.pipeline(Key("closed", "a")) is None
