"""`kubectl wait`, `get` and `describe` on live pipelines. `tests/unit/engine/test_kstatus.py` judges every reason."""

from __future__ import annotations

import subprocess
from typing import Any

from argocd import health
from kstatus import kstatus
from scenes import Outcome, Scenes, Stage, model

SCENES = Scenes()
Json = dict[str, Any]


def wait(stage: Stage, name: str, condition: str, timeout: str = "40s") -> subprocess.CompletedProcess[str]:
    return stage.plane.kubectl(
        "-n",
        stage.namespace,
        "wait",
        f"--for=condition={condition}",
        f"svp/{name}",
        f"--timeout={timeout}",
        check=False,
    )


def row(stage: Stage, name: str) -> dict[str, str]:
    """The line of ``kubectl get``, by column."""
    lines = stage.plane.kubectl("-n", stage.namespace, "get", "svp", name).stdout.splitlines()
    starts = [lines[0].index(word) for word in lines[0].split()]
    ends = [*starts[1:], None]
    return {lines[0][a:b].strip(): lines[1][a:b].strip() for a, b in zip(starts, ends, strict=True)}


def described(stage: Stage, name: str) -> str:
    return stage.plane.kubectl("-n", stage.namespace, "describe", "svp", name).stdout


@SCENES.add()
def kubectl_waits_for_conditions(stage: Stage) -> None:
    name = "waited"
    stage.apply(stage.resource(name, {"m1": model("good")}))
    for condition in ("Available", "Ready", "Accepted", "ClusterReady", "NodesReady"):
        done = wait(stage, name, condition)
        assert (done.returncode, done.stdout) == (0, f"servepipeline.servepipe.dev/{name} condition met\n"), done.stderr
    live = stage.wait_settled(name)
    assert (kstatus(live), health(live)[0]) == ("Current", "Healthy")
    assert row(stage, name) | {"AGE": ""} == {
        "NAME": name,
        "AVAILABLE": "True",
        "READY": "True",
        "NODES": "1/1",
        "UPGRADING": "",
        "URL": f"http://{name}.{stage.namespace}.svc:8000/",
        "AGE": "",
    }

    stage.patch(name, nodes={"m1": {"args": ["hangs"], "progressDeadlineSeconds": 4}})
    stage.wait_until("the upgrade", name, lambda live: live["status"].get("upgrading"))
    live = stage.get(name)
    assert (kstatus(live), health(live)[0]) == ("InProgress", "Progressing")
    assert row(stage, name)["UPGRADING"] == "m1 0%"
    assert wait(stage, name, "Available").returncode == 0
    assert wait(stage, name, "Stalled").returncode == 0
    live = stage.wait_until("rest", name, lambda live: not stage.condition(live, "Reconciling"))
    assert (kstatus(live), health(live)[0]) == ("Failed", "Degraded")
    assert health(live)[1].startswith("ProgressDeadlineExceeded: ")
    assert wait(stage, name, "Ready", "1s").returncode == 1
    assert wait(stage, name, "Available").returncode == 0

    told = described(stage, name)
    assert "not healthy after 4 s" in told
    assert "goes on serving" in told
    for event in ("Accepted", "Starting", "Promoted", "ProgressDeadlineExceeded"):
        assert event in told

    stage.patch(name, nodes={"m1": {"args": ["good"]}})
    assert wait(stage, name, "Ready").returncode == 0
    assert kstatus(stage.wait_settled(name)) == "Current"
    stage.delete(name)
    gone = stage.plane.kubectl(
        "-n", stage.namespace, "wait", "--for=delete", f"svp/{name}", "--timeout=30s", check=False
    )
    assert gone.returncode == 0, gone.stderr


@SCENES.add()
def a_refused_spec_is_no_reason_to_wait(stage: Stage) -> None:
    name = "refused"
    stage.apply(stage.resource(name, {"m1": model("good")}, rayVersion="2.40.0"))
    assert wait(stage, name, "Stalled").returncode == 0
    assert kstatus(stage.get(name)) == "Failed"
    assert "spec.rayVersion: Ray 2.40.0 cannot protect its dashboard" in described(stage, name)
    assert row(stage, name)["READY"] == "False"


@SCENES.as_tests
def test_scene(outcome: Outcome) -> None:
    outcome()
