"""`servepipe logs`, `call` and `app.deploy("kubernetes")`: through the API server to a pipeline's Ray and ingress."""

import asyncio
import base64
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from bed.client import Object
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from cluster_cli import NAME, Cli, interruptible, pipeline, ready
from fake_head import Head, fake_head, put_behind

from servepipe import ServeInputNode, build, remote
from servepipe.errors import RequestError, RunError, ServePipeError

CLUSTER = f"{NAME}-x7k2q"
RAY = {"clusters": [{"name": CLUSTER, "role": "Active"}]}

STAND_IN_OFF = {"kuberay-stand-in/controller": "off"}


@pytest.fixture
def cli(control_plane: ControlPlane, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    # The RayClusters here are the test's own, also after a test that has started KubeRay's stand-in.
    control_plane.api.merge(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": STAND_IN_OFF}})
    return Cli(control_plane, namespace, tmp_path, capsys)


@pytest.fixture
def head(cli: Cli) -> Iterator[Head]:
    """A pipeline whose RayCluster and dashboard are there, and two revisions of m1 with three replicas in all."""
    with fake_head() as head:
        assert cli.apply(pipeline(), "--no-wait").status == 0
        cli.report(ready("True") | {"more": RAY})
        group = f"/apis/ray.io/v1/namespaces/{cli.namespace}/rayclusters"
        pod = {"spec": {"containers": [{"name": "ray-head", "image": "ray"}]}}
        spec = {"headGroupSpec": {"rayStartParams": {}, "template": pod}}
        body = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": CLUSTER}, "spec": spec}
        cli.plane.api.create(group, body)
        secret = {"metadata": {"name": f"{NAME}-token"}, "data": {"auth_token": base64.b64encode(b"ray").decode()}}
        cli.plane.api.create(f"/api/v1/namespaces/{cli.namespace}/secrets", secret)
        put_behind(cli.plane, cli.namespace, f"{CLUSTER}-head-svc", 8265, head)
        put_behind(cli.plane, cli.namespace, NAME, 8000, head)
        head.applications = {
            "m1--aaaa1111": application([replica("one", 11), replica("two", 12)], [replica("dead", 13)]),
            "m1--bbbb2222": application([replica("new", 14)], []),
            "m2--cccc3333": application([replica("other", 15)], []),
        }
        head.files = {
            "serve/one.log": "one logs\n",
            "11:out": ":job_id:01\none prints\n",
            "11:err": "",
            "serve/two.log": "two logs\ntwo logs again\n",
            "serve/new.log": "new logs\n",
            "serve/dead.log": "dead logged\n",
        }
        yield head


def replica(name: str, pid: int) -> Object:
    return {
        "replica_id": f"app#node#{name}",
        "state": "RUNNING",
        "pid": pid,
        "node_id": "n" * 56,
        "start_time_s": float(pid),
        "log_file_path": f"/serve/{name}.log",
    }


def application(replicas: list[Object], dead: list[Object]) -> Object:
    return {"status": "RUNNING", "deployments": {"node": {"replicas": replicas, "recent_dead_replicas": dead}}}


# --- logs -------------------------------------------------------------------------------------------------------------


def test_logs_of_all_replicas_with_their_revision(cli: Cli, head: Head) -> None:
    ran = cli.run("logs", "m1", *cli.place)
    assert ran.status == 0, ran.err
    assert ran.out.splitlines() == [
        "aaaa1111/one | one logs",
        "aaaa1111/one | one prints",
        "aaaa1111/two | two logs",
        "aaaa1111/two | two logs again",
        "bbbb2222/new | new logs",
    ]
    assert {headers["x-ray-authorization"] for _, _, headers in head.seen} == {"Bearer ray"}
    assert all("authorization" not in headers for _, _, headers in head.seen)


def test_logs_of_replicas_that_ended_and_only_the_last_lines(cli: Cli, head: Head) -> None:
    assert cli.run("logs", "m1", "--previous", *cli.place).out == "aaaa1111/dead | dead logged\n"
    tail = cli.run("logs", "m1", "--tail", "1", *cli.place).out.splitlines()
    assert [line for line in tail if "two" in line] == ["aaaa1111/two | two logs again"]
    assert "m2 has no replica that ended lately" in cli.run("logs", "m2", "--previous", *cli.place).err


def test_logs_follow_replicas_that_come_later(cli: Cli, head: Head) -> None:
    command = [sys.executable, "-m", "servepipe", "logs", "m1", "-f", *cli.place]
    child = interruptible(command)
    lines: list[str] = []
    try:
        assert child.stdout is not None
        reader = threading.Thread(target=_into, args=(child.stdout, lines))
        reader.start()
        wait_for("the first lines", lambda: "bbbb2222/new | new logs\n" in lines, 60, lambda: repr(lines))
        head.files["serve/late.log"] = "late logs\n"
        head.applications["m1--bbbb2222"] = application([replica("late", 16)], [])
        wait_for("the new replica's lines", lambda: "bbbb2222/late | late logs\n" in lines, 60, lambda: repr(lines))
        assert lines.count("aaaa1111/one | one logs\n") == 1
    finally:
        child.send_signal(signal.SIGINT)
        code = child.wait(30)
        reader.join()
        assert child.stdout is not None
        child.stdout.close()
    assert code == 130


def _into(stream: IO[str], lines: list[str]) -> None:
    lines.extend(iter(stream.readline, ""))


@pytest.mark.parametrize(
    ("node", "says"),
    [("m9", "There is no node 'm9'"), ("glue", "'glue' runs in the ingress process")],
)
def test_logs_of_what_has_none(cli: Cli, head: Head, node: str, says: str) -> None:
    cli.kubectl_patch({"nodes": {"glue": {"import": "shop:glue", "placement": "Inline"}}})
    ran = cli.run("logs", node, *cli.place)
    assert ran.status == 2
    assert says in ran.err


def test_logs_without_a_cluster_or_a_dashboard(cli: Cli) -> None:
    assert cli.apply(pipeline(), "--no-wait").status == 0
    assert "has no Ray cluster that runs" in cli.run("logs", "m1", *cli.place).err
    cli.report(ready("True") | {"more": RAY})
    assert f"The RayCluster '{CLUSTER}' is gone" in cli.run("logs", "m1", *cli.place).err


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
