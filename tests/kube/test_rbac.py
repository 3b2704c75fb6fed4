"""The chart's Roles allow exactly what operators do: by the API server's audit log, every right is used and no other.

Two checks, so that each is honest by itself. Here one operator, cluster-wide and namespaced, is driven through all
that takes a right; what it used must equal what it was given. And at the end of whatever tests were run, all of their
operators together may have used nothing beyond that; conftest.py puts this check last. Of both follows that all of
tests/kube used exactly the Roles.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from bed.audit import Right, rights
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from chart import Accounts
from kuberay.control import KubeRay
from operator_process import StartOperator
from pipelines import ENV, Json, Pipelines

NAME = "all-rights"
LABEL = "servepipe.dev/pipeline"


@pytest.mark.parametrize("cluster_wide", [True, False], ids=["cluster-wide", "namespaced"])
def test_every_right_is_used(
    control_plane: ControlPlane,
    kuberay: KubeRay,
    accounts: Accounts,
    namespace: str,
    start_operator: StartOperator,
    cluster_wide: bool,
) -> None:
    watched = [] if cluster_wide else [namespace]
    account = accounts.of(namespace, "operator", watched)
    operator = start_operator(namespace, namespaces=watched, env=ENV, instance="operator")
    operator.wait_ready()
    pipelines = Pipelines(control_plane, kuberay, namespace, operator)

    with _meddling(pipelines):
        pipelines.apply(pipelines.resource(NAME, {"m1": ["good"], "m2": ["good"]}, ingress={"replicas": 2}))
        # Status meets somebody else's changes, so the pipeline is read again.
        _wait_for(account.user, control_plane, Right("servepipe.dev", "servepipelines", "", "get"))
    live = pipelines.wait_settled(NAME)
    # Worker groups change, and what history no longer needs is deleted.
    pipelines.patch(NAME, nodes={"m1": {"args": ["good", 2], "image": "shop/models:2"}})
    pipelines.wait_settled(NAME)
    _wait_for(account.user, control_plane, Right("apps", "controllerrevisions", "", "delete"))
    _somebody_edits_and_leaves_behind(pipelines, live)
    for group, plural in (
        ("", "services"),
        ("networking.k8s.io", "networkpolicies"),
        ("policy", "poddisruptionbudgets"),
        ("ray.io", "rayclusters"),
    ):
        _wait_for(account.user, control_plane, Right(group, plural, "", "delete"))
    # A RayCluster that does not say whose it is is met when it is to be made again.
    path = f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters/{pipelines.cluster(NAME)}"
    control_plane.api.merge(path, {"metadata": {"labels": {LABEL: None}}})
    _wait_for(account.user, control_plane, Right("ray.io", "rayclusters", "", "get"))
    control_plane.api.merge(path, {"metadata": {"labels": {LABEL: NAME}}})
    pipelines.wait_settled(NAME)

    used = rights(control_plane.audit(account.user))
    assert _lines(used - account.granted) == [], "used without being in the Role"
    assert _lines(account.granted - used) == [], "in the Role without being used"
    assert _lines(rights(control_plane.audit(account.user), refused=True)) == []


def test_no_operator_of_any_test_used_another_right(
    control_plane: ControlPlane, accounts: Accounts, summary: list[str]
) -> None:
    """Runs last. What an operator was refused although its Role has it was taken from it by a test."""
    if not accounts.all:
        pytest.skip("no other test that ran had an operator")
    for cluster_wide in (True, False):
        mine = [account for account in accounts.all if account.cluster_wide == cluster_wide]
        used: set[Right] = set()
        for account in mine:
            events = control_plane.audit(account.user)
            asked = rights(events) | rights(events, refused=True)
            assert _lines(asked - account.granted) == [], f"{account.user} asked for what is not in its Role"
            used |= asked
        if mine:
            kind = "cluster-wide" if cluster_wide else "namespaced"
            summary.append(f"RBAC: {len(mine)} {kind} operators used {len(used)} rights, all of them in their Roles")


def _somebody_edits_and_leaves_behind(pipelines: Pipelines, live: Json) -> None:
    """Each child is changed, and there is one more of its kind that claims to be the pipeline's."""
    api, namespace = pipelines.plane.api, pipelines.namespace
    owner = {
        "apiVersion": "servepipe.dev/v1alpha1",
        "kind": "ServePipeline",
        "name": NAME,
        "uid": live["metadata"]["uid"],
        "controller": True,
    }
    edits: dict[str, Json] = {
        "api/v1:services": {"spec": {"selector": {"example.com/edited": "yes"}}},
        "apis/networking.k8s.io/v1:networkpolicies": {"spec": {"podSelector": {"matchLabels": {"edited": "yes"}}}},
        "apis/policy/v1:poddisruptionbudgets": {"spec": {"minAvailable": 0}},
        "apis/ray.io/v1:rayclusters": {},
    }
    for resource, edit in edits.items():
        prefix, plural = resource.split(":")
        path = f"/{prefix}/namespaces/{namespace}/{plural}"
        children = [one for one in pipelines.children(resource, NAME) if _owned(one, owner["uid"])]
        assert children, f"the pipeline has no {plural}"
        spec = {key: value for key, value in children[0]["spec"].items() if key not in ("clusterIP", "clusterIPs")}
        metadata = {"name": f"{NAME}-former", "labels": children[0]["metadata"]["labels"], "ownerReferences": [owner]}
        kind = {"apiVersion": prefix.partition("/")[2], "kind": children[0].get("kind")}
        body = {key: value for key, value in kind.items() if value}
        api.create(path, {**body, "metadata": metadata, "spec": spec})
        if edit:
            api.merge(f"{path}/{children[0]['metadata']['name']}", edit)


def _owned(live: Json, uid: str) -> bool:
    return any(one["uid"] == uid for one in live["metadata"].get("ownerReferences") or ())


def _wait_for(user: str, plane: ControlPlane, right: Right) -> None:
    wait_for(f"the operator to {right}", lambda: right in rights(plane.audit(user)), 60)


@contextmanager
def _meddling(pipelines: Pipelines) -> Iterator[Callable[[], None]]:
    """Somebody annotates the pipeline, as soon as it is there, as fast as it goes."""
    end = threading.Event()

    def meddle() -> None:
        count = 0
        while not end.is_set():
            if pipelines.plane.api.find(f"{pipelines.path}/{NAME}") is None:
                end.wait(0.02)
                continue
            count += 1
            annotations = {"example.com/count": str(count)}
            pipelines.plane.api.merge(f"{pipelines.path}/{NAME}", {"metadata": {"annotations": annotations}})

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        yield end.set
    finally:
        end.set()
        thread.join(30)


def _lines(found: set[Right]) -> list[str]:
    return sorted(map(str, found))
