"""`servepipe status`, `scale`, `suspend`, `pause`, `resume` and `delete` against a real API server."""

import json
import signal
import sys
import threading
from pathlib import Path

import pytest
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from cluster_cli import NAME, Cli, interruptible, pipeline, ready

from servepipe_operator.objects.names import Owner, metadata
from servepipe_operator.objects.services import token_secret


@pytest.fixture
def cli(control_plane: ControlPlane, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(control_plane, namespace, tmp_path, capsys)


@pytest.fixture
def applied(cli: Cli) -> Cli:
    """With a pipeline whose file sets 3 replicas for m1."""
    assert cli.apply(pipeline(replicas=3), "--no-wait").status == 0
    return cli


def another(cli: Cli) -> None:
    second = pipeline()
    second["metadata"]["name"] = "other"
    assert cli.apply(second, "--no-wait").status == 0


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_of_the_only_pipeline(applied: Cli) -> None:
    unseen = applied.run("status", *applied.place)
    assert unseen.out.splitlines()[-1] == "no operator has looked at it yet"
    applied.report(ready("False"))
    ran = applied.run("status", *applied.place)
    url = f"http://shop.{applied.namespace}.svc:8000/"
    assert ran.out.splitlines() == [
        f"shop in namespace {applied.namespace}, context tests ({url})",
        "NODE  REVISION  READY  WEIGHT  STATE",
        "m1    aaaa1111  0/1    100%    Running",
        "Accepted=True",
        "Ready=False Because: m1 is starting",
    ]
    assert applied.run("status", NAME, *applied.place) == ran
    assert applied.run("status", "-p", NAME, *applied.place) == ran


def test_status_for_programs(applied: Cli) -> None:
    applied.report(ready("True"))
    ran = applied.run("status", "-o", "json", *applied.place)
    told = json.loads(ran.out)
    assert told["pipeline"] == NAME
    assert told["namespace"] == applied.namespace
    assert told["status"] == applied.live()["status"]
    assert ran.err.startswith("shop in namespace")


def test_status_of_several_is_a_line_for_each(applied: Cli) -> None:
    another(applied)
    applied.report(ready("True"))
    ran = applied.run("status", *applied.place)
    lines = ran.out.splitlines()
    assert lines[0] == f"2 pipelines in namespace {applied.namespace}, context tests"
    assert lines[1].split() == ["NAME", "AVAILABLE", "READY", "NODES", "UPGRADING", "URL", "AGE"]
    assert [line.split()[0] for line in lines[2:]] == ["other", "shop"]
    assert len(json.loads(applied.run("status", "-o", "json", *applied.place).out)["items"]) == 2
    several = applied.run("scale", "m1=1", *applied.place)
    assert (several.status, "Name one, for instance -p other." in several.err) == (2, True)


def test_status_watch_shows_what_changes_until_it_is_interrupted(applied: Cli) -> None:
    applied.report(ready("False"))
    command = [sys.executable, "-m", "servepipe", "status", "--watch", *applied.place]
    child = interruptible(command)
    assert child.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda out=child.stdout: lines.extend(iter(out.readline, "")))
    reader.start()
    try:
        wait_for("the first state", lambda: any("Ready=False" in line for line in lines), 60, lambda: repr(lines))
        applied.report(ready("True"))
        wait_for("the change", lambda: any("Ready=True" in line for line in lines), 60, lambda: repr(lines))
    finally:
        child.send_signal(signal.SIGINT)
        code = child.wait(30)
        reader.join()
        child.stdout.close()
    assert code == 130


@pytest.mark.parametrize("words", [["status"], ["scale", "m1=1"], ["suspend", NAME], ["delete", NAME], ["logs", "m1"]])
def test_there_is_no_pipeline(cli: Cli, words: list[str]) -> None:
    ran = cli.run(*words, *cli.place)
    assert ran.status == 2
    assert ran.err.startswith("error: There is no pipeline")
    assert cli.namespace in ran.err


# --- scale, suspend, pause, resume ------------------------------------------------------------------------------------


def test_what_scale_sets_the_next_apply_keeps(applied: Cli) -> None:
    ran = applied.run("scale", "m1=7", "ingress=2", *applied.place)
    assert ran.out.splitlines()[1:] == ["m1 scaled to 7", "ingress scaled to 2"]
    spec = applied.live()["spec"]
    assert (spec["nodes"]["m1"]["replicas"], spec["ingress"]) == (7, {"replicas": 2})
    again = applied.apply(pipeline("shop:2", replicas=3), "--no-wait")
    assert "spec.nodes.m1.replicas stays 7, set by servepipe-ops; the file says 3" in again.out
    assert applied.live()["spec"]["nodes"]["m1"]["replicas"] == 7


def test_scale_takes_the_place_of_autoscaling(cli: Cli) -> None:
    assert cli.apply(pipeline(autoscaling={"minReplicas": 1, "maxReplicas": 4}), "--no-wait").status == 0
    assert cli.run("scale", "m1=2", *cli.place).status == 0
    assert cli.live()["spec"]["nodes"]["m1"] == {"import": "shop:M1", "replicas": 2}


def test_scale_changes_all_or_nothing(applied: Cli) -> None:
    applied.kubectl_patch({"nodes": {"glue": {"import": "shop:glue", "placement": "Inline"}}})
    before = applied.live()
    for sizes, says in (
        (["m1=5", "m3=1"], "There is no node 'm3'"),
        (["ingress=0"], "The ingress needs at least one replica"),
        (["m1=5", "glue=2"], "spec.nodes.glue"),
    ):
        ran = applied.run("scale", *sizes, *applied.place)
        assert ran.status == 2
        assert says in ran.err
    assert applied.live() == before


def test_suspend_pause_and_resume(applied: Cli) -> None:
    def spec() -> dict[str, object]:
        found = applied.live()["spec"]
        return {key: found[key] for key in ("suspend", "paused") if key in found}

    assert applied.run("suspend", NAME, *applied.place).out.endswith("shop suspended\n")
    assert applied.run("pause", NAME, *applied.place).out.endswith("shop paused\n")
    assert spec() == {"suspend": True, "paused": True}
    assert applied.run("pause", NAME, *applied.place).out.endswith("shop was paused already\n")
    assert applied.apply(pipeline("shop:2", replicas=3), "--no-wait").status == 0
    assert spec() == {"suspend": True, "paused": True}
    told = "shop is paused: nothing of this happens until `servepipe resume shop`\n"
    assert applied.run("suspend", NAME, *applied.place).out.endswith(f"shop was suspended already\n{told}")
    assert applied.run("scale", "m1=4", *applied.place).out.endswith(f"m1 scaled to 4\n{told}")
    assert applied.run("resume", NAME, *applied.place).out.endswith("shop resumed\n")
    assert spec() == {}
    assert applied.run("resume", NAME, *applied.place).out.endswith("shop was resumed already\n")


# --- delete -----------------------------------------------------------------------------------------------------------


def test_delete_waits_for_what_belongs_to_the_pipeline(applied: Cli) -> None:
    children = f"/apis/ray.io/v1/namespaces/{applied.namespace}/rayclusters"
    live = applied.live()
    owner = {
        "apiVersion": live["apiVersion"],
        "kind": live["kind"],
        "name": NAME,
        "uid": live["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "ray-head", "image": "ray"}]}}}
    child = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "shop-1", "ownerReferences": [owner], "finalizers": ["tests/slow"]},
        "spec": {"headGroupSpec": head},
    }
    applied.plane.api.create(children, child)
    late = applied.run("delete", NAME, "--wait", "--timeout", "1s", *applied.place)
    assert late.status == 2
    assert "shop is not gone after 1 s" in late.err
    assert applied.find() is not None
    applied.plane.api.merge(f"{children}/shop-1", {"metadata": {"finalizers": None}})
    ran = applied.run("delete", NAME, "--wait", "--timeout", "60s", *applied.place)
    if ran.status:
        assert "There is no pipeline" in ran.err, "it may be gone by itself by now"
    wait_for("the child to be gone", lambda: applied.plane.api.find(f"{children}/shop-1") is None, 60)
    assert applied.find() is None


def test_delete_waits_for_a_redis_to_be_emptied(applied: Cli) -> None:
    """KubeRay does that after the pipeline is gone, by a Job that belongs to the RayCluster and needs Ray's token."""
    namespace, api = applied.namespace, applied.plane.api
    children = f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters"
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    applied.kubectl_patch({"cluster": {"gcsFaultTolerance": {"redisAddress": "redis:6379"}}})
    owner = Owner(NAME, namespace, applied.live()["metadata"]["uid"], "main")
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "ray-head", "image": "ray"}]}}}
    child = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {**metadata(owner, "shop-1"), "finalizers": ["tests/redis"]},
        "spec": {"headGroupSpec": head},
    }
    made = api.create(children, child)
    api.create(secrets, token_secret(owner, "t0ken", made))
    applied.report(ready("True") | {"more": {"clusters": [{"name": "shop-1", "role": "Active"}]}})
    late = applied.run("delete", NAME, "--wait", "--timeout", "3s", *applied.place)
    assert late.status == 2
    assert "what holds it: tests/redis" in late.err
    assert applied.find() is None
    wait_for(
        "the garbage collector to see that the RayCluster needs the Secret",
        lambda: len(api.get(f"{secrets}/{NAME}-token")["metadata"]["ownerReferences"]) == 1,
        60,
    )
    api.merge(f"{children}/shop-1", {"metadata": {"finalizers": None}})
    wait_for("the Secret to go with the RayCluster", lambda: api.find(f"{secrets}/{NAME}-token") is None, 60)


def test_delete_without_waiting(applied: Cli) -> None:
    ran = applied.run("delete", NAME, *applied.place)
    assert ran.out.endswith("shop is being deleted\n")
    wait_for("the pipeline to be gone", lambda: applied.find() is None, 60)


# --- What a person may not do, and where nothing answers --------------------------------------------------------------


def test_somebody_who_may_only_read(applied: Cli) -> None:
    rules = [{"apiGroups": ["servepipe.dev"], "resources": ["servepipelines"], "verbs": ["get", "list"]}]
    reader = applied.plane.service_account(applied.namespace, "reader", rules)
    place = ("--kubeconfig", str(reader))
    assert applied.run("status", *place).status == 0, "its namespace is the context's"
    ran = applied.run("scale", "m1=1", *place)
    assert ran.status == 2
    assert "cannot patch resource" in ran.err
    assert ran.err.count("\n") <= 3
    assert "cannot get resource" in applied.run("status", "-n", "default", "x", *place).err


def test_a_cluster_that_does_not_answer(applied: Cli, tmp_path: Path) -> None:
    text = applied.plane.kubeconfig.read_text().replace(applied.plane.url, "https://127.0.0.1:9")
    (tmp_path / "config").write_text(text)
    ran = applied.run("status", "--kubeconfig", str(tmp_path / "config"))
    assert ran.status == 2
    assert ran.err.startswith("error: The cluster does not answer")
    missing = applied.run("status", "--kubeconfig", str(tmp_path / "nothing"))
    assert missing.status == 2
    assert missing.err.startswith("error: No way to a cluster"), missing.err
