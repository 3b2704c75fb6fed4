"""Discovery: what is missing for long is missing, and many who ask are one request."""

from __future__ import annotations

import asyncio

import pytest
from fake_kube import FakeKube, serving, status

from servepipe_operator.adapters.kube import Resource
from servepipe_operator.adapters.kube_errors import Unavailable
from servepipe_operator.controller.discovery import Discovery

CLUSTERS = Resource("ray.io/v1", "RayCluster", "rayclusters")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


async def test_a_kind_is_missing_only_when_it_was_for_some_seconds() -> None:
    fake, clock = FakeKube(missing_kinds={"rayclusters"}), Clock()
    async with serving(fake) as kube:
        discovery = Discovery(kube, clock=clock, sleep=clock.sleep)
        assert await discovery.is_missing(CLUSTERS)
        assert clock.now >= 3
        fake.missing_kinds.clear()
        clock.now += 10
        assert not await discovery.is_missing(CLUSTERS)
        fake.fail_once("GET", status(503, "ServiceUnavailable", "away"))
        clock.now += 10
        with pytest.raises(Unavailable):
            await discovery.is_missing(CLUSTERS)


async def test_waiting_ends_when_it_comes_or_when_nobody_may_ask() -> None:
    fake, clock = FakeKube(missing_kinds={"rayclusters"}), Clock()
    async with serving(fake) as kube, asyncio.timeout(10):
        discovery = Discovery(kube, clock=clock, sleep=clock.sleep)
        fake.fail_once("GET", status(503, "ServiceUnavailable", "away"))
        waiting = [asyncio.create_task(discovery.wait_for(CLUSTERS)) for _ in range(5)]
        while len(fake.requests) < 4:  # noqa: ASYNC110 - the stand-in tells nobody
            await asyncio.sleep(0.001)
        assert not any(task.done() for task in waiting)
        fake.missing_kinds.clear()
        await asyncio.gather(*waiting)
        fake.missing_kinds.add("rayclusters")
        clock.now += 10
        fake.fail_once("GET", status(403, "Forbidden", "no discovery"))
        await discovery.wait_for(CLUSTERS)


async def test_those_who_ask_together_are_one_request() -> None:
    fake, clock = FakeKube(), Clock()
    async with serving(fake) as kube:
        discovery = Discovery(kube, clock=clock, sleep=clock.sleep)
        assert await asyncio.gather(*(discovery.is_missing(CLUSTERS) for _ in range(10))) == [False] * 10
    assert fake.requests == ["GET /apis/ray.io/v1"]
