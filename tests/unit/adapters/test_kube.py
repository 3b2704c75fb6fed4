"""The Kubernetes client: verbs, errors, paging, waiting for a busy server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fake_kube import FakeKube, serving, status

from servepipe_operator.adapters import kube_errors
from servepipe_operator.adapters.kube import Kube, Resource
from servepipe_operator.adapters.kube_access import Access, login
from servepipe_operator.adapters.limits import RateLimit
from servepipe_operator.ports import UnreachableError

PODS = Resource("v1", "Pod", "pods")
PIPES = Resource("servepipe.dev/v1alpha1", "ServePipeline", "servepipelines")


def obj(name: str = "a", resource: Resource = PIPES, **rest: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "ns", "labels": {"of": "x"}}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": meta, **rest}


async def test_apply_creates_changes_removes_and_leaves_alone_what_is_equal() -> None:
    async with serving(FakeKube()) as kube:
        first = await kube.apply(PIPES, obj(spec={"a": 1, "b": 2}))
        again = await kube.apply(PIPES, obj(spec={"a": 1, "b": 2}))
        assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        await kube.apply(PIPES, obj(spec={"a": 3}))
        assert (await kube.get(PIPES, "ns", "a"))["spec"] == {"a": 3}


async def test_create_patch_update_delete() -> None:
    async with serving(FakeKube()) as kube:
        made = await kube.create(PIPES, obj(spec={"groups": [{"groupName": "g", "replicas": 1}]}))
        with pytest.raises(kube_errors.AlreadyExists):
            await kube.create(PIPES, obj())
        test = {"op": "test", "path": "/spec/groups/0/groupName", "value": "g"}
        change = {"op": "replace", "path": "/spec/groups/0/replicas", "value": 2}
        patched = await kube.json_patch(PIPES, "ns", "a", [test, change])
        assert patched["spec"]["groups"][0]["replicas"] == 2
        with pytest.raises(kube_errors.Conflict):
            await kube.json_patch(PIPES, "ns", "a", [test | {"value": "other"}, change])
        with pytest.raises(kube_errors.Conflict):
            await kube.update(PIPES, made | {"spec": {}})  # of an old resourceVersion
        with pytest.raises(kube_errors.Conflict):
            await kube.delete(PIPES, "ns", "a", uid="another")
        await kube.delete(PIPES, "ns", "a", uid=made["metadata"]["uid"])
        with pytest.raises(kube_errors.NotFound) as gone:
            await kube.get(PIPES, "ns", "a")
        assert not gone.value.kind_missing


async def test_a_dry_run_stores_nothing() -> None:
    fake = FakeKube()
    async with serving(fake) as kube:
        await kube.create(PODS, obj(resource=PODS), dry_run=True)
    assert not fake.objects


async def test_a_list_has_all_pages_and_begins_anew_when_it_grew_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servepipe_operator.adapters.kube.PAGE", 2)
    fake = FakeKube()
    async with serving(fake) as kube:
        for name in "abcde":
            await kube.create(PIPES, obj(name))
        names = [item["metadata"]["name"] for item in await kube.list(PIPES, "ns", "of=x")]
        assert names == list("abcde")
        assert await kube.list(PIPES, "other") == ()
        assert len(await kube.list(PIPES)) == 5
        fake.fail_once("GET", status(410, "Expired", "too old"))
        assert len(await kube.list(PIPES, "ns")) == 5


@pytest.mark.parametrize(
    ("code", "reason", "message", "details", "kind"),
    [
        (400, "BadRequest", "m", {}, "Invalid"),
        (401, "Unauthorized", "m", {}, "Unavailable"),
        (403, "Forbidden", "m", {}, "Forbidden"),
        (403, "Forbidden", "exceeded quota: q", {}, "QuotaExceeded"),
        (403, "Forbidden", "m", {"causes": [{"reason": "NamespaceTerminating"}]}, "NamespaceTerminating"),
        (409, "Conflict", "m", {}, "Conflict"),
        (410, "Expired", "m", {}, "Gone"),
        (422, "Invalid", "m", {"causes": [{"field": "spec.x", "message": "no"}]}, "Invalid"),
        (500, "InternalError", "m", {}, "Unavailable"),
        (503, "", "m", {}, "Unavailable"),
    ],
)
async def test_errors(code: int, reason: str, message: str, details: dict[str, Any], kind: str) -> None:
    fake = FakeKube()
    fake.fail_once("POST", status(code, reason, message, **details))
    async with serving(fake) as kube:
        with pytest.raises(kube_errors.KubeError) as raised:
            await kube.create(PIPES, obj())
    assert type(raised.value) is getattr(kube_errors, kind)
    assert isinstance(raised.value, UnreachableError) == (kind == "Unavailable")
    assert "create /apis/servepipe.dev/v1alpha1/namespaces/ns/servepipelines" in str(raised.value)
    if code == 422:
        assert raised.value.causes == ("spec.x: no",)


async def test_a_missing_kind_is_told_from_a_missing_object() -> None:
    async with serving(FakeKube(missing_kinds={"servepipelines"})) as kube:
        with pytest.raises(kube_errors.NotFound) as raised:
            await kube.get(PIPES, "ns", "a")
    assert raised.value.kind_missing


async def test_a_busy_server_is_asked_again_when_it_says_so() -> None:
    fake, slept = FakeKube(), []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    busy = {"headers": {"Retry-After": "3"}}
    async with serving(fake, sleep=sleep) as kube:
        fake.fail_once("POST", status(429, "", "busy", **busy), status(429, "", "busy", **busy))
        await kube.create(PIPES, obj())
        assert slept == [3, 3]
        fake.faults.append(lambda method, path: status(429, "", "busy", **busy))
        with pytest.raises(kube_errors.TooManyRequests) as raised:
            await kube.get(PIPES, "ns", "a")
    assert raised.value.retry_after_s == 3
    assert len(slept) == 5


async def test_no_answer_is_unreachable_and_counted() -> None:
    seen: list[tuple[str, str, int]] = []
    async with aiohttp.ClientSession() as session:
        access = Access("http://127.0.0.1:9")
        kube = Kube(session, access, on_request=lambda verb, plural, code, _: seen.append((verb, plural, code)))
        with pytest.raises(UnreachableError, match="get /apis/"):
            await kube.get(PIPES, "ns", "a")
    assert seen == [("get", "servepipelines", 0)]


async def test_a_server_that_hangs_is_given_up() -> None:
    hung_up = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client hangs up
        writer.close()
        await writer.wait_closed()
        hung_up.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server, aiohttp.ClientSession() as session:
        port = server.sockets[0].getsockname()[1]
        kube = Kube(session, Access(f"http://127.0.0.1:{port}"), timeout_s=0.2)
        with pytest.raises(kube_errors.Unavailable, match="TimeoutError"):
            await kube.get(PIPES, "ns", "a")
        async with asyncio.timeout(10):  # until the connection was closed
            await hung_up.wait()


async def test_no_write_without_the_right_to_write() -> None:
    fake = FakeKube()

    def allowed() -> None:
        raise PermissionError("not the leader")

    async with serving(fake, allowed=allowed) as kube:
        assert await kube.list(PIPES) == ()
        for write in (kube.create, kube.apply, kube.apply_status, kube.update):
            with pytest.raises(PermissionError):
                await write(PIPES, obj())
        with pytest.raises(PermissionError):
            await kube.delete(PIPES, "ns", "a")
    assert fake.writes == []


async def test_the_right_that_is_lost_while_connecting_stops_the_write() -> None:
    fake, asked = FakeKube(), []

    def allowed() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise PermissionError("not the leader")

    async with serving(fake, allowed=allowed) as kube:
        with pytest.raises(PermissionError):
            await kube.create(PIPES, obj())
        assert fake.requests == []
        await kube.create(PIPES, obj())
    assert len(fake.writes) == 1


async def test_login_with_a_kubeconfig(tmp_path: Path) -> None:
    file = tmp_path / "config"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1/", "insecure-skip-tls-verify": True}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }
    file.write_text(json.dumps(config))
    access = await login(str(file))
    assert access.url == "https://127.0.0.1:1"
    assert access.ssl_context is not None
    assert {name.lower(): value for name, value in (await access.headers()).items()} == {
        "authorization": "Bearer secret"
    }


async def test_credentials_that_cannot_be_had_are_no_answer() -> None:
    async def headers() -> dict[str, str]:
        raise FileNotFoundError("token")

    async with aiohttp.ClientSession() as session:
        with pytest.raises(kube_errors.Unavailable, match="no credentials: token"):
            await Kube(session, Access("http://127.0.0.1:9", headers)).list(PIPES)


async def test_discovery() -> None:
    fake = FakeKube()
    async with serving(fake) as kube:
        fake.fail_once("GET", web.json_response({"resources": [{"name": "servepipelines"}]}))
        assert await kube.discover("servepipe.dev/v1alpha1") == {"servepipelines"}
        fake.fail_once("GET", web.Response(status=404, text="404 page not found"))
        assert await kube.discover("ray.io/v1") == frozenset()
        fake.fail_once("GET", status(503, "", "down"))
        with pytest.raises(kube_errors.Unavailable):
            await kube.discover("ray.io/v1")


async def test_the_rate_is_kept_after_the_burst() -> None:
    now, slept = [0.0], []

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))

    limit = RateLimit(10, 2, lambda: now[0], sleep)
    for _ in range(4):
        await limit.wait()
    assert slept == [0.1, 0.2]
    now[0] = 10
    for _ in range(2):
        await limit.wait()
    assert slept == [0.1, 0.2]
