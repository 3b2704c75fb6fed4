"""`servepipe call` and `app.deploy("kubernetes")`: by port-forward to a pipeline's ingress, and where there is none."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bed.client import Object
from bed.control_plane import ControlPlane
from bed.processes import free_ports, wait_for
from cluster_cli import NAME, Cli, ready
from fake_head import Head, fake_head, own_address, put_behind
from fake_kubelet import Kubelet, fake_kubelet, put_on
from headed import CLUSTER, INGRESS_LABELS, RAY, STAND_IN_OFF, deployed, ingress_pod

from servepipe import ServeInputNode, build, remote
from servepipe.errors import RequestError, RunError, ServePipeError
from servepipe_operator.cluster.connection import ClusterError


@pytest.fixture
def cli(control_plane: ControlPlane, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    control_plane.api.merge(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": STAND_IN_OFF}})
    return Cli(control_plane, namespace, tmp_path, capsys)


@pytest.fixture(scope="module")
def kubelet(control_plane: ControlPlane) -> Iterator[Kubelet]:
    with fake_kubelet(control_plane, "reaching") as kubelet:
        yield kubelet


@pytest.fixture
def head(cli: Cli, kubelet: Kubelet) -> Iterator[Head]:
    """A pipeline whose RayCluster is there, and its ingress: a pod that is ready, and no Service."""
    with fake_head() as head:
        deployed(cli)
        ingress_pod(cli, kubelet, head)
        yield head


# --- calls ------------------------------------------------------------------------------------------------------------


def test_call_goes_by_port_forward(cli: Cli, head: Head) -> None:
    ran = cli.run("call", "[1, 2, 3]", *cli.place)
    assert (ran.status, ran.out) == (0, "8\n"), ran.err
    assert ran.err.splitlines() == [f"shop in namespace {cli.namespace}, context tests"]
    assert head.seen[-1] == ("POST", "/", {"body": "[1, 2, 3]"})
    head.answer = (503, {"error": {"code": "NodeScaledToZero", "message": "m1 is off"}})
    ran = cli.run("call", "1", *cli.place)
    assert ran.status == 1
    assert "NodeScaledToZero" in ran.err


def test_call_goes_through_the_service_proxy_where_there_is_no_port_forward(cli: Cli, kubelet: Kubelet) -> None:
    with fake_head(own_address()) as head:
        deployed(cli)
        ingress_pod(cli, kubelet, head)
        put_behind(cli.plane, cli.namespace, NAME, 8000, head)
        kubelet.wire.cut()
        ran = cli.run("call", "[1, 2, 3]", *cli.place)
        kubelet.wire.mend()
    assert (ran.status, ran.out) == (0, "8\n"), ran.err
    assert "(no port-forward, so through the API server's Service proxy: error dialing backend" in ran.err


def test_call_says_that_nothing_answers(cli: Cli, kubelet: Kubelet) -> None:
    deployed(cli)
    ran = cli.run("call", "1", *cli.place)
    assert (ran.status, "No pod of the ingress is ready" in ran.err) == (2, True), ran.err
    put_on(cli.plane, kubelet.node, cli.namespace, "mute", INGRESS_LABELS)
    kubelet.leads[cli.namespace, "mute", 8000] = ("127.0.0.1", free_ports(1)[0])
    ran = cli.run("call", "1", *cli.place)
    assert (ran.status, "Nothing answers: port-forward: error forwarding port 8000" in ran.err) == (2, True), ran.err


@remote
class Model:
    def forward(self, x: int) -> int:
        return x


def app() -> object:
    with ServeInputNode() as dag_input:
        m1 = Model.bind()
        output = m1.forward.bind(dag_input)
    return build(output, name=NAME)


def test_deploy_applies_waits_and_calls(cli: Cli, head: Head, kubelet: Kubelet) -> None:
    cli.run("delete", NAME, *cli.place)
    wait_for("the pipeline to be gone", lambda: cli.find() is None)
    built = app()
    operator = threading.Thread(target=lambda: play(cli, ready("True") | {"more": RAY}))
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
        # Its pod is replaced: the next call finds another one.
        cli.plane.api.delete(f"/api/v1/namespaces/{cli.namespace}/pods/{CLUSTER}-ingress-abcde")
        kubelet.wire.cut()
        kubelet.wire.mend()
        head.answer = (200, 9)
        ingress_pod(cli, kubelet, head, f"{CLUSTER}-ingress-fghij")
        wait_for("a call that finds it", lambda: answered(handle) == 9)
        assert [answer.result(timeout_s=30) for answer in [handle.remote(1) for _ in range(5)]] == [9] * 5
        assert kubelet.seen[-1][0] == f"{CLUSTER}-ingress-fghij"
    finally:
        built.shutdown()  # type: ignore[attr-defined]
    assert cli.find() is not None, "a pipeline in a cluster goes on"


def answered(handle: Any) -> object:
    """None while whoever asked last is told that the connection broke off."""
    try:
        return handle.remote(1).result(timeout_s=30)
    except ClusterError as error:
        assert "Nothing answers: port-forward: it broke off" in str(error)
        return None


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
