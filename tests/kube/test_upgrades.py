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


@SCENES.as_tests
def test_scene(outcome: Outcome) -> None:
    outcome()
