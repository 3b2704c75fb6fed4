"""What a live RayCluster and its pods say, as the condition that people read."""

from __future__ import annotations

from typing import Any

import pytest

from servepipe_operator.engine.state import Json
from servepipe_operator.objects.children import says
from servepipe_operator.objects.cluster_view import view
from servepipe_operator.objects.names import Owner, metadata
from servepipe_operator.objects.pod_trouble import PodTrouble, first_trouble

NAME = "diamond-12345"


def cluster(owner: Owner, conditions: dict[str, tuple[str, str, str]] | None = None, **spec: Any) -> Json:
    live: Json = {"metadata": {**metadata(owner, NAME), "uid": "rc-1"}, "spec": {"workerGroupSpecs": [], **spec}}
    if conditions is not None:
        live["status"] = {
            "conditions": [
                {"type": kind, "status": value, "reason": reason, "message": message}
                for kind, (value, reason, message) in conditions.items()
            ]
        }
    return live


def pod(name: str, node_type: str, **status: Any) -> Json:
    labels = {"ray.io/cluster": NAME, "ray.io/node-type": node_type, "ray.io/group": "default-a"}
    labels |= {"servepipe.dev/role": "ingress"} if name.startswith("ingress") else {}
    return {"metadata": {"name": name, "uid": f"uid-{name}", "labels": labels}, "status": status}


READY = {"HeadPodReady": ("True", "HeadPodRunningAndReady", "")}
NOT_READY = {"HeadPodReady": ("False", "ContainersNotReady", "ray-head is not ready")}
QUOTA = ("True", "FailedCreateWorkerPod", "exceeded quota")
KEPT = ("True", "FailedDeleteAllPods", 'FailedDeleteAllPods admission webhook "keep" denied the request')
#: Of a KubeRay that is newer than this code.
NEW = ("True", "FailedAnew", "FailedAnew it is new")
HEAD = pod("head", "head", podIP="10.0.0.1")
UNSCHEDULABLE = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}]
PULLING = [
    {
        "name": "ray-head",
        "image": "models:1",
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}},
    }
]
PULLING_HEAD = pod("head", "head", containerStatuses=PULLING)
INVALID = {"involvedObject": {"uid": "rc-1"}, "reason": "InvalidRayClusterSpec", "message": "name too long"}


@pytest.mark.parametrize(
    ("conditions", "spec", "pods", "events", "reason", "says_so", "absent", "up"),
    [
        (None, {}, [], [], "WaitingForKubeRay", "did not take up", True, False),
        (None, {}, [], [INVALID], "InvalidRayCluster", "name too long", True, False),
        (None, {}, [], [{**INVALID, "involvedObject": {"uid": "other"}}], "WaitingForKubeRay", "", True, False),
        (READY, {}, [HEAD], [INVALID], "", "", False, True),
        (READY, {}, [], [], "HeadPodNotReady", "HeadPodRunningAndReady", True, False),
        (NOT_READY, {}, [HEAD], [], "HeadPodNotReady", "ray-head is not ready", False, False),
        (
            NOT_READY,
            {},
            [pod("head", "head", containerStatuses=PULLING)],
            [],
            "HeadPodNotReady",
            "cannot pull its image models:1",
            False,
            False,
        ),
        (NOT_READY, {}, [pod("head", "head", phase="Failed")], [], "HeadPodNotReady", "", True, False),
        ({}, {"suspend": True}, [], [], "Suspended", "", True, False),
        ({}, {"suspend": True}, [HEAD], [], "Suspended", "", False, False),
        ({"ReplicaFailure": KEPT}, {"suspend": True}, [HEAD], [], "FailedDeleteAllPods", "webhook", False, False),
        ({"ReplicaFailure": KEPT}, {"suspend": True}, [], [], "Suspended", "", True, False),
        ({"ReplicaFailure": QUOTA}, {"suspend": True}, [HEAD], [], "Suspended", "", False, False),
        ({"ReplicaFailure": NEW}, {"suspend": True}, [HEAD], [], "ReplicaFailure", "it is new", False, False),
        ({**READY, "ReplicaFailure": QUOTA}, {}, [HEAD], [], "FailedCreateWorkerPod", "exceeded quota", False, True),
        ({**NOT_READY, "ReplicaFailure": QUOTA}, {}, [], [], "FailedCreateWorkerPod", "cannot make pods", True, False),
        ({**READY, "ReplicaFailure": NEW}, {}, [HEAD], [], "ReplicaFailure", "FailedAnew it is new", False, True),
        (READY, {}, [HEAD, pod("w", "worker", conditions=UNSCHEDULABLE)], [], "PodsNotReady", "no GPU", False, True),
    ],
)
def test_what_is_said(
    owner: Owner,
    conditions: Any,
    spec: Json,
    pods: list[Json],
    events: list[Json],
    reason: str,
    says_so: str,
    absent: bool,
    up: bool,
) -> None:
    found = view(owner, NAME, [cluster(owner, conditions, **spec)], pods, events)

    assert (found.problem.reason if found.problem else "") == reason
    assert says_so in (found.problem.message if found.problem else "")
    assert (found.absent, found.up) == (absent, up)


@pytest.mark.parametrize("failure", [{}, {"ReplicaFailure": KEPT}])
def test_a_suspension_is_known_as_one_also_where_pods_do_not_go(owner: Owner, failure: Any) -> None:
    found = view(owner, NAME, [cluster(owner, failure, suspend=True)], [HEAD], [])
    assert found.problem is not None
    assert (found.problem.suspending, found.problem.blocking) == (True, True)
    assert found.problem.stalled == bool(failure)


def test_a_problem_of_workers_does_not_block(owner: Owner) -> None:
    found = view(owner, NAME, [cluster(owner, {**READY, "ReplicaFailure": QUOTA})], [HEAD], [])
    assert found.problem is not None
    assert (found.problem.blocking, found.problem.stalled) == (False, True)


def test_whose_it_is(owner: Owner) -> None:
    live = cluster(owner, READY)
    live["metadata"]["ownerReferences"][0]["uid"] = "former"
    former = view(owner, NAME, [live], [HEAD], [])
    live["metadata"]["ownerReferences"] = []
    foreign = view(owner, NAME, [live], [HEAD], [])
    ending = cluster(owner, READY)
    ending["metadata"]["deletionTimestamp"] = "now"
    deleting = view(owner, NAME, [ending], [HEAD], [])
    other = view(owner, NAME, [], [HEAD], [])
    reasons = [one.problem.reason for one in (former, foreign, deleting, other) if one.problem]
    assert reasons == ["PreviousDeletionPending", "NameTaken", "Deleting", "Creating"]
    assert all(one.absent and one.live is None for one in (former, foreign, deleting, other))


def test_addresses(owner: Owner) -> None:
    ready = [{"type": "Ready", "status": "True"}]
    pods = [
        HEAD,
        pod("ingress-1", "worker", podIP="10.0.0.2"),
        pod("ingress-2", "worker", podIP="10.0.0.3", conditions=ready),
    ]
    found = view(owner, NAME, [cluster(owner, READY)], pods, [])
    assert (found.head_ip, found.head_uid, found.ingress_ip) == ("10.0.0.1", "uid-head", "10.0.0.3")
    assert dict(found.pods or {}) == {"default-a": 2}
    none = view(owner, NAME, [], [], [])
    assert (none.head_ip, none.head_uid) == ("", "")


def test_only_a_pod_that_will_not_come_is_worth_a_word() -> None:
    coming = [{"name": "c", "state": {"waiting": {"reason": "ContainerCreating"}}}]
    ending = pod("w", "worker", conditions=UNSCHEDULABLE)
    ending["metadata"]["deletionTimestamp"] = "now"
    assert first_trouble([ending, pod("w", "worker", containerStatuses=coming)]) is None
    init = pod("w", "worker", initContainerStatuses=PULLING)
    assert first_trouble([init]) == PodTrouble("container ray-head cannot pull its image models:1")


def test_a_trouble_reads_the_same_whatever_the_kubelet_calls_it_now(owner: Owner) -> None:
    def told(name: str, reason: str, before: str = "attempt ") -> str:
        waiting = {"waiting": {"reason": reason, "message": f"{before}{name}"}}
        pods = [pod(name, "worker", containerStatuses=[{"name": "ray", "image": "models:1", "state": waiting}])]
        found = view(owner, NAME, [cluster(owner, READY)], [HEAD, *pods], [])
        assert found.problem is not None
        return found.problem.message

    assert told("w-1", "ErrImagePull") == told("w-2", "ImagePullBackOff")
    assert "kubectl -n " in told("w-1", "CrashLoopBackOff")
    again = "back-off {}s restarting failed container=ray pod=w-{}_shop(0f-1)"
    assert told(again.format(10, 1), "CrashLoopBackOff", "") == told(again.format(40, 2), "CrashLoopBackOff", "")
    failed = 'failed to start container "{}": no such file'
    assert told(failed.format("a" * 64), "RunContainerError", "") == told(
        failed.format("b" * 64), "RunContainerError", ""
    )
    assert "no such file" in told(failed.format("b" * 64), "RunContainerError", "")


@pytest.mark.parametrize(
    ("live", "wanted", "answer"),
    [
        ({"a": 1, "default": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": {}}, True),
        ({}, {"a": []}, True),
        ({}, {"a": {"b": 1}}, False),
        ({"a": [{"x": 1, "y": 2}]}, {"a": [{"x": 1}]}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": 3}, {"a": [1]}, False),
        (None, {}, True),
        (None, {"a": 1}, False),
        (7, {}, False),
        ({"selector": {"a": "1", "b": "2"}}, {"selector": {"a": "1"}}, False),
        (
            {"ingress": [{"from": [{"podSelector": {}}], "ports": []}]},
            {"ingress": [{"from": [{"podSelector": {}}]}]},
            False,
        ),
        ({"ingress": [{"ports": [{"port": 1, "protocol": "TCP"}]}]}, {"ingress": [{"ports": [{"port": 1}]}]}, True),
    ],
)
def test_the_servers_defaults_are_no_difference(live: Any, wanted: Any, answer: bool) -> None:
    assert says(live, wanted) is answer
