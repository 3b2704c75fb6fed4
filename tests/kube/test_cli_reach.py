"""`servepipe call` and `app.deploy("kubernetes")`: through the API server to a pipeline's ingress."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed.client import Object
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from cluster_cli import NAME, Cli, ready
from fake_head import Head, fake_head, own_address, put_behind
from headed import STAND_IN_OFF, deployed

from servepipe import ServeInputNode, build, remote
from servepipe.errors import RequestError, RunError, ServePipeError


@pytest.fixture
def cli(control_plane: ControlPlane, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    control_plane.api.merge(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": STAND_IN_OFF}})
    return Cli(control_plane, namespace, tmp_path, capsys)


@pytest.fixture
def head(cli: Cli) -> Iterator[Head]:
    """A pipeline whose RayCluster and ingress are there."""
    with fake_head(own_address()) as head:
        deployed(cli)
        put_behind(cli.plane, cli.namespace, NAME, 8000, head)
        yield head


# --- calls ------------------------------------------------------------------------------------------------------------


def test_call_goes_through_the_api_server(cli: Cli, head: Head) -> None:
    ran = cli.run("call", "[1, 2, 3]", *cli.place)
    assert (ran.status, ran.out) == (0, "8\n"), ran.err
    assert head.seen[-1] == ("POST", "/", {"body": "[1, 2, 3]"})
    head.answer = (503, {"error": {"code": "NodeScaledToZero", "message": "m1 is off"}})
    ran = cli.run("call", "1", *cli.place)
    assert ran.status == 1
    assert "NodeScaledToZero" in ran.err


@remote
class Model:
    def forward(self, x: int) -> int:
        return x


def app() -> object:
    with ServeInputNode() as dag_input:
        m1 = Model.bind()
        output = m1.forward.bind(dag_input)
    return build(output, name=NAME)


def test_deploy_applies_waits_and_calls(cli: Cli, head: Head) -> None:
    cli.run("delete", NAME, *cli.place)
    wait_for("the pipeline to be gone", lambda: cli.find() is None)
    built = app()
    operator = threading.Thread(target=lambda: play(cli, ready("True")))
    operator.start()
    handle = built.deploy("kubernetes", namespace=cli.namespace, kubeconfig=cli.plane.kubeconfig, timeout_s=60)  # type: ignore[attr-defined]
    operator.join()
    try:
        assert handle.remote(1, 2).result(timeout_s=30) == 8
        assert head.seen[-1] == ("POST", "/", {"body": "[1, 2]"})
        assert handle.remote(x=1).result(timeout_s=30) == 8
        assert head.seen[-1][2] == {"body": '{"x": 1}'}

        async def awaited() -> object:
            return await handle.remote(5)

        assert asyncio.run(awaited()) == 8
        head.answer = (422, {"error": {"code": "BadInput", "message": "no such input", "node": "m1"}})
        with pytest.raises(RequestError, match="no such input") as refused:
            handle.remote(1).result(timeout_s=30)
        assert (refused.value.status, refused.value.code, refused.value.node) == (422, "BadInput", "m1")
    finally:
        built.shutdown()  # type: ignore[attr-defined]
    assert cli.find() is not None, "a pipeline in a cluster goes on"


def test_deploy_says_why_it_is_not_ready(cli: Cli) -> None:
    built = app()
    operator = threading.Thread(target=lambda: play(cli, ready("False") | {"stalled": "m1: ImportError: no module"}))
    operator.start()
    with pytest.raises(RunError, match="m1: ImportError"):
        built.deploy("kubernetes", namespace=cli.namespace, kubeconfig=cli.plane.kubeconfig, timeout_s=60)  # type: ignore[attr-defined]
    operator.join()
    built.shutdown()  # type: ignore[attr-defined]
    with pytest.raises(ServePipeError, match="unexpected keyword argument 'cluster'"):
        built.deploy("kubernetes", cluster="x")  # type: ignore[attr-defined]


def play(cli: Cli, status: Object) -> None:
    wait_for("the pipeline to be created", lambda: cli.find() is not None, 60)
    cli.report(status)
