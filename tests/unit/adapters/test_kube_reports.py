"""Status and Events on the API server."""

from __future__ import annotations

import pytest
from fake_kube import FakeKube, serving, status

from servepipe_operator.adapters.kube import Kube, Resource
from servepipe_operator.adapters.kube_errors import Conflict, NotFound
from servepipe_operator.adapters.kube_events import EVENTS, KubeEvents, ToldEvents
from servepipe_operator.adapters.kube_status import KubeStatus
from servepipe_operator.adapters.owner import Owner
from servepipe_operator.engine.state import Event

PIPES = Resource("servepipe.dev/v1alpha1", "ServePipeline", "servepipelines")


async def pipeline(kube: Kube) -> Owner:
    meta = {"name": "p", "namespace": "ns"}
    live = await kube.create(PIPES, {"apiVersion": PIPES.api_version, "kind": PIPES.kind, "metadata": meta})
    return Owner(PIPES.api_version, PIPES.kind, "ns", "p", live["metadata"]["uid"])


async def test_fields_that_are_no_longer_said_vanish_and_other_writers_conditions_stay() -> None:
    fake = FakeKube()
    async with serving(fake) as kube:
        owner = await pipeline(kube)
        writer = KubeStatus(kube, PIPES, owner)
        assert await writer.read() == {}
        await writer.write({"url": "u", "conditions": [{"type": "Ready", "status": "False"}]})
        live = next(iter(fake.objects.values()))
        live["status"]["conditions"].append({"type": "Foreign", "status": "True"})
        await writer.write({"conditions": [{"type": "Ready", "status": "True"}]})
        got = await KubeStatus(kube, PIPES, owner).read()
        assert "url" not in got
        assert {c["type"]: c["status"] for c in got["conditions"]} == {"Ready": "True", "Foreign": "True"}
        assert await writer.read() == got


async def test_a_status_is_written_although_the_object_changed_meanwhile() -> None:
    fake = FakeKube()
    async with serving(fake) as kube:
        writer = KubeStatus(kube, PIPES, await pipeline(kube))
        await writer.read()
        await kube.apply(PIPES, {"metadata": {"namespace": "ns", "name": "p"}, "spec": {"changed": 1}})
        await writer.write({"a": 1})
        await writer.write({"a": 2})
        assert (await kube.get(PIPES, "ns", "p"))["status"] == {"a": 2}
        fake.faults.append(lambda method, path: status(409, "Conflict", "no") if method == "PATCH" else None)
        with pytest.raises(Conflict):
            await writer.write({"a": 3})


async def test_the_status_of_a_successor_is_not_touched() -> None:
    async with serving(FakeKube()) as kube:
        owner = await pipeline(kube)
        await kube.delete(PIPES, "ns", "p")
        with pytest.raises(NotFound):
            await KubeStatus(kube, PIPES, owner).write({"a": 1})
        await pipeline(kube)
        with pytest.raises(Conflict):
            await KubeStatus(kube, PIPES, owner).write({"a": 1})


async def test_the_same_is_told_once_and_what_changed_again() -> None:
    fake, lost = FakeKube(), []
    async with serving(fake) as kube:
        owner = await pipeline(kube)
        told = ToldEvents()
        events = KubeEvents(kube, owner, told, "operator-0", lambda event, error: lost.append(event.reason))
        first = Event("Normal", "Deployed", "one", "node")
        fake.fail_once("POST", status(403, "Forbidden", "no"))
        await events.emit(first)
        assert lost == ["Deployed"]
        await events.emit(first)
        await KubeEvents(kube, owner, told, "operator-0").emit(first)
        await events.emit(Event("Normal", "Deployed", "two", "node"))
        await events.emit(Event("Warning", "Broken", "ä" * 2000))
        written = await kube.list(EVENTS, "ns")
    assert sorted(e["note"][:9] for e in written) == ["node: one", "node: two", "ä" * 9]
    assert all(len(e["note"].encode()) <= 1024 and e["regarding"]["uid"] == owner.uid for e in written)
    assert {e["type"] for e in written} == {"Normal", "Warning"}
    assert all(e["reportingController"] and e["reportingInstance"] and e["action"] for e in written)


def test_what_was_told_is_bounded() -> None:
    told = ToldEvents(most=2)
    for name in "abc":
        told.remember(name, Event("Normal", "R", "m"))
    assert [told.is_new(name, Event("Normal", "R", "m")) for name in "abc"] == [True, False, False]


async def test_an_event_with_half_a_surrogate_pair_is_told() -> None:
    fake = FakeKube()
    async with serving(fake) as kube:
        owner = await pipeline(kube)
        await KubeEvents(kube, owner, ToldEvents(), "operator-0").emit(Event("Warning", "BuildFailed", "\ud800!"))
    (event,) = [one for one in fake.objects.values() if one["kind"] == "Event"]
    assert event["note"] == "?!"
