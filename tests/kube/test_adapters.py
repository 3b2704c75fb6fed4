"""The client, history, status, Events and Lease against a real API server: what the unit tests' stand-in promises."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from bed.control_plane import ControlPlane
from crd_cases import FULL

from servepipe_operator.adapters import kube_errors
from servepipe_operator.adapters.kube import Kube, Resource
from servepipe_operator.adapters.kube_access import login
from servepipe_operator.adapters.kube_events import EVENTS, KubeEvents, ToldEvents
from servepipe_operator.adapters.kube_status import KubeStatus
from servepipe_operator.adapters.owner import Owner
from servepipe_operator.adapters.revision_history import CONTROLLER_REVISIONS, MOST_BYTES, RevisionHistory
from servepipe_operator.controller.lease import Elector, LeaseTimes
from servepipe_operator.engine.state import Event, Record
from servepipe_operator.ports import ConflictError

PODS = Resource("v1", "Pod", "pods")
MAPS = Resource("v1", "ConfigMap", "configmaps")
QUOTAS = Resource("v1", "ResourceQuota", "resourcequotas")
NAMESPACES = Resource("v1", "Namespace", "namespaces", namespaced=False)
CLUSTERS = Resource("ray.io/v1", "RayCluster", "rayclusters")
PIPES = Resource("servepipe.dev/v1alpha1", "ServePipeline", "servepipelines")


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    access = await login(str(control_plane.kubeconfig))
    async with aiohttp.ClientSession() as session:
        yield Kube(session, access)


def named(namespace: str, name: str, resource: Resource = MAPS, **rest: Any) -> dict[str, Any]:
    metadata = {"namespace": namespace, "name": name}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **rest}


async def owner(kube: Kube, namespace: str) -> Owner:
    live = await kube.create(MAPS, named(namespace, "owner"))
    return Owner("v1", "ConfigMap", namespace, "owner", live["metadata"]["uid"])


async def test_apply_and_its_refusals(kube: Kube, namespace: str) -> None:
    first = await kube.apply(MAPS, named(namespace, "a", data={"x": "1", "y": "2"}))
    again = await kube.apply(MAPS, named(namespace, "a", data={"x": "1", "y": "2"}))
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    less = await kube.apply(MAPS, named(namespace, "a", data={"x": "1"}))
    assert less["data"] == {"x": "1"}
    foreign = named(namespace, "a")
    foreign["metadata"]["uid"] = "another"
    with pytest.raises(kube_errors.Invalid):
        await kube.apply(MAPS, foreign)
    with pytest.raises(kube_errors.AlreadyExists):
        await kube.create(MAPS, named(namespace, "a"))
    with pytest.raises(kube_errors.Conflict):
        await kube.update(MAPS, first | {"data": {"x": "3"}})
    with pytest.raises(kube_errors.Conflict):
        await kube.delete(MAPS, namespace, "a", uid="another")
    await kube.delete(MAPS, namespace, "a", uid=first["metadata"]["uid"])
    with pytest.raises(kube_errors.NotFound) as gone:
        await kube.get(MAPS, namespace, "a")
    assert not gone.value.kind_missing
    with pytest.raises(kube_errors.NotFound) as unknown:
        await kube.get(Resource("ray.io/v9", "RayCluster", "rayclusters"), namespace, "a")
    assert unknown.value.kind_missing


async def test_a_json_patch_that_does_not_fit_is_a_conflict_and_an_invalid_result_is_not(
    kube: Kube, namespace: str
) -> None:
    live = await kube.create(MAPS, named(namespace, "a", data={"x": "1"}))
    version = {"op": "test", "path": "/metadata/resourceVersion", "value": live["metadata"]["resourceVersion"]}
    change = {"op": "replace", "path": "/data/x", "value": "2"}
    assert (await kube.json_patch(MAPS, namespace, "a", [version, change]))["data"] == {"x": "2"}
    with pytest.raises(kube_errors.Conflict):
        await kube.json_patch(MAPS, namespace, "a", [version, change])
    with pytest.raises(kube_errors.Conflict):
        await kube.json_patch(MAPS, namespace, "a", [{"op": "replace", "path": "/data/z/z", "value": "2"}])
    with pytest.raises(kube_errors.Invalid) as invalid:
        await kube.json_patch(MAPS, namespace, "a", [{"op": "add", "path": "/data/not valid", "value": "2"}])
    assert invalid.value.causes


async def test_a_pod_is_tried_without_being_made(kube: Kube, namespace: str) -> None:
    good = named(namespace, "p", PODS, spec={"containers": [{"name": "c", "image": "i"}]})
    await kube.create(PODS, good, dry_run=True)
    with pytest.raises(kube_errors.Invalid) as invalid:
        await kube.create(PODS, named(namespace, "p", PODS, spec={"containers": []}), dry_run=True)
    assert any(cause.startswith("spec.containers") for cause in invalid.value.causes)
    assert await kube.list(PODS, namespace) == ()


async def test_quota_and_an_ending_namespace_are_told_apart(kube: Kube, namespace: str) -> None:
    await kube.create(QUOTAS, named(namespace, "q", QUOTAS, spec={"hard": {"pods": "0"}}))
    pod = named(namespace, "p", PODS, spec={"containers": [{"name": "c", "image": "i"}]})
    refused: kube_errors.KubeError | None = None
    async with asyncio.timeout(60):  # until the admission plug-in has seen the quota and its usage
        while not isinstance(refused, kube_errors.QuotaExceeded):
            try:
                await kube.create(PODS, pod, dry_run=True)
            except kube_errors.Forbidden as error:
                refused = error
            await asyncio.sleep(0.1)
    await kube.create(MAPS, {**named(namespace, "held"), "metadata": held(namespace)})
    await kube.delete(NAMESPACES, "", namespace)
    with pytest.raises(kube_errors.NamespaceTerminating):
        await kube.create(MAPS, named(namespace, "late"))
    await kube.json_patch(MAPS, namespace, "held", [{"op": "remove", "path": "/metadata/finalizers"}])


def held(namespace: str) -> dict[str, Any]:
    """Keeps the namespace from ending before the test has looked."""
    return {"namespace": namespace, "name": "held", "finalizers": ["servepipe.dev/test"]}


async def test_lists_have_all_pages(kube: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servepipe_operator.adapters.kube.PAGE", 2)
    for name in "abcde":
        await kube.create(MAPS, named(namespace, name))
    found = [item["metadata"]["name"] for item in await kube.list(MAPS, namespace, fields="metadata.name!=c")]
    assert [name for name in found if len(name) == 1] == list("abde")


async def test_discovery(kube: Kube) -> None:
    assert "servepipelines" in await kube.discover("servepipe.dev/v1alpha1")
    assert "pods" in await kube.discover("v1")
    assert await kube.discover("nowhere.example/v1") == frozenset()


async def test_history(kube: Kube, namespace: str) -> None:
    history = RevisionHistory(kube, await owner(kube, namespace))
    records = [
        Record("node", "a", {"x": [1, 1.5, None, "ä", {"y": True}], "": {}}),
        Record("spec", "s", {"text": "abc" * 100_000}, 2),
        Record("checkpoint", "c", {}, 3),
    ]
    for record in [*records, *records]:
        await history.write(record)
    assert await history.list() == tuple(records)
    with pytest.raises(ConflictError):
        await history.write(Record("node", "a", {}))
    live = (await kube.list(CONTROLLER_REVISIONS, namespace))[0]
    with pytest.raises(kube_errors.Invalid):
        await kube.update(CONTROLLER_REVISIONS, live | {"data": {"other": 1}})  # the API server keeps them as they are
    for record in records:
        await history.delete(record)
    assert await history.list() == ()


async def test_the_largest_record_that_is_allowed_is_taken(kube: Kube, namespace: str) -> None:
    history = RevisionHistory(kube, await owner(kube, namespace))
    text = random.Random(1).randbytes(MOST_BYTES // 2 - 60_000).hex()
    record = Record("spec", "s", {"text": text})
    await history.write(record)
    assert await history.list() == (record,)


async def test_events_are_accepted(kube: Kube, namespace: str) -> None:
    lost: list[Exception] = []
    events = KubeEvents(
        kube, await owner(kube, namespace), ToldEvents(), "operator-0", lambda event, error: lost.append(error)
    )
    await events.emit(Event("Normal", "Deployed", "one", "node"))
    await events.emit(Event("Warning", "Broken", "ä" * 2000))
    assert lost == []
    assert {event["reason"] for event in await kube.list(EVENTS, namespace)} == {"Deployed", "Broken"}


async def test_a_status_field_that_is_no_longer_said_vanishes(kube: Kube, namespace: str) -> None:
    live = await kube.create(CLUSTERS, named(namespace, "r", CLUSTERS, spec=CLUSTER))
    status = KubeStatus(kube, CLUSTERS, Owner(CLUSTERS.api_version, "RayCluster", namespace, "r", "another"))
    with pytest.raises(kube_errors.Conflict):
        await status.write({"state": "ready"})
    status = KubeStatus(kube, CLUSTERS, Owner("ray.io/v1", "RayCluster", namespace, "r", live["metadata"]["uid"]))
    await status.write({"state": "ready", "reason": "r"})
    await status.write({"state": "ready"})
    assert await status.read() == {"state": "ready"}
    patch = {"op": "add", "path": "/metadata/labels", "value": {"changed": "meanwhile"}}
    await kube.json_patch(CLUSTERS, namespace, "r", [patch])
    await status.write({"state": "failed"})
    changed = await kube.get(CLUSTERS, namespace, "r")
    assert changed["status"] == {"state": "failed"}
    assert changed["metadata"]["labels"] == {"changed": "meanwhile"}
    again = KubeStatus(kube, CLUSTERS, Owner("ray.io/v1", "RayCluster", namespace, "gone", "another"))
    with pytest.raises(kube_errors.NotFound):
        await again.write({"state": "ready"})


async def test_conditions_are_a_map_and_an_equal_status_changes_nothing(
    kube: Kube, control_plane: ControlPlane, namespace: str
) -> None:
    live = await kube.create(PIPES, named(namespace, "p", PIPES, spec=FULL["spec"]))
    status = KubeStatus(kube, PIPES, Owner(PIPES.api_version, PIPES.kind, namespace, "p", live["metadata"]["uid"]))
    await status.write({"conditions": [condition("Ready", "False"), condition("Stalled", "True")]})
    path = PIPES.path(namespace, "p", "status")
    said = {
        "apiVersion": PIPES.api_version,
        "kind": PIPES.kind,
        "status": {"conditions": [condition("Foreign", "True")]},
    }
    control_plane.api.apply(path, said, "another")
    await status.write({"conditions": [condition("Ready", "True")]})
    before = await kube.get(PIPES, namespace, "p")
    assert {c["type"]: c["status"] for c in before["status"]["conditions"]} == {"Ready": "True", "Foreign": "True"}
    await status.write({"conditions": [condition("Ready", "True")]})
    after = await kube.get(PIPES, namespace, "p")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def condition(kind: str, status: str) -> dict[str, Any]:
    at = "2026-01-01T00:00:00Z"
    return {"type": kind, "status": status, "reason": "R", "message": "m", "lastTransitionTime": at}


async def test_the_rights_of_a_role_are_enough_and_a_missing_one_is_told(
    kube: Kube, control_plane: ControlPlane, namespace: str
) -> None:
    someone = await owner(kube, namespace)  # has to exist: the garbage collector takes what an unknown uid owns
    rules = [
        {"apiGroups": ["apps"], "resources": ["controllerrevisions"], "verbs": ["get", "list", "create", "delete"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
    ]
    access = await login(str(control_plane.service_account(namespace, "operator", rules)))
    async with aiohttp.ClientSession() as session:
        limited = Kube(session, access)
        history = RevisionHistory(limited, someone)
        await history.write(Record("node", "a", {}))
        assert await history.list() == (Record("node", "a", {}),)
        await history.delete(Record("node", "a", {}))
        lost: list[Exception] = []
        events = KubeEvents(limited, someone, ToldEvents(), "operator-0", lambda event, error: lost.append(error))
        await events.emit(Event("Normal", "R", "m"))
        elector = Elector(limited, namespace, "servepipe", "one")
        await elector.acquire(lambda why: lost.append(AssertionError(why)))
        await elector.release()
        assert lost == []
        with pytest.raises(kube_errors.Forbidden, match="configmaps"):
            await limited.list(MAPS, namespace)


POD = {"spec": {"containers": [{"name": "ray", "image": "i"}]}}
CLUSTER = {"headGroupSpec": {"rayStartParams": {}, "template": POD}}


async def test_of_many_candidates_one_leads_and_the_next_follows_a_release(kube: Kube, namespace: str) -> None:
    times = LeaseTimes(duration_s=15, margin_s=3, renew_s=1, retry_s=0.1)
    electors = [Elector(kube, namespace, "servepipe", f"candidate-{n}", times) for n in range(5)]
    tasks = [asyncio.create_task(elector.acquire()) for elector in electors]
    try:
        async with asyncio.timeout(30):  # until one leads
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        leaders = [elector for elector in electors if elector.holds()]
        assert len(leaders) == 1
        await leaders[0].release()
        async with asyncio.timeout(30):  # until another leads
            while sum(task.done() for task in tasks) < 2:
                await asyncio.wait([task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
        assert [elector.holds() for elector in electors].count(True) == 1
        assert not leaders[0].holds()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
