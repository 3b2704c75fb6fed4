"""The ways to a pipeline's dashboard and ingress."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from servepipe_operator.adapters.dashboard import Dashboard, Dashboards, DashboardWay, Place, base_url
from servepipe_operator.adapters.kube_access import Access
from servepipe_operator.ports import UnreachableError

HEAD = Place("ns", "p-head-svc", 8265, "10.0.0.7")


@pytest.mark.parametrize(
    ("way", "url"),
    [
        ("service", "http://p-head-svc.ns.svc.example.internal:8265"),
        ("pod-ip", "http://10.0.0.7:8265"),
        ("proxy", "https://api:6443/api/v1/namespaces/ns/services/p-head-svc:8265/proxy"),
    ],
)
def test_urls(way: DashboardWay, url: str) -> None:
    assert base_url(way, HEAD, Access("https://api:6443"), "example.internal") == url


def test_ipv6_is_put_in_brackets_and_no_ip_is_unreachable() -> None:
    assert base_url("pod-ip", Place("ns", "s", 80, "fd00::1"), Access("")) == "http://[fd00::1]:80"
    with pytest.raises(UnreachableError, match="ns/s has no IP yet"):
        base_url("pod-ip", Place("ns", "s", 80), Access(""))


class FakeHead:
    """Dashboard and ingress in one; ``hang`` keeps every answer back."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str, str]] = []
        self.version: Any = {"version": "4", "ray_version": "2.60.0"}
        self.hang: asyncio.Event | None = None

    async def handle(self, request: web.Request) -> web.Response:
        headers = request.headers
        self.seen.append(
            (request.method, request.path, headers.get("Authorization", ""), headers.get("X-Ray-Authorization", ""))
        )
        await request.read()
        if self.hang is not None:
            await self.hang.wait()
        if request.path.endswith("/api/ray/version"):
            return web.json_response(self.version)
        if request.path.endswith("/-/ready"):
            return web.json_response({"ready": True})
        if request.path.endswith("/-/routing"):
            return web.json_response({"replicas": []})
        return web.json_response({"applications": {}, "controller_info": {}})


@asynccontextmanager
async def serving(head: FakeHead) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", head.handle)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def test_through_the_proxy_both_credentials_travel_and_the_api_servers_is_fresh() -> None:
    head, tokens = FakeHead(), iter(["Bearer one", "Bearer two", "Bearer three"])

    async def headers() -> dict[str, str]:
        return {"authorization": next(tokens)}

    async with serving(head) as url:
        dashboard = Dashboard("proxy", Access(url, headers), token="ray")
        try:
            assert await dashboard.ray_version(HEAD) == "2.60.0"
            await dashboard.serve(HEAD).put({"applications": []})
            assert await dashboard.serve(HEAD).applications() is None
        finally:
            await dashboard.close()
    prefix = "/api/v1/namespaces/ns/services/p-head-svc:8265/proxy"
    assert head.seen == [
        ("GET", prefix + "/api/ray/version", "Bearer one", "Bearer ray"),
        ("PUT", prefix + "/api/serve/applications/", "Bearer two", "Bearer ray"),
        ("GET", prefix + "/api/serve/applications/", "Bearer three", "Bearer ray"),
    ]


async def test_directly_the_api_servers_credentials_stay_at_home() -> None:
    head = FakeHead()

    async def headers() -> dict[str, str]:
        return {"authorization": "Bearer secret"}

    async with serving(head) as url:
        place = Place("ns", "s", int(url.rsplit(":", 1)[1]), "127.0.0.1")
        dashboard = Dashboard("pod-ip", Access("https://api", headers), token="ray")
        try:
            await dashboard.serve(place).applications()
            assert await dashboard.routing(place, "/route").ready() == (True, ())
            assert await dashboard.routing(place, "/route").acks() == ()
        finally:
            await dashboard.close()
    assert [seen[1:] for seen in head.seen] == [
        ("/api/serve/applications/", "", "Bearer ray"),
        ("/route/-/ready", "", ""),
        ("/route/-/routing", "", ""),
    ]


@pytest.mark.parametrize("version", [{}, [], {"ray_version": 3}, "2.60"])
async def test_an_answer_without_a_version_is_no_version(version: Any) -> None:
    head = FakeHead()
    head.version = version
    async with serving(head) as url:
        dashboard = Dashboard("proxy", Access(url))
        try:
            with pytest.raises(UnreachableError, match="without a version"):
                await dashboard.ray_version(HEAD)
        finally:
            await dashboard.close()


async def test_a_dashboard_that_hangs_holds_up_no_other() -> None:
    stuck, well = FakeHead(), FakeHead()
    stuck.hang = asyncio.Event()
    async with serving(stuck) as stuck_url, serving(well) as well_url:
        first, second = Dashboard("proxy", Access(stuck_url)), Dashboard("proxy", Access(well_url))
        waiting = [asyncio.create_task(first.ray_version(HEAD)) for _ in range(20)]
        try:
            async with asyncio.timeout(10):  # until the other answered
                assert await second.ray_version(HEAD) == "2.60.0"
            assert not any(task.done() for task in waiting)
        finally:
            stuck.hang.set()
            await asyncio.gather(*waiting, return_exceptions=True)
            await first.close()
            await second.close()


async def test_no_put_without_the_right_to_write_also_when_it_is_lost_while_connecting() -> None:
    head, asked = FakeHead(), []

    def lost_at_the_second_question() -> None:
        asked.append(1)
        if len(asked) % 2 == 0:
            raise PermissionError("not the leader")

    async with serving(head) as url:
        dashboard = Dashboard("proxy", Access(url), allowed=lost_at_the_second_question)
        try:
            with pytest.raises(PermissionError):
                await dashboard.serve(HEAD).put({"applications": []})
            await dashboard.serve(HEAD).applications()
        finally:
            await dashboard.close()
    assert [method for method, *_ in head.seen] == ["GET"]
    assert len(asked) == 2


async def test_a_dashboard_is_kept_until_its_token_changes_or_its_pipeline_goes() -> None:
    head, made = FakeHead(), []
    async with serving(head) as url:

        def make(token: str) -> Dashboard:
            made.append(token)
            return Dashboard("proxy", Access(url), token=token)

        dashboards = Dashboards(make)
        first = await dashboards.of("u", "one")
        await first.ray_version(HEAD)
        assert await dashboards.of("u", "one") is first
        assert await dashboards.of("v", "one") is not first
        second = await dashboards.of("u", "two")
        await second.ray_version(HEAD)
        await dashboards.forget("u")
        await dashboards.forget("u")
        assert await dashboards.of("u", "two") is not second
        await dashboards.close()
    assert made == ["one", "one", "two", "two"]
    assert [ray for *_, ray in head.seen] == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize("service", ["../../other/secrets/key?", "evil.example/?", "kubernetes.default", "a#", "", "A"])
@pytest.mark.parametrize("way", ["service", "pod-ip", "proxy"])
def test_a_name_that_is_none_leads_nowhere(way: DashboardWay, service: str) -> None:
    with pytest.raises(UnreachableError, match="is not the name of a Service"):
        base_url(way, Place("ns", service, 8265, "10.0.0.7"), Access("https://api:6443"))


def test_an_address_that_is_none_leads_nowhere() -> None:
    with pytest.raises(UnreachableError, match="does not appear to be an IPv4 or IPv6 address"):
        base_url("pod-ip", Place("ns", "s", 8265, "evil.example/"), Access(""))
    with pytest.raises(UnreachableError, match="is not the address of a pod"):
        base_url("pod-ip", Place("ns", "s", 8265, "169.254.169.254"), Access(""))


@pytest.mark.parametrize("route", ["/../../../../nodes", "/x?y=", "/#", "/a/%2e%2e/x", "/..%2f..", "@evil"])
async def test_a_route_does_not_lead_out_of_the_proxy(route: str) -> None:
    head = FakeHead()
    async with serving(head) as url:
        dashboard = Dashboard("proxy", Access(url))
        with pytest.raises(UnreachableError, match="is not a route below"):
            await dashboard.routing(Place("ns", "diamond", 8000), route).ready()
        await dashboard.close()
    assert head.seen == []


async def test_pods_choose_neither_whom_we_ask_nor_how_much_we_read() -> None:
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.path)
        raise web.HTTPFound("/secret")

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"[" * 1_000_000)
        return response

    for answer, told in ((elsewhere, "HTTP 302"), (endless, "longer than 16777216 bytes")):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        async with TestServer(app, shutdown_timeout=0.1) as server:
            address = Place("ns", "s", server.port or 0, "127.0.0.1")
            dashboard = Dashboard("pod-ip", Access(""))
            for call in (
                dashboard.serve(address).applications(),
                dashboard.routing(address).acks(),
                dashboard.ray_version(address),
            ):
                with pytest.raises(UnreachableError, match=told):
                    await call
            await dashboard.close()
    assert "/secret" not in asked
