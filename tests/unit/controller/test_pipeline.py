"""The reconcile of one pipeline, as far as it needs no cluster."""

from __future__ import annotations

import copy

import aiohttp
import pytest
from fake_kube import FakeKube, serving

from servepipe_operator.adapters.kube import Kube
from servepipe_operator.controller.context import Context, Key
from servepipe_operator.controller.kinds import PIPELINES
from servepipe_operator.controller.metrics import Metrics
from servepipe_operator.controller.pipeline import PipelineReconciler, newest
from servepipe_operator.controller.settings import Settings
from servepipe_operator.engine.state import Json

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
