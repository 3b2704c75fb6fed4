"""Names, labels, ownership, and versions of Ray."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from servepipe_operator.engine.names import cluster_name
from servepipe_operator.engine.versions import version_mismatch, version_problem
from servepipe_operator.objects.names import Owner, labels, metadata, ownership


def test_the_cluster_of_the_longest_name_fits() -> None:
    name = cluster_name("a" * 44, "uid", "rev")
    assert len(name) == 50
    assert re.fullmatch(r"a{44}-[0-9a-f]{5}", name)


def test_another_uid_or_revision_is_another_cluster() -> None:
    names = {cluster_name("diamond", uid, revision) for uid in "ab" for revision in "cd"}
    assert len(names) == 4
    assert cluster_name("diamond", "a", "c") in names


def test_a_child_is_labelled_and_owned(owner: Owner) -> None:
    made = metadata(owner, "child")
    assert (
        made["labels"]
        == labels(owner)
        == {
            "app.kubernetes.io/managed-by": "servepipe",
            "servepipe.dev/pipeline": "diamond",
            "servepipe.dev/installation": "main",
        }
    )
    (reference,) = made["ownerReferences"]
    assert (reference["uid"], reference["controller"], reference["blockOwnerDeletion"]) == ("uid-1", True, True)


def test_ownership(owner: Owner) -> None:
    child = {"metadata": metadata(owner, "child")}
    assert ownership(child, owner) == "ours"
    assert ownership(child, replace(owner, uid="uid-2")) == "former"
    assert ownership(child, replace(owner, uid="uid-2", name="other")) == "foreign"
    assert ownership({"metadata": {}}, owner) == "foreign"
    child["metadata"]["ownerReferences"][0]["controller"] = False
    assert ownership(child, owner) == "foreign"


def test_what_a_raycluster_keeps_is_a_former_pipelines(owner: Owner) -> None:
    kept = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "name": "diamond-ab12c", "uid": "uid-9"}
    child = {"metadata": {**metadata(owner, "child"), "ownerReferences": [kept]}}
    assert ownership(child, owner) == "former"
    assert ownership(child, replace(owner, name="other")) == "foreign"
    child["metadata"]["ownerReferences"] = [{**kept, "controller": True}]  # KubeRay's own children
    assert ownership(child, owner) == "foreign"


def test_somebody_elses_kind_is_foreign_even_with_our_uid(owner: Owner) -> None:
    reference = {
        "apiVersion": "apps/v1",
        "kind": "ServePipeline",
        "uid": "uid-1",
        "name": "diamond",
        "controller": True,
    }
    assert ownership({"metadata": {"ownerReferences": [reference]}}, owner) == "foreign"


@pytest.mark.parametrize("version", ["2.52.0", "2.60.0", "2.60.0rc1", "3.0.0"])
def test_versions_that_are_taken(version: str) -> None:
    assert version_problem(version) is None


@pytest.mark.parametrize(
    ("version", "says"), [("2.51.9", "2.52 or later"), ("1.99.0", "token"), ("new", "not a version")]
)
def test_versions_that_are_refused(version: str, says: str) -> None:
    assert says in (version_problem(version) or "")


def test_another_version_on_the_head() -> None:
    assert version_mismatch("2.60.0", "2.60.0") is None
    assert "the head runs Ray 2.59.1" in (version_mismatch("2.60.0", "2.59.1") or "")
