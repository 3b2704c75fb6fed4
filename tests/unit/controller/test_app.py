"""The process: what starts, what ends it, and with which exit code."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import pytest
from fake_kube import FakeKube, serving, status

from servepipe_operator.adapters.kube_access import Access
from servepipe_operator.controller import app
from servepipe_operator.controller.app import Context, Key, lease_name
from servepipe_operator.controller.lease import LeaseLostError, LeaseTimes
from servepipe_operator.controller.settings import Settings
from servepipe_operator.ports import UnreachableError

SETTINGS = Settings(
    "system",
    "operator-0",
    http_host="127.0.0.1",
    http_port=0,
    stop_s=5,
    lease=LeaseTimes(duration_s=30, margin_s=5, renew_s=0.05, retry_s=0.01),
    api_timeout_s=4,
)
A = Key("ns", "a")
LEASE = ("apis/coordination.k8s.io/v1/namespaces/system/leases", "servepipe-operator")


@dataclass
class Reconciler:
    """Answers with what it is told to, in turn, and then goes on with the last."""

    plan: list[Any] = field(default_factory=lambda: [10.0])
    context: Context | None = None
    keys: list[Key] = field(default_factory=list)
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def made(self, context: Context) -> Reconciler:
        self.context = context
        return self

    async def __call__(self, key: Key) -> float | None:
        self.keys.append(key)
        self.looked.set()
        answer = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
        if answer == "hang":
            await self.go_on.wait()
            return 10.0
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class Running:
    fake: FakeKube
    access: Access
    stop: asyncio.Event
    task: asyncio.Task[int]

    async def ends(self) -> int:
        async with asyncio.timeout(15):  # until the operator ends
            return await self.task

    @property
    def holder(self) -> str:
        return str(self.fake.objects[LEASE]["spec"]["holderIdentity"])


def pipe(name: str) -> dict[str, Any]:
    metadata = {"namespace": "ns", "name": name}
    return {"apiVersion": "servepipe.dev/v1alpha1", "kind": "ServePipeline", "metadata": metadata}


@asynccontextmanager
async def running(reconciler: Reconciler, fake: FakeKube | None = None, **settings: Any) -> AsyncIterator[Running]:
    fake = fake or FakeKube()
    if not any(name == "a" for _, name in fake.objects):
        fake.put(pipe("a"))
    async with serving(fake) as kube:
        stop = asyncio.Event()
        operator = app.run(replace(SETTINGS, **settings), reconciler.made, stop, kube.access)
        task = asyncio.create_task(operator)
        try:
            yield Running(fake, kube.access, stop, task)
        finally:
            task.cancel()
            fake.cut_watches()
            await asyncio.gather(task, return_exceptions=True)


async def looked(reconciler: Reconciler) -> None:
    async with asyncio.timeout(10):  # until the first look
        await reconciler.looked.wait()


async def test_a_stop_lets_the_look_under_way_end_and_the_lease_go() -> None:
    reconciler = Reconciler(["hang"])
    async with running(reconciler) as operator:
        await looked(reconciler)
        assert operator.holder.startswith("operator-0_")
        operator.stop.set()
        await asyncio.sleep(0)
        operator.fake.put(pipe("b"))
        assert reconciler.context is not None
        async with asyncio.timeout(10):  # until the watch has seen it
            while reconciler.context.store.pipeline(Key("ns", "b")) is None:  # noqa: ASYNC110 - it tells a closed queue
                await asyncio.sleep(0.005)
        assert operator.holder, "the Lease went before the look had ended"
        assert not operator.task.done()
        reconciler.go_on.set()
        assert await operator.ends() == 0
        assert operator.holder == ""
    assert reconciler.keys == [A]


async def test_a_look_that_does_not_end_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    reconciler = Reconciler(["hang"])
    async with running(reconciler, stop_s=0.05) as operator:
        await looked(reconciler)
        operator.stop.set()
        assert await operator.ends() == 0
        assert operator.holder == ""
    assert "cancelled" in caplog.text


async def test_a_candidate_is_ready_while_another_leads_and_can_be_stopped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first, second = Reconciler(), Reconciler()

    async def said(text: str) -> None:
        async with asyncio.timeout(10):
            while text not in caplog.text:  # noqa: ASYNC110 - a log is no event
                await asyncio.sleep(0.005)

    async def ready() -> tuple[int, str]:
        url = f"http://127.0.0.1:{caplog.text.rpartition('HTTP port ')[2].split()[0]}/readyz"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()

    async with running(first) as leader:
        await looked(first)
        refused = True
        leader.fake.faults.append(
            lambda method, path: status(403, "Forbidden", "no leases") if refused and "/leases/" in path else None
        )
        async with running(second, leader.fake, instance="operator-1") as candidate:
            await said("no Lease yet")
            code, text = await ready()
            assert (code, "no leases" in text) == (503, True)
            refused = False
            await said("is held by operator-0_")
            code, text = await ready()
            assert code == 200
            assert "(leader: Lease system/servepipe-operator is held by operator-0_" in text
            candidate.stop.set()
            assert await candidate.ends() == 0
            assert leader.holder.startswith("operator-0_")
        assert second.keys == []


async def test_a_lease_that_is_taken_ends_it_at_once(caplog: pytest.LogCaptureFixture) -> None:
    reconciler = Reconciler(["hang"])
    async with running(reconciler) as operator:
        await looked(reconciler)
        live = operator.fake.objects[LEASE]
        operator.fake._store(LEASE, {**live, "spec": {**live["spec"], "holderIdentity": "another"}})
        assert await operator.ends() == 3
        assert operator.holder == "another"
    assert "the Lease is lost" in caplog.text


async def test_a_look_that_finds_the_lease_lost_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    reconciler = Reconciler([ExceptionGroup("g", [LeaseLostError("not ours any more")])])
    async with running(reconciler) as operator:
        assert await operator.ends() == 3
    assert "not ours any more" in caplog.text


async def test_a_root_task_that_breaks_ends_it_with_the_reason(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_down(self: object) -> None:
        raise ZeroDivisionError("a mistake in a watch")

    monkeypatch.setattr("servepipe_operator.controller.watching.Watches.run", break_down)
    async with running(Reconciler()) as operator:
        assert await operator.ends() == 1
        assert operator.holder == "", "the next one need not wait"
    assert "a mistake in a watch" in caplog.text


async def test_failures_are_counted_said_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    plan = [UnreachableError("dashboard is away"), ValueError("a mistake"), None, 0.01, 60.0]
    reconciler = Reconciler(plan)
    async with running(reconciler) as operator:
        async with asyncio.timeout(10):  # until all of the plan was seen
            while len(reconciler.plan) > 1 or len(reconciler.keys) < 5:
                await asyncio.sleep(0.005)
                if len(reconciler.keys) == 3:
                    assert reconciler.context is not None
                    reconciler.context.wake(A)
        assert reconciler.context is not None
        text = reconciler.context.metrics.text().decode()
        for result in ("unreachable", "error", "gone", "changing", "ok"):
            assert f'servepipe_reconciles_total{{result="{result}"}} 1.0' in text
        assert operator.holder
    away, mistake = (r for r in caplog.records if "looking again" in r.message)
    assert (away.levelname, away.exc_info, mistake.levelname) == ("WARNING", None, "ERROR")
    assert vars(away)["pipeline"] == "ns/a"


async def test_without_an_answer_it_waits_for_the_lease(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeKube()
    fake.fail_once(
        "GET", status(403, "Forbidden", "leases are forbidden"), status(403, "Forbidden", "leases are forbidden")
    )
    reconciler = Reconciler()
    async with running(reconciler, fake):
        await looked(reconciler)
    assert sum("no Lease yet" in record.message for record in caplog.records) == 1


def test_each_installation_has_its_own_lease() -> None:
    assert lease_name("mine") == "mine-operator"


def test_as_many_files_may_be_open_as_the_system_lets_it() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
    try:
        app.allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
