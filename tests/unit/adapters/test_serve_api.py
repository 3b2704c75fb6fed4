"""The client of Serve's REST API against a server that answers what Serve 2.60 was seen to answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from servepipe_operator.adapters.serve_api import RayServeApi
from servepipe_operator.engine.state import Capacity, Replica
from servepipe_operator.ports import ServeRejectedError, TokenRefusedError, UnreachableError

CONFIG = {"name": "m1--6f3a91c2", "route_prefix": None, "import_path": "servepipe.runtime.app:node"}

RUNNING: dict[str, Any] = {
    "controller_info": {"node_id": "n", "actor_name": "SERVE_CONTROLLER_ACTOR"},
    "proxies": {},
    "target_capacity": None,
    "applications": {
        "m1--6f3a91c2": {
            "name": "m1--6f3a91c2",
            "status": "RUNNING",
            "message": "",
            "deployed_app_config": CONFIG,
            "deployments": {
                "node": {
                    "name": "node",
                    "status": "HEALTHY",
                    "message": "",
                    "target_num_replicas": 2,
                    "replicas": [
                        {"replica_id": "ab", "state": "RUNNING", "pid": 7, "node_ip": "127.0.0.1", "start_time_s": 5.5},
                        {"replica_id": "cd", "state": "STARTING", "pid": None, "node_ip": None, "start_time_s": 6.0},
                    ],
                }
            },
        },
        # What a failed build looks like: nothing below it, though the old replicas still serve.
        "broken": {"status": "DEPLOY_FAILED", "message": "Traceback", "deployed_app_config": None, "deployments": {}},
    },
}
NOT_STARTED: dict[str, Any] = {"controller_info": {}, "proxies": {}, "applications": {}, "target_capacity": None}


class FakeServe:
    """A dashboard that answers ``answer`` to GET and ``(status, text)`` to PUT, and remembers what it was sent."""

    def __init__(self) -> None:
        self.answer: Any = NOT_STARTED
        self.status = 200
        self.text = ""
        self.sent: list[Any] = []
        self.headers: list[str] = []

    async def get(self, request: web.Request) -> web.Response:
        self.headers.append(request.headers.get("X-Ray-Authorization", ""))
        if self.status != 200:
            return web.Response(status=self.status, text=self.text)
        return web.json_response(self.answer) if not self.text else web.Response(text=self.text)

    async def put(self, request: web.Request) -> web.Response:
        self.headers.append(request.headers.get("X-Ray-Authorization", ""))
        self.sent.append(await request.json())
        return web.Response(status=self.status, text=self.text)


@pytest.fixture
async def dashboard() -> AsyncIterator[tuple[FakeServe, RayServeApi]]:
    fake = FakeServe()
    app = web.Application()
    app.router.add_get("/api/serve/applications/", fake.get)
    app.router.add_put("/api/serve/applications/", fake.put)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        yield fake, RayServeApi(session, f"http://127.0.0.1:{runner.addresses[0][1]}/", "secret")
    await runner.cleanup()


async def test_serve_that_was_never_started_is_none(dashboard: tuple[FakeServe, RayServeApi]) -> None:
    assert await dashboard[1].applications() is None


async def test_no_applications_in_a_started_serve_is_empty(dashboard: tuple[FakeServe, RayServeApi]) -> None:
    dashboard[0].answer = {**NOT_STARTED, "controller_info": {"node_id": "n"}}
    assert await dashboard[1].applications() == {}


async def test_applications_are_read(dashboard: tuple[FakeServe, RayServeApi]) -> None:
    fake, api = dashboard
    fake.answer = RUNNING
    found = await api.applications()
    assert found is not None
    node = found["m1--6f3a91c2"]
    assert (node.status, node.deployment_status, node.target_replicas) == ("RUNNING", "HEALTHY", 2)
    assert node.config == CONFIG
    assert node.replicas == (Replica("ab", "RUNNING", 7, "127.0.0.1", 5.5), Replica("cd", "STARTING", None, "", 6.0))
    assert (found["broken"].message, found["broken"].replicas) == ("Traceback", ())
    assert fake.headers == ["Bearer secret"]


async def test_the_whole_configuration_is_put(dashboard: tuple[FakeServe, RayServeApi]) -> None:
    fake, api = dashboard
    await api.put({"applications": [CONFIG]})
    assert fake.sent == [{"applications": [CONFIG]}]
    assert fake.headers == ["Bearer secret"]


async def test_a_refused_configuration_carries_serves_message(dashboard: tuple[FakeServe, RayServeApi]) -> None:
    fake, api = dashboard
    fake.status, fake.text = 400, "1 validation error for ServeDeploySchema"
    with pytest.raises(ServeRejectedError, match="validation error"):
        await api.put({})


@pytest.mark.parametrize("status", [401, 404, 500, 503])
async def test_other_failures_say_nothing_about_the_state(
    dashboard: tuple[FakeServe, RayServeApi], status: int
) -> None:
    fake, api = dashboard
    fake.status, fake.text = status, "x" * 9000 + "the last line"
    with pytest.raises(UnreachableError, match=f"HTTP {status}.*the last line"):
        await api.applications()
    with pytest.raises(UnreachableError):
        await api.put({})


@pytest.mark.parametrize("code", [401, 403])
async def test_a_token_that_ray_does_not_take_is_told_apart(
    dashboard: tuple[FakeServe, RayServeApi], code: int
) -> None:
    fake, api = dashboard
    fake.status, fake.text = code, "Forbidden: Invalid authentication token"
    with pytest.raises(TokenRefusedError, match=r"Invalid authentication token.*delete the RayCluster"):
        await api.applications()

    # The API server does not let the operator through its proxy.
    fake.text = '{"kind": "Status", "code": 403, "message": "cannot get resource services/proxy"}'
    with pytest.raises(UnreachableError, match="services/proxy") as caught:
        await api.applications()
    assert not isinstance(caught.value, TokenRefusedError)


async def test_an_answer_that_is_not_json_is_no_answer(dashboard: tuple[FakeServe, RayServeApi]) -> None:
    dashboard[0].text = "<html>"
    with pytest.raises(UnreachableError, match="not JSON"):
        await dashboard[1].applications()


@pytest.mark.parametrize("payload", [[], {}, {"applications": {"a": {}}, "controller_info": {}}, {"applications": 1}])
async def test_an_answer_of_unknown_form_is_no_answer(dashboard: tuple[FakeServe, RayServeApi], payload: Any) -> None:
    dashboard[0].answer = payload
    with pytest.raises(UnreachableError, match="unknown form"):
        await dashboard[1].applications()


async def test_nobody_there() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(UnreachableError):
            await RayServeApi(session, "http://127.0.0.1:1").applications()


async def test_capacity_is_asked_elsewhere() -> None:
    async def capacity() -> Capacity:
        return Capacity({"CPU": 4.0}, {"CPU": 1.0})

    async with aiohttp.ClientSession() as session:
        assert await RayServeApi(session, "http://127.0.0.1:1").capacity() is None
        found = await RayServeApi(session, "http://127.0.0.1:1", capacity=capacity).capacity()
    assert found is not None
    assert found.available == {"CPU": 1.0}
