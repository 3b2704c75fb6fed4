"""The reconcile of one pipeline, as far as it needs no cluster."""

from __future__ import annotations

import copy

import aiohttp
import pytest
from fake_kube import FakeKube, serving
from simulated_world import node, resource

from servepipe_operator.adapters.kube import Kube
from servepipe_operator.adapters.kube_resource import PIPELINES
from servepipe_operator.adapters.owner import Owner
from servepipe_operator.adapters.revision_history import RevisionHistory
from servepipe_operator.controller.context import Context, Key
from servepipe_operator.controller.late_ports import http_port
from servepipe_operator.controller.metrics import Metrics
from servepipe_operator.controller.pipeline import PipelineReconciler, newest
from servepipe_operator.controller.settings import Settings
from servepipe_operator.engine.state import Json, Record

KEY = Key("ns", "p")


class LateStore:
    """A watch that is cut off: it has ``live`` until it is given something newer."""

    def __init__(self, live: Json) -> None:
        self.live = live

    def pipeline(self, key: Key) -> Json | None:
        return copy.deepcopy(self.live)

    def children(self, kind: str, key: Key) -> tuple[Json, ...]:
        return ()

    def missing(self) -> frozenset[str]:
        return frozenset()


def reconciler(kube: Kube, store: LateStore, session: aiohttp.ClientSession) -> PipelineReconciler:
    settings = Settings("servepipe", "operator-0")
    metrics = Metrics("0", "servepipe")
    context = Context(settings, kube, kube.access, session, lambda: None, metrics, store, lambda key: None)
    return PipelineReconciler(context)


async def test_a_status_is_written_once_however_long_the_watch_is_behind() -> None:
    fake = FakeKube()
    async with serving(fake) as kube, aiohttp.ClientSession() as session:
        body = {"apiVersion": PIPELINES.api_version, "kind": PIPELINES.kind, "spec": {"nodes": "not a map"}}
        live = await kube.create(PIPELINES, {**body, "metadata": {"name": "p", "namespace": "ns"}})
        store = LateStore(live)
        look = reconciler(kube, store, session)
        for _ in range(4):
            await look(KEY)
        store.live = await kube.get(PIPELINES, "ns", "p")
        for _ in range(2):
            await look(KEY)
        writes = [request for request in fake.requests if request.startswith("PATCH")]
    # Whose it is, then what is wrong with it.
    assert writes == ["PATCH /apis/servepipe.dev/v1alpha1/namespaces/ns/servepipelines/p/status"] * 2


async def test_history_that_is_not_understood_is_in_status_and_nothing_is_touched() -> None:
    fake = FakeKube()
    pipeline = resource({"m1": node("good")}).model_dump(mode="json", by_alias=True, exclude_unset=True)
    async with serving(fake) as kube, aiohttp.ClientSession() as session:
        live = await kube.create(PIPELINES, {**pipeline, "metadata": {"name": "p", "namespace": "ns"}})
        owner = Owner(PIPELINES.api_version, PIPELINES.kind, "ns", "p", live["metadata"]["uid"])
        await RevisionHistory(kube, owner).write(Record("checkpoint", "checkpoint", {"spec": "s"}, 1))
        look = reconciler(kube, LateStore(live), session)
        for _ in range(2):
            await look(KEY)
        found = (await kube.get(PIPELINES, "ns", "p"))["status"]["conditions"]
        children = [where for where, _ in fake.objects if where.endswith(("rayclusters", "secrets"))]
    stalled = next(one for one in found if one["type"] == "Stalled")
    assert stalled["reason"] == "HistoryUnreadable"
    assert "the record checkpoint 'checkpoint' of sequence 1" in stalled["message"]
    assert children == []


def copy_of(version: str, uid: str = "u") -> Json:
    return {"metadata": {"uid": uid, "resourceVersion": version}}


@pytest.mark.parametrize(
    ("seen", "written", "later"),
    [
        (copy_of("9"), copy_of("10"), "written"),
        (copy_of("10"), copy_of("9"), "seen"),
        (copy_of("10"), copy_of("10"), "seen"),
        (copy_of("9", "new"), copy_of("10", "old"), "seen"),
        (copy_of("a"), copy_of("b"), "seen"),
    ],
    ids=["the watch lags behind", "the watch is ahead", "the same", "another object", "no numbers"],
)
def test_a_look_never_goes_back(seen: Json, written: Json, later: str) -> None:
    assert newest(seen, written) is {"seen": seen, "written": written}[later]


def test_the_service_is_asked_where_it_is_and_not_where_it_will_be() -> None:
    live = {"spec": {"ports": [{"name": "grpc", "port": 9000}, {"name": "http", "port": 80}]}}
    assert http_port([live], 8000) == 80
    assert http_port([{"spec": {}}], 8000) == http_port([], 8000) == 8000
