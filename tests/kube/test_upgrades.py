"""Upgrades on a real API server: only what changed is replaced, callers notice nothing, pods come and go."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from scenes import Outcome, Scenes, Stage, model

SCENES = Scenes()
Json = dict[str, Any]


def code(letter: str) -> str:
    return "sha256:" + letter * 64


def touched(before: Mapping[str, frozenset[str]], after: Mapping[str, frozenset[str]]) -> set[str]:
    """The nodes, or ``ingress``, whose replicas are not the same ones any more."""
    names = before.keys() | after.keys()
    return {name.partition("--")[0] for name in names if before.get(name) != after.get(name)}


def change(stage: Stage, name: str, expected: set[str], **spec: Any) -> None:
    """Patch the spec; once all is settled, the replicas of ``expected`` and of nothing else were replaced."""
    before = stage.replicas(name)
    stage.patch(name, **spec)
    stage.wait_settled(name)
    after = stage.replicas(name)
    assert touched(before, after) == expected, (spec, before, after)
    assert all(after.values()), after


@SCENES.add()
def only_the_changed_node_is_replaced(stage: Stage) -> None:
    name = "narrow"
    stage.ready(name, {"m1": model("good"), "m2": model("good"), "m3": model("good", image="shop/m3:1")})
    first = stage.raycluster(name)
    with stage.callers(name):
        change(stage, name, {"m1"}, nodes={"m1": {"args": ["good", 2]}})
        change(stage, name, {"m2"}, nodes={"m2": {"code": code("a")}})
        change(stage, name, {"m1"}, nodes={"m1": {"resources": {"cpu": "250m"}}})
        change(stage, name, {"m3"}, nodes={"m3": {"image": "shop/m3:2"}})
    only_appended(stage, first)


@SCENES.add()
def the_shared_image_and_the_preprocessor_replace_who_uses_them(stage: Stage) -> None:
    name = "shared"
    stage.ready(name, {"m1": model("good"), "m2": model("good", image="shop/m2:1")})
    first = stage.raycluster(name)
    with stage.callers(name):
        change(stage, name, {"m1", "ingress"}, image="shop/models:2")
        change(stage, name, {"ingress"}, graph={"input": {"preprocessor": "models:request", "code": code("b")}})
    only_appended(stage, first)


def only_appended(stage: Stage, first: Json) -> None:
    """Worker groups stay in their order, at most new ones come; no write of the operator touches what the autoscaler
    writes."""
    versions = stage.versions(first)
    for before, after in itertools.pairwise(versions):
        old, new = (one["spec"]["workerGroupSpecs"] for one in (before, after))
        assert [one["groupName"] for one in new][: len(old)] == [one["groupName"] for one in old]
        for one, other in zip(old, new, strict=False):
            ours = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
            scaled = {"replicas", "scaleStrategy"} & set(ours)
            assert not scaled or set(ours) <= {"replicas", "scaleStrategy"}, (one, other)


@SCENES.add()
def a_change_that_is_taken_back_in_the_middle_touches_nothing(stage: Stage) -> None:
    name = "back"
    stage.ready(name, {"m1": model("good"), "m2": model("good")})
    before = stage.replicas(name)
    with stage.callers(name) as callers:
        stage.patch(name, nodes={"m1": {"args": ["hangs"]}})
        stage.until("the candidate", lambda: len(of_node(stage, name, "m1")) == 2, name=name)
        stage.patch(name, nodes={"m1": {"args": ["good"]}})
        stage.wait_settled(name)
        assert stage.replicas(name) == before
        # A, B, C: B is dropped.
        stage.patch(name, nodes={"m1": {"args": ["hangs"]}})
        stage.until("the candidate", lambda: len(of_node(stage, name, "m1")) == 2, name=name)
        stage.patch(name, nodes={"m1": {"args": ["good", "C"]}})
        stage.wait_settled(name)
        assert touched(before, stage.replicas(name)) == {"m1"}
        revision = stage.get(name)["status"]["nodes"]["m1"]["revision"]
        stage.until("an answer of C", lambda: callers.last["revisions"]["m1"] == revision)
    assert list(of_node(stage, name, "m1")) == [f"m1--{revision}"]


def of_node(stage: Stage, name: str, node: str) -> list[str]:
    return [app for app, found in stage.serve(name).items() if app.startswith(f"{node}--") and not found["deleting"]]


BAD = {
    "build-fails": ("BuildFailed", "ModuleNotFoundError: No module named 'model'"),
    "crashes": ("ReplicaFailed", "ValueError: weights are missing"),
    "hangs": ("ProgressDeadlineExceeded", "not healthy after 4 s"),
}


def a_bad_candidate(stage: Stage, behaviour: str) -> None:
    name = behaviour
    stage.ready(name, {"m1": model("good"), "m2": model("good")})
    # Events are written after the status that they belong to.
    promoted = [("Promoted", node) for node in ("m1", "m2")]
    stage.until("the first promotions", lambda: told_of(stage, name, "Promoted") == promoted, name=name)
    before, told = stage.replicas(name), len(stage.events(name))
    reason, words = BAD[behaviour]
    with stage.callers(name):
        # A short deadline for this one only: a busy machine is no reason to give up the others.
        stage.patch(name, nodes={"m1": {"args": [behaviour], "progressDeadlineSeconds": 4}})
        stage.told(name, "Stalled", "True", reason, "m1: ", words)
        stage.until("the candidate to be removed", lambda: len(of_node(stage, name, "m1")) == 1, name=name)
        live = stage.wait_until("rest", name, lambda live: not stage.condition(live, "Reconciling"))
        assert stage.conditions(live)["Available"] == "True"
        assert stage.conditions(live)["Ready"] == "False"
        assert "\n" not in stage.condition(live, "Stalled")["message"]
        failed = live["status"]["nodes"]["m1"]["failedRevision"]
        assert (failed["reason"], failed["attempts"]) == (reason, 1)
        assert stage.replicas(name) == before
        # Nobody touches it: not one write at all the looks that follow.
        stage.looked(name, 6)
        assert stage.get(name)["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]
    reasons = [reason for reason, _ in stage.events(name)[told:]]
    assert sorted(reasons) == sorted(["Accepted", "Starting", reason, "Removed"])
    stage.patch(name, nodes={"m1": {"args": ["good"], "progressDeadlineSeconds": None}})
    stage.wait_settled(name)
    assert stage.replicas(name) == before


@SCENES.add()
def a_candidate_that_cannot_be_built(stage: Stage) -> None:
    a_bad_candidate(stage, "build-fails")


@SCENES.add()
def a_candidate_that_crashes(stage: Stage) -> None:
    a_bad_candidate(stage, "crashes")


@SCENES.add()
def a_candidate_that_hangs(stage: Stage) -> None:
    a_bad_candidate(stage, "hangs")


@SCENES.add()
def replicas_are_changed_in_place(stage: Stage) -> None:
    name = "scale"
    stage.ready(name, {"m1": model("good"), "m2": model("good", image="shop/m2:1")})
    first, before = stage.raycluster(name), stage.replicas(name)
    m1, m2 = (of_node(stage, name, node)[0] for node in ("m1", "m2"))
    with stage.callers(name):
        stage.patch(name, nodes={"m1": {"replicas": 3}, "m2": {"replicas": 2}})
        live = stage.wait_settled(name)
        assert live["status"]["nodes"]["m1"]["readyReplicas"] == 3
        assert before[m1] < stage.replicas(name)[m1]
        assert len(pods_of(stage, name, "m2-a")) == 2
        stage.patch(name, nodes={"m1": {"replicas": 1}})
        stage.wait_settled(name)
        stage.until("one replica", lambda: len(stage.replicas(name)[m1]) == 1, name=name)
        stage.patch(name, nodes={"m1": {"replicas": 0}})
        live = stage.wait_settled(name)
        assert live["status"]["nodes"]["m1"]["state"] == "Off"
        assert stage.conditions(live)["Available"] == "True"
        stage.until("no replica", lambda: not stage.replicas(name)[m1], name=name)
        autoscaling = {"minReplicas": 2, "maxReplicas": 4}
        stage.patch(name, nodes={"m1": {"replicas": None, "autoscaling": autoscaling}})
        live = stage.wait_settled(name)
        assert live["status"]["nodes"]["m1"]["readyReplicas"] == 2
    assert before[m2] < stage.replicas(name)[m2]
    stage.patch(name, nodes={"m2": {"replicas": 1}})
    stage.wait_settled(name)
    stage.until("the idle pod to go", lambda: len(pods_of(stage, name, "m2-a")) == 1, name=name)
    only_appended(stage, first)


def told_of(stage: Stage, name: str, reason: str) -> list[tuple[str, str]]:
    """Events with this reason, each with the node that it begins with."""
    return sorted((one, note.partition(":")[0]) for one, note in stage.events(name) if one == reason)


def pods_of(stage: Stage, name: str, group: str) -> list[str]:
    return [
        pod["metadata"]["name"] for pod in stage.pods(name) if pod["metadata"]["labels"].get("ray.io/group") == group
    ]


@SCENES.add()
def old_pods_go_and_their_worker_group_is_used_again(stage: Stage) -> None:
    name = "groups"
    stage.ready(name, {"m1": model("good", image="shop/m1:1")})
    first = stage.raycluster(name)
    with stage.callers(name):
        for number in (2, 3, 4):
            stage.patch(name, nodes={"m1": {"image": f"shop/m1:{number}"}})
            stage.wait_settled(name)
            busy = [group for group in ("m1-a", "m1-b", "m1-c") if pods_of(stage, name, group)]
            assert busy, "the node runs somewhere"
            stage.until("old pods to go", lambda: len(groups_with_pods(stage, name)) == 1, name=name)
    groups = [one["groupName"] for one in stage.raycluster(name)["spec"]["workerGroupSpecs"]]
    assert sorted(group for group in groups if group.startswith("m1-")) == ["m1-a", "m1-b"]
    only_appended(stage, first)


def groups_with_pods(stage: Stage, name: str) -> list[str]:
    return [group for group in ("m1-a", "m1-b", "m1-c") if pods_of(stage, name, group)]


@SCENES.add()
def a_suspended_pipeline_frees_its_pods_and_comes_back_as_it_was(stage: Stage) -> None:
    name = "suspended"
    before = stage.ready(name)["status"]["nodes"]
    stage.patch(name, suspend=True)
    stage.told(name, "Available", "False", "Suspended")
    stage.until("all pods to go", lambda: not stage.pods(name), name=name)
    live = stage.wait_until("rest", name, lambda live: not stage.condition(live, "Reconciling"))
    assert not stage.condition(live, "Stalled")
    stage.patch(name, suspend=False)
    after = stage.wait_settled(name)["status"]["nodes"]
    assert {node: one["revision"] for node, one in after.items()} == {
        node: one["revision"] for node, one in before.items()
    }


@SCENES.add()
def a_paused_pipeline_is_only_looked_at(stage: Stage) -> None:
    name = "paused"
    stage.ready(name)
    stage.patch(name, paused=True)
    stage.told(name, "Accepted", "True", "Accepted", "paused")
    before = (
        stage.raycluster(name)["metadata"]["generation"],
        stage.kuberay.puts(stage.namespace, stage.cluster(name)),
    )
    stage.patch(name, nodes={"m1": {"args": ["good", 2]}, "m2": {"replicas": 2}})
    stage.plane.api.delete(stage.at("api/v1:services", name))
    stage.wait_until("a look at the new generation", name, lambda live: looked_at(live) and _not_ready(live))
    stage.looked(name)
    after = (stage.raycluster(name)["metadata"]["generation"], stage.kuberay.puts(stage.namespace, stage.cluster(name)))
    assert after == before
    assert stage.find("api/v1:services", name) is None
    stage.patch(name, paused=False)
    live = stage.wait_settled(name)
    assert live["status"]["nodes"]["m2"]["readyReplicas"] == 2


def looked_at(live: Json) -> bool:
    return bool(live["status"].get("observedGeneration") == live["metadata"]["generation"])


def _not_ready(live: Json) -> bool:
    return any(one["type"] == "Ready" and one["status"] != "True" for one in live["status"]["conditions"])


@SCENES.add()
def nodes_are_added_removed_and_renamed(stage: Stage) -> None:
    name = "graph"
    stage.ready(name, {"m1": model("good"), "m2": model("good")})
    first, before = stage.raycluster(name), stage.replicas(name)
    with stage.callers(name) as callers:
        for nodes in (("m1", "m2", "m3"), ("m1", "m3"), ("m1", "other")):
            stage.apply(stage.resource(name, {node: model("good") for node in nodes}))
            live = stage.wait_settled(name)
            assert sorted(live["status"]["nodes"]) == sorted(nodes)
            stage.until("all nodes to answer", lambda: sorted(callers.last["revisions"]) == sorted(nodes), name=name)  # noqa: B023
            gone = {app.partition("--")[0] for app in stage.replicas(name)} - {*nodes, "ingress"}
            assert not gone
    after = stage.replicas(name)
    m1 = of_node(stage, name, "m1")[0]
    assert after[m1] == before[m1], "m1 was never touched"
    assert after["ingress"] == before["ingress"]
    only_appended(stage, first)


@SCENES.as_tests
def test_scene(outcome: Outcome) -> None:
    outcome()
