"""The three ways to a dashboard, each over a network in which only that way leads there."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from bed.control_plane import ControlPlane
from pod_network import Family, PodNetwork, missing

from servepipe_operator.adapters import dashboard as dashboards
from servepipe_operator.adapters import routing, serve_api, timeouts
from servepipe_operator.adapters.dashboard import Dashboard, DashboardWay, Place
from servepipe_operator.adapters.kube_access import Access, login
from servepipe_operator.ports import UnreachableError

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

DASHBOARD, SERVE = 8265, 8000
FAMILIES: list[Family] = [socket.AF_INET, socket.AF_INET6]
#: In place of the adapters' own deadlines (10 s at least), and what a busy machine gets in addition.
DEADLINE_S, SLACK_S = 1.0, 5.0


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodNetwork]:
    found = PodNetwork(tmp_path_factory.mktemp("network"))
    try:
        found.start()
        yield found
    finally:
        found.stop()


class FakeHead:
    """Ray's dashboard and Serve's proxy on one address. ``seen``: method, path, and the credentials that arrived."""

    def __init__(self, network: PodNetwork, number: int, family: Family = socket.AF_INET) -> None:
        self.address = network.pod(number, family)
        self._sockets = [network.listen(self.address, port) for port in (DASHBOARD, SERVE)]
        self.seen: list[tuple[str, str, str | None, str | None]] = []
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None))

    async def start(self) -> None:
        await self._runner.setup()
        for one in self._sockets:
            await web.SockSite(self._runner, one).start()

    async def stop(self) -> None:
        # What is cut off never says goodbye.
        await asyncio.wait_for(self._runner.cleanup(), 10)

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        sent = request.headers
        self.seen.append((request.method, request.path, sent.get("Authorization"), sent.get("X-Ray-Authorization")))
        await request.read()
        match request.path:
            case "/api/ray/version":
                return web.json_response({"ray_version": "2.60.0"})
            case "/-/ready":
                return web.json_response({"ready": True})
            case "/api/serve/applications/":
                return web.json_response({"applications": {}, "controller_info": {}})
        return web.Response(status=404)


@pytest.fixture
async def heads(network: PodNetwork) -> AsyncIterator[Any]:
    """Makes heads that end with the test."""
    started: list[FakeHead] = []

    async def start(number: int, family: Family = socket.AF_INET) -> FakeHead:
        head = FakeHead(network, number, family)
        started.append(head)
        await head.start()
        return head

    yield start
    for head in started:
        await head.stop()


def head_service(control_plane: ControlPlane, namespace: str, address: str) -> str:
    """A Service whose one pod has this address; its name."""
    core, api = f"/api/v1/namespaces/{namespace}", control_plane.api
    ports = [{"name": "dashboard", "port": DASHBOARD}, {"name": "serve", "port": SERVE}]
    api.create(f"{core}/services", {"metadata": {"name": "head-svc"}, "spec": {"ports": ports}})
    # The API server's proxy goes to addresses of pods only, and looks for them there.
    pod = {"metadata": {"name": "head"}, "spec": {"containers": [{"name": "ray-head", "image": "ray"}]}}
    api.create(f"{core}/pods", pod)
    api.merge(f"{core}/pods/head/status", {"status": {"podIP": address, "podIPs": [{"ip": address}]}})
    target = {"kind": "Pod", "namespace": namespace, "name": "head"}
    subset = {"addresses": [{"ip": address, "targetRef": target}], "ports": ports}
    api.create(f"{core}/endpoints", {"metadata": {"name": "head-svc"}, "subsets": [subset]})
    return "head-svc"


async def close(dashboard: Dashboard) -> None:
    """Close it at once: to say goodbye over TLS may take longer than this test's loop lives."""
    await dashboard.close()
    connections: Any = asyncio.get_running_loop()._transports  # type: ignore[attr-defined]
    for one in list(connections.values()):
        one.abort()
    await asyncio.sleep(0)  # one turn of the loop, in which they end


async def as_operator(control_plane: ControlPlane, namespace: str) -> Access:
    """The API server as a ServiceAccount with a token, which may use the proxy of Services."""
    rules = [{"apiGroups": [""], "resources": ["services/proxy"], "verbs": ["get", "update"]}]
    return await login(str(control_plane.service_account(namespace, "operator", rules)))


@pytest.mark.parametrize("family", FAMILIES, ids=["IPv4", "IPv6"])
async def test_pod_ip(network: PodNetwork, heads: Any, family: Family) -> None:
    if family == socket.AF_INET6 and not network.ipv6:
        pytest.skip("the kernel has no IPv6")
    head = await heads(0, family)
    place = Place("ns", "head-svc", DASHBOARD, head.address)
    reached = Dashboard("pod-ip", Access("https://127.0.0.1:1"), token="of-ray")
    try:
        assert await reached.ray_version(place) == "2.60.0"
        await reached.serve(place).put({"applications": []})
        assert await reached.serve(place).applications() is None
        ingress = Place("ns", "p", 80, head.address, SERVE)
        assert await reached.routing(ingress).ready() == (True, ())
    finally:
        await close(reached)
    assert head.seen == [
        ("GET", "/api/ray/version", None, "Bearer of-ray"),
        ("PUT", "/api/serve/applications/", None, "Bearer of-ray"),
        ("GET", "/api/serve/applications/", None, "Bearer of-ray"),
        ("GET", "/-/ready", None, None),
    ]


async def test_service_by_the_clusters_dns(network: PodNetwork, heads: Any) -> None:
    head = await heads(1)
    client = str(Path(__file__).with_name("dashboard_client.py"))
    command = network.beside_the_pods(sys.executable, client, "head-svc", "shop", head.address)
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        async with asyncio.timeout(60):  # until the client ends
            said, trouble = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, trouble.decode()
    assert json.loads(said) == {
        "version": "2.60.0",
        "applications": None,
        "asked": ["head-svc.shop.svc.cluster.local"],
    }
    assert [one[2:] for one in head.seen] == [(None, "Bearer of-ray")] * 3


async def test_proxy_of_the_api_server(
    network: PodNetwork, heads: Any, control_plane: ControlPlane, namespace: str
) -> None:
    head = await heads(2)
    place = Place(namespace, head_service(control_plane, namespace, head.address), DASHBOARD)
    access = await as_operator(control_plane, namespace)
    assert (await access.headers())["authorization"].startswith("Bearer ")
    reached = Dashboard("proxy", access, token="of-ray")
    try:
        assert await reached.ray_version(place) == "2.60.0"
        await reached.serve(place).put({"applications": []})
        assert await reached.serve(place).applications() is None
        ingress = Place(namespace, "head-svc", SERVE)
        assert await reached.routing(ingress).ready() == (True, ())
    finally:
        await close(reached)
    # The API server takes its own credentials out; Ray's go through.
    assert head.seen == [
        ("GET", "/api/ray/version", None, "Bearer of-ray"),
        ("PUT", "/api/serve/applications/", None, "Bearer of-ray"),
        ("GET", "/api/serve/applications/", None, "Bearer of-ray"),
        ("GET", "/-/ready", None, None),
    ]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapters' deadlines are a second."""
    monkeypatch.setattr(timeouts, "CONNECT_TIMEOUT_S", DEADLINE_S)
    monkeypatch.setattr(dashboards, "VERSION_TIMEOUT_S", DEADLINE_S)
    monkeypatch.setattr(serve_api, "GET_TIMEOUT_S", DEADLINE_S)
    monkeypatch.setattr(serve_api, "PUT_TIMEOUT_S", DEADLINE_S)
    monkeypatch.setattr(routing, "TIMEOUT_S", DEADLINE_S)


async def unreachable(dashboard: Dashboard, place: Place, within_s: float) -> str:
    """What is said of it, by each call within ``within_s`` seconds."""
    told = []
    calls = (
        lambda: dashboard.ray_version(place),
        lambda: dashboard.serve(place).applications(),
        lambda: dashboard.serve(place).put({"applications": []}),
        lambda: dashboard.routing(place).ready(),
    )
    for call in calls:
        began = time.monotonic()
        with pytest.raises(UnreachableError) as raised:
            await call()
        assert time.monotonic() - began < within_s
        told.append(str(raised.value))
    return "\n".join(told)


@pytest.mark.parametrize("way", ["pod-ip", "proxy"])
@pytest.mark.usefixtures("quick")
async def test_packets_that_vanish(
    network: PodNetwork, control_plane: ControlPlane, namespace: str, way: DashboardWay
) -> None:
    address = network.nowhere(3)
    place = Place(namespace, head_service(control_plane, namespace, address), DASHBOARD, address)
    silent = Dashboard(way, await as_operator(control_plane, namespace), token="of-ray")
    try:
        await unreachable(silent, place, DEADLINE_S + SLACK_S)
    finally:
        await close(silent)


async def test_a_connection_is_waited_for_no_longer_than_its_own_deadline(
    network: PodNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PUT may take a minute and a half, but where nobody listens that is known earlier."""
    monkeypatch.setattr(timeouts, "CONNECT_TIMEOUT_S", DEADLINE_S)
    place = Place("ns", "head-svc", DASHBOARD, network.nowhere(3))
    silent = Dashboard("pod-ip", Access("https://127.0.0.1:1"))
    try:
        await unreachable(silent, place, DEADLINE_S + SLACK_S)
    finally:
        await close(silent)


@pytest.mark.usefixtures("quick")
async def test_packets_of_an_open_connection_that_vanish(network: PodNetwork, heads: Any) -> None:
    head = await heads(4)
    place = Place("ns", "head-svc", DASHBOARD, head.address)
    reached = Dashboard("pod-ip", Access("https://127.0.0.1:1"))
    try:
        assert await reached.serve(place).applications() is None
        network.cut_off(head.address)
        with pytest.raises(UnreachableError):
            await reached.serve(place).applications()
        assert await reached_again(network, reached, place) is None
    finally:
        await close(reached)


async def reached_again(network: PodNetwork, dashboard: Dashboard, place: Place) -> object:
    """What the dashboard says once packets come through again."""
    assert network.pod(4) == place.pod_ip
    async with asyncio.timeout(20):  # until the connection is made anew
        while True:
            try:
                return await dashboard.serve(place).applications()
            except UnreachableError:
                continue


@pytest.mark.parametrize("way", ["pod-ip", "proxy"])
async def test_connections_that_are_reset(
    network: PodNetwork, control_plane: ControlPlane, namespace: str, way: DashboardWay
) -> None:
    address = network.pod(5)
    listening = network.listen(address, DASHBOARD)
    listening.setblocking(False)

    async def reset() -> None:
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listening)
            await asyncio.get_running_loop().sock_recv(connection, 1)
            # Lingering for no time: what is left is not sent, but the connection is reset.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    resetting = asyncio.create_task(reset())
    place = Place(namespace, head_service(control_plane, namespace, address), DASHBOARD, address)
    broken = Dashboard(way, await as_operator(control_plane, namespace), token="of-ray")
    try:
        told = await unreachable(broken, place, 20.0)
    finally:
        await close(broken)
        resetting.cancel()
        await asyncio.wait([resetting])
        listening.close()
    assert re.search("reset|disconnect|closed|EOF|502|503", told, re.IGNORECASE), told
