"""What people read: differences, conflicts, lists, progress."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from servepipe_operator.cluster.changes import conflict, difference, foreign_lines, kept_lines, text_of
from servepipe_operator.cluster.fields import MISSING
from servepipe_operator.cluster.merging import Kept
from servepipe_operator.cluster.progress import outcome, snapshot
from servepipe_operator.cluster.status import list_lines

Json = dict[str, Any]


def pipeline(image: str = "shop:1", **m1: Any) -> Json:
    return {
        "apiVersion": "servepipe.dev/v1alpha1",
        "kind": "ServePipeline",
        "metadata": {"name": "shop", "namespace": "ns"},
        "spec": {
            "image": image,
            "graph": {"steps": [{"name": "first", "node": "m1"}], "output": {"$step": "first"}},
            "nodes": {"m1": {"import": "shop:M1", **m1}},
        },
    }


def changed(lines: list[str]) -> list[str]:
    return [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


# --- Differences ------------------------------------------------------------------------------------------------------


def test_one_changed_field_is_one_line() -> None:
    lines = difference(pipeline(replicas=1), pipeline(replicas=2), ("live", "new"))
    assert lines[:2] == ["--- live", "+++ new"]
    assert changed(lines) == ["-      replicas: 1", "+      replicas: 2"]


def test_what_a_cluster_adds_is_no_difference() -> None:
    there = pipeline()
    there["metadata"] |= {"uid": "u", "resourceVersion": "7", "managedFields": [], "creationTimestamp": "2026"}
    there["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    there["status"] = {"url": "http://x/"}
    assert difference(there, pipeline(), ("a", "b")) == []


def test_fields_of_a_newer_version_are_shown_all_the_same() -> None:
    newer = pipeline(fromTheFuture=1)
    assert changed(difference(newer, pipeline(fromTheFuture=2), ("a", "b"))) == [
        "-      fromTheFuture: 1",
        "+      fromTheFuture: 2",
    ]
    assert text_of(None) == ""


# --- Who is in the way ------------------------------------------------------------------------------------------------


def test_a_conflict_names_fields_owners_and_both_values() -> None:
    causes = (
        '.spec.image: conflict with "kubectl-edit" using servepipe.dev/v1alpha1',
        '.spec.nodes.m1.env[name="A"].value: conflict with "ops"',
        "something else altogether",
    )
    error = conflict(causes, pipeline("shop:2"), pipeline("hotfix:1"))
    assert error is not None
    assert error.what.splitlines() == [
        "2 fields are in other hands; nothing was changed",
        '    spec.image is held by kubectl-edit: there "hotfix:1", in the file "shop:2"',
        '    spec.nodes.m1.env[name="A"].value is held by ops',
    ]
    assert "--take-ownership" in error.fix


def test_a_conflict_about_nobody_is_none_of_these() -> None:
    assert conflict((), pipeline(), None) is None
    assert conflict(("the object has been modified",), pipeline(), None) is None


def test_what_stays_is_told_in_a_line_each() -> None:
    kept = [
        Kept("spec.nodes.m1.replicas", 7, 3, ("kubectl-patch", "ops")),
        Kept("spec.nodes.m1.autoscaling", {"minReplicas": 1, "maxReplicas": 1000}, MISSING, ("ops",)),
        Kept("spec.suspend", MISSING, True, ("ops",)),
        Kept("spec.nodes.m1.upgrade.steps", [{"weight": n} for n in range(40)], MISSING, ("ops",)),
    ]
    lines = list(kept_lines(kept))
    assert lines[:3] == [
        "spec.nodes.m1.replicas stays 7, set by kubectl-patch, ops; the file says 3",
        'spec.nodes.m1.autoscaling stays {"minReplicas": 1, "maxReplicas": 1000}, set by ops',
        "spec.suspend stays unset, set by ops; the file says true",
    ]
    assert len(lines[3]) < 120
    assert list(foreign_lines([("m3", ())])) == ["spec.nodes.m3 stays, added by somebody; the file does not have it"]


# --- Progress ---------------------------------------------------------------------------------------------------------


def live(seen: int | None = 2, spec: Json | None = None, **conditions: str) -> Json:
    said = [
        {"type": kind, "status": status, "reason": "Because", "message": "m1"} for kind, status in conditions.items()
    ]
    status: Json = {"conditions": said} | ({} if seen is None else {"observedGeneration": seen})
    return {"metadata": {"name": "shop", "namespace": "ns", "generation": 2}, "spec": spec or {}, "status": status}


@pytest.mark.parametrize(
    ("there", "state", "text"),
    [
        (live(Ready="True"), "ready", "Ready"),
        (live(Ready="True", Reconciling="False"), "ready", "Ready"),
        (live(Ready="True", Reconciling="True"), "waiting", "Because: m1"),
        (live(Ready="False"), "waiting", "Because: m1"),
        (live(Ready="True", Stalled="True"), "failed", "Stalled=True Because: m1"),
        (live(Ready="True", Accepted="False"), "failed", "Accepted=False Because: m1"),
        (live(1, Ready="True", Stalled="True"), "waiting", "the operator has not looked at this change yet"),
        (live(None), "waiting", "no operator has looked at it yet: is one installed that watches this namespace?"),
        (
            live(spec={"paused": True}, Ready="False"),
            "still",
            "it is paused: nothing is changed until `servepipe resume`",
        ),
        (
            live(spec={"suspend": True}, Ready="False"),
            "still",
            "it is suspended: nothing runs until `servepipe resume`",
        ),
        (live(spec={"suspend": True}, Accepted="False"), "failed", "Accepted=False Because: m1"),
        (live(), "waiting", "no condition says why"),
    ],
)
def test_outcome(there: Json, state: str, text: str) -> None:
    found = outcome(there, 2)
    assert (found.state, found.text) == (state, text)


def test_a_snapshot_without_a_status() -> None:
    shown = snapshot({"metadata": {"name": "shop", "namespace": "ns", "generation": 1}})
    assert shown == {"pipeline": "shop", "namespace": "ns", "url": "", "generation": 1, "status": {}}


def test_a_list_has_the_columns_of_kubectl() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    busy = live(Available="True", Ready="False")
    busy["metadata"] |= {"name": "b", "creationTimestamp": "2026-01-01T23:58:00Z"}
    busy["status"] |= {"nodesReady": "1/2", "upgrading": "m1 10%", "url": "http://b/"}
    new: Json = {"metadata": {"name": "a", "creationTimestamp": "2025-12-30T00:00:00Z"}, "spec": {}}
    assert [line.split() for line in list_lines([busy, new], now)] == [
        ["NAME", "AVAILABLE", "READY", "NODES", "UPGRADING", "URL", "AGE"],
        ["a", "-", "-", "-", "-", "-", "3d"],
        ["b", "True", "False", "1/2", "m1", "10%", "http://b/", "2m"],
    ]
