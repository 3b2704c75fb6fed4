"""What the caches keep, and which changes are worth a look."""

from __future__ import annotations

from typing import Any

import pytest

from servepipe_operator.controller.context import Key
from servepipe_operator.controller.kinds import CHILDREN, pipelines
from servepipe_operator.controller.store import Cache, WatchStore

A = Key("ns", "a")


def live(name: str, version: int = 1, namespace: str = "ns", **more: Any) -> dict[str, Any]:
    metadata = {"namespace": namespace, "name": name, "resourceVersion": str(version), "uid": f"uid-{name}"}
    return {"metadata": metadata | more.pop("metadata", {}), **more}


def child(name: str, pipeline: str, version: int = 1, **more: Any) -> dict[str, Any]:
    return live(name, version, metadata={"labels": {"servepipe.dev/pipeline": pipeline}}, **more)


def test_a_pipeline_is_worth_a_look_unless_only_its_status_changed() -> None:
    cache = Cache(pipelines("ours"))
    assert cache.put(live("a", 1, metadata={"generation": 1})) == {A}
    assert cache.put(live("a", 1, metadata={"generation": 1})) == set(), "the same version"
    ready = {"conditions": [{"type": "Ready", "status": "True", "reason": "Ready"}]}
    assert cache.put(live("a", 2, metadata={"generation": 1}, status=ready)) == set()
    assert list(cache.conditions()) == [{"Ready": ("True", "Ready")}]
    assert cache.of(A)[0]["status"] == ready
    assert cache.put(live("a", 3, metadata={"generation": 2}, status=ready)) == {A}
    assert cache.put(live("a", 4, metadata={"generation": 2, "annotations": {"x": "y"}})) == {A}
    assert cache.put(live("a", 5, metadata={"generation": 2, "annotations": {"x": "y"}, "uid": "new"})) == {A}
    assert cache.drop(("ns", "a")) == {A}
    assert cache.drop(("ns", "a")) == set()
    assert cache.of(A) == ()


def test_a_pipeline_of_another_installation_looks_as_if_it_were_not_there() -> None:
    cache = Cache(pipelines("ours"))
    theirs = {"labels": {"servepipe.dev/installation": "theirs"}}
    assert cache.put(live("a", 1, metadata=theirs)) == set()
    assert cache.put(live("a", 2, metadata={"labels": {"servepipe.dev/installation": "ours"}})) == {A}
    assert cache.put(live("a", 3, metadata=theirs)) == {A}
    assert cache.of(A) == ()


def test_a_child_that_changes_hands_concerns_both_and_what_vanished_its_last() -> None:
    cache = Cache(CHILDREN["Service"])
    assert cache.put(child("s", "a")) == {A}
    assert cache.put(child("s", "a", 2)) == {A}
    assert cache.put(child("s", "b", 3)) == {A, Key("ns", "b")}
    assert cache.put(live("unlabelled")) == set()
    assert cache.put(child("t", "a")) == {A}
    assert cache.put(live("t", 2)) == {A}, "its label was taken away"
    cache.put(child("u", "a"))
    assert cache.keep_only({("ns", "u")}, "another") == set()
    assert cache.keep_only({("ns", "u")}, "ns") == {Key("ns", "b")}
    assert cache.keep_only(set(), "") == {A}
    assert len(cache) == 0
    assert cache.owners() == ()


def test_objects_are_copies_without_what_is_large_and_of_no_use() -> None:
    cache = Cache(CHILDREN["RayCluster"])
    notes = {"kubectl.kubernetes.io/last-applied-configuration": "long", "x": "y"}
    body = child("r", "a", spec={"deep": [1]})
    body["metadata"] |= {"managedFields": [{}], "annotations": notes}
    cache.put(body)
    cache.of(A)[0]["spec"]["deep"].append(2)
    [kept] = cache.of(A)
    assert kept["spec"] == {"deep": [1]}
    assert kept["metadata"]["annotations"] == {"x": "y"}
    assert "managedFields" not in kept["metadata"]
    pods = Cache(CHILDREN["Pod"])
    pods.put(child("p", "a", spec={"nodeName": "n", "containers": [{}]}, status={"phase": "Running"}))
    assert pods.of(A)[0] == {
        "metadata": child("p", "a")["metadata"], "spec": {"nodeName": "n"}, "status": {"phase": "Running"},
    }  # fmt: skip


def test_a_warning_is_found_by_the_name_of_its_raycluster() -> None:
    events = Cache(CHILDREN["Event"])
    about = {"kind": "RayCluster", "namespace": "ns", "name": "a-b-6f3a9"}
    assert events.put(live("e", reason="InvalidRayClusterSpec", involvedObject=about)) == {Key("ns", "a-b")}
    assert events.put(live("f", involvedObject={**about, "name": "someones"})) == set()
    store = WatchStore(Cache(pipelines("ours")), [events])
    assert store.children("Event", Key("ns", "a-b"))[0]["reason"] == "InvalidRayClusterSpec"
    with pytest.raises(KeyError):
        store.children("Nothing", A)


@pytest.mark.parametrize("status", [None, "text", {}, {"conditions": None}, {"conditions": 1}, {"conditions": ["x"]}])
def test_a_status_of_any_shape_is_borne(status: Any) -> None:
    cache = Cache(CHILDREN["RayCluster"])
    cache.put(child("r", "a", status=status))
    assert list(cache.conditions()) == [{}]
