"""The commands of a cluster together with the operator itself: what they wait for is what it reports."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from fake_kubelet import fake_kubelet
from headed import following
from kuberay.http import LOG_LINE
from kuberay.nodes import NODE_LABEL
from scenes import Outcome, Scenes, Stage, model

SCENES = Scenes()
Json = dict[str, Any]
LINE = LOG_LINE.rstrip()
MODULE = [sys.executable, "-m", "servepipe"]


def servepipe(stage: Stage, *words: str, file: Json | None = None, status: int = 0) -> str:
    """Runs a command beside the others; returns what it printed on both streams."""
    command = [*MODULE, *words, "-n", stage.namespace, "--kubeconfig", str(stage.plane.kubeconfig)]
    text = None if file is None else json.dumps(file)
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=140)
    assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def apply(stage: Stage, file: Json, *flags: str, status: int = 0) -> str:
    return servepipe(stage, "apply", "-f", "-", "--timeout", "120", *flags, file=file, status=status)


@SCENES.add()
def apply_waits_for_each_change_and_scale_stays(stage: Stage) -> None:
    name = "waited"
    file = stage.resource(name, {"m1": model("good"), "m2": model("good", replicas=1)})
    said = apply(stage, file)
    assert said.splitlines()[-1] == "Ready"
    assert stage.conditions(stage.get(name))["Ready"] == "True"
    before = stage.replicas(name)
    servepipe(stage, "scale", "m2=2", "-p", name)
    file["spec"]["nodes"]["m1"]["args"] = ["good", 2]
    said = apply(stage, file)
    assert "spec.nodes.m2.replicas stays 2, set by servepipe-ops; the file says 1" in said
    assert said.splitlines()[-1] == "Ready"
    after = stage.replicas(name)
    assert {app.partition("--")[0] for app in before.keys() ^ after.keys()} == {"m1"}, "only m1 has a new revision"
    assert len(next(ids for app, ids in after.items() if app.startswith("m2--"))) == 2
    assert '"nodesReady": "2/2"' in servepipe(stage, "status", name, "-o", "json")


@SCENES.add()
def apply_says_why_a_model_does_not_start(stage: Stage) -> None:
    name = "broken"
    file = stage.resource(name, {"m1": model("good")})
    apply(stage, file)
    file["spec"]["nodes"]["m1"]["args"] = ["build-fails"]
    said = apply(stage, file, status=1)
    assert "Stalled=True" in said.splitlines()[-1]
    assert stage.conditions(stage.get(name))["Available"] == "True", "the old revision serves"


@SCENES.add()
def suspend_resume_and_delete(stage: Stage) -> None:
    name = "rested"
    apply(stage, stage.resource(name, {"m1": model("good")}))
    servepipe(stage, "suspend", name)
    stage.until("no pods", lambda: not stage.pods(name), 90, name)
    said = apply(stage, stage.resource(name, {"m1": model("good")}, image="shop/models:2"))
    assert "it is suspended: nothing runs until `servepipe resume`" in said
    servepipe(stage, "resume", name)
    stage.wait_settled(name, 120)
    servepipe(stage, "delete", name, "--wait", "--timeout", "100s")
    assert stage.children("apis/ray.io/v1:rayclusters", name) == []
    assert "There is no pipeline" in servepipe(stage, "status", name, status=2)


@SCENES.add(own={NODE_LABEL: "operated"})
def logs_come_from_the_head_and_its_successor(stage: Stage) -> None:
    name = "told"
    cli = ("-n", stage.namespace, "--kubeconfig", str(stage.plane.kubeconfig))
    with fake_kubelet(stage.plane, "operated") as kubelet:
        apply(stage, stage.resource(name, {"m1": model("good", replicas=2)}))

        def lines() -> set[str]:
            found = {app.partition("--")[2]: ids for app, ids in stage.replicas(name).items() if app.startswith("m1--")}
            return {
                f"{revision}/{one.rpartition('#')[2][:6]} | {LINE}" for revision, ids in found.items() for one in ids
            }

        before = lines()
        said = servepipe(stage, "logs", "m1").splitlines()
        assert {*said[:-1]} == before
        assert said[-1] == f"{name} in namespace {stage.namespace}, context tests", "by port-forward, without a word"
        assert "m1 has no replica that ended lately" in servepipe(stage, "logs", "m1", "--previous")
        head = kubelet.seen[-1][0]
        with following(cli, "m1") as follow:
            for line in before:
                follow.says(line)
            stage.end_head(name)
            stage.until("a look at the new head", lambda: kubelet.seen[-1][0] != head, 90, name)
            stage.until("replicas on it", lambda: len(lines()) == 2, 60, name)
            for line in lines():
                follow.says(line, times=1 + (line in before))
            assert follow.interrupt() == 130


@SCENES.as_tests
def test_scene(outcome: Outcome) -> None:
    outcome()
