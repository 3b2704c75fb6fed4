"""KubeRay's contract, part 4: the status that others read, suspension, and the end. Each test is a row."""

from __future__ import annotations

import pytest
from kuberay.samples import autoscaled, group, raycluster
from kuberay_contract import World

GROUP = "/spec/workerGroupSpecs"


# -- conditions


def test_before_pods_run(world: World) -> None:
    world.given(raycluster("c", group("g", 2, minReplicas=1, maxReplicas=5)))
    world.wait_condition("c", "HeadPodReady", "False")
    world.wait_condition("c", "RayClusterProvisioned", "False", "RayClusterPodsProvisioning")
    world.wait_condition("c", "RayClusterSuspended", "False")
    world.wait_condition("c", "RayClusterSuspending", "False")
    status = world.status("c")
    assert "state" not in status
    assert not {"readyWorkerReplicas", "availableWorkerReplicas"} & status.keys()
    bounds = (status["desiredWorkerReplicas"], status["minWorkerReplicas"], status["maxWorkerReplicas"])
    assert bounds == (2, 1, 5)
    assert (status["desiredCPU"], status["desiredMemory"]) == ("3", "3Gi")
    assert status["endpoints"]["dashboard"] == "8265"
    assert status["head"]["serviceName"] == "c-head-svc"


def test_once_the_head_runs(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    world.runs(world.head("c"))
    world.wait_condition("c", "HeadPodReady", "True", "HeadPodRunningAndReady")
    world.wait("podIP", lambda: world.status("c")["head"].get("podIP"))
    status, head = world.status("c"), world.head("c")
    assert status["head"]["podIP"] == head["status"]["podIP"] == status["head"]["serviceIP"]
    assert status["head"]["podName"] == head["metadata"]["name"]
    assert "state" not in status
    assert world.condition("c", "RayClusterProvisioned")["status"] == "False"


def test_once_all_pods_run(world: World) -> None:
    world.given(raycluster("c", group("g", 2)))
    world.all_run("c")
    world.wait_condition("c", "RayClusterProvisioned", "True", "AllPodRunningAndReadyFirstTime")
    status = world.status("c")
    assert (status["readyWorkerReplicas"], status["availableWorkerReplicas"]) == (2, 2)
    assert "ready" in status["stateTransitionTimes"]


def test_a_worker_that_runs_but_is_not_ready_is_available(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    world.runs(*world.pods("c", "g"), ready=False)
    world.wait("one available", lambda: world.status("c").get("availableWorkerReplicas") == 1)
    assert "readyWorkerReplicas" not in world.status("c")


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "CrashLoopBackOff", "CreateContainerConfigError"])
def test_why_the_head_does_not_start_is_the_condition_s_reason(world: World, reason: str) -> None:
    world.given(raycluster("c"))
    world.runs(world.head("c"), reason=reason)
    condition = world.wait_condition("c", "HeadPodReady", "False", reason)
    assert condition["message"] == "containers with unready status; ray: told so"


def test_why_a_worker_does_not_start_is_in_no_condition(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    world.runs(world.head("c"))
    world.runs(*world.pods("c", "g"), reason="ImagePullBackOff")
    world.wait_condition("c", "HeadPodReady", "True")
    world.passes()
    assert "ImagePullBackOff" not in str(world.status("c"))


def test_state_ready_and_provisioned_stick_when_pods_are_lost(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    world.all_run("c")
    for pod in world.pods("c"):
        world.delete_pod(pod)
    world.wait_condition("c", "HeadPodReady", "False")
    world.wait("no worker", lambda: "readyWorkerReplicas" not in world.status("c"))
    assert world.status("c")["state"] == "ready"
    assert world.condition("c", "RayClusterProvisioned")["status"] == "True"


def test_the_observed_generation_may_lag(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    world.all_run("c")
    before = world.cluster("c")
    world.json_patch("c", ("replace", f"{GROUP}/0/template/spec/containers/0/image", "new"))
    world.passes()
    after = world.cluster("c")
    assert after["metadata"]["generation"] == before["metadata"]["generation"] + 1
    assert after["status"]["observedGeneration"] == before["metadata"]["generation"]


def test_in_a_steady_state_nothing_is_written(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    world.all_run("c")
    world.passes()
    before = world.cluster("c")["metadata"]["resourceVersion"]
    world.json_patch("c", ("add", "/metadata/annotations", {"touched": "yes"}))
    touched = world.cluster("c")["metadata"]["resourceVersion"]
    assert touched != before
    world.passes()
    assert world.cluster("c")["metadata"]["resourceVersion"] == touched


def test_pods_that_are_refused_are_a_replica_failure_until_they_are_not(world: World) -> None:
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "2"}}}
    world.api.create(world.path("resourcequotas"), quota)
    world.wait(
        "the quota", lambda: (world.find(world.path("resourcequotas", "few")) or {}).get("status", {}).get("used")
    )
    world.given(raycluster("c", group("g", 3)), made=2)
    condition = world.wait_condition("c", "ReplicaFailure", "True", "FailedCreateWorkerPod")
    assert "exceeded quota" in condition["message"]
    assert "exceeded quota" in world.wait("an Event", lambda: world.events("c", "FailedToCreateWorkerPod"))[0]["note"]
    world.api.delete(world.path("resourcequotas", "few"))
    world.wait_pods("c", 3, "g")
    world.wait("no ReplicaFailure", lambda: not world.condition("c", "ReplicaFailure"))


def test_a_head_that_is_refused_is_a_replica_failure_of_its_own(world: World) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    world.api.create(world.path("resourcequotas"), quota)
    world.wait("the quota", lambda: (world.find(world.path("resourcequotas", "none")) or {}).get("status"))
    world.given(raycluster("c", group("g", 1)), made=0)
    world.wait_condition("c", "ReplicaFailure", "True", "FailedCreateHeadPod")
    assert world.condition("c", "HeadPodReady")["reason"] == "HeadPodNotFound"
    assert world.pods("c") == []
    # Before it fails, everything else is there.
    world.service("c-head-svc")


def test_events_tell_what_was_made(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    head, (worker,) = world.head("c"), world.pods("c", "g")
    notes = {
        "CreatedService": f"Created service {world.namespace}/c-head-svc",
        "CreatedHeadPod": f"Created head Pod {world.namespace}/{head['metadata']['name']}",
        "CreatedWorkerPod": f"Created worker Pod {world.namespace}/{worker['metadata']['name']}",
    }
    for reason, note in notes.items():
        (event,) = world.wait(reason, lambda reason=reason: world.events("c", reason))
        assert (event["type"], event["note"], event["reportingController"]) == ("Normal", note, "raycluster-controller")


def test_events_of_one_reconcile_are_one_event_with_the_first_text(world: World) -> None:
    world.given(raycluster("c", group("g", 3)))
    (event,) = world.wait("a series", lambda: [e for e in world.events("c", "CreatedWorkerPod") if e.get("series")])
    assert event["note"].split("/")[-1] in {pod["metadata"]["name"] for pod in world.pods("c", "g")}


# -- suspension


def test_suspension_deletes_pods_and_keeps_services(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    world.all_run("c")
    world.json_patch("c", ("add", "/spec/suspend", True))
    world.wait_condition("c", "RayClusterSuspended", "True")
    assert world.condition("c", "RayClusterSuspending")["status"] == "False"
    assert world.pods("c") == []
    world.service("c-head-svc")
    assert world.status("c")["state"] == "suspended"
    assert world.condition("c", "RayClusterProvisioned")["status"] == "False"
    assert world.condition("c", "HeadPodReady")["reason"] == "HeadPodNotFound"
    assert "suspension" in world.wait("an Event", lambda: world.events("c", "DeletedPod"))[0]["note"]


def test_the_end_of_suspension_brings_new_pods(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    world.all_run("c")
    world.json_patch("c", ("add", "/spec/suspend", True))
    world.wait_condition("c", "RayClusterSuspended", "True")
    world.json_patch("c", ("replace", "/spec/suspend", False))
    world.wait_pods("c", 2)
    world.wait_condition("c", "RayClusterSuspended", "False")
    assert world.status("c")["state"] == "suspended"
    world.all_run("c")


def test_the_end_of_suspension_must_be_said(world: World) -> None:
    """Without the field it stays suspended: KubeRay waits for ``false``."""
    world.given(raycluster("c"))
    world.json_patch("c", ("add", "/spec/suspend", True))
    world.wait_condition("c", "RayClusterSuspended", "True")
    world.json_patch("c", ("remove", "/spec/suspend"))
    world.passes()
    assert world.condition("c", "RayClusterSuspended")["status"] == "True"
    assert world.pods("c") == []


def test_a_cluster_that_is_suspended_from_the_start_has_no_pods(world: World) -> None:
    world.given(raycluster("c", group("g", 1), suspend=True), made=0)
    world.wait_condition("c", "RayClusterSuspended", "True")
    assert world.status("c")["state"] == "suspended"
    world.service("c-head-svc")
    assert world.pods("c") == []


def test_suspension_goes_through_once_it_has_begun(world: World) -> None:
    kept = {"spec": raycluster("c")["spec"]["headGroupSpec"]["template"]["spec"]}
    kept["metadata"] = {"finalizers": ["tests.servepipe.dev/kept"]}
    world.given(raycluster("c", headGroupSpec={"rayStartParams": {}, "template": kept}))
    before = world.head("c")
    world.all_run("c")
    world.json_patch("c", ("add", "/spec/suspend", True))
    world.wait_condition("c", "RayClusterSuspending", "True")
    world.json_patch("c", ("replace", "/spec/suspend", False))
    world.wait("the head to end", lambda: "deletionTimestamp" in world.pods("c")[0]["metadata"])
    assert world.condition("c", "RayClusterSuspending")["status"] == "True"
    world.api.merge(world.path("pods", before["metadata"]["name"]), {"metadata": {"finalizers": None}})
    world.wait("another head", lambda: world.uids("c") not in (set(), {before["metadata"]["uid"]}))
    after = world.head("c")
    world.api.merge(world.path("pods", after["metadata"]["name"]), {"metadata": {"finalizers": None}})


# -- the end


def test_a_deleted_cluster_has_no_finalizer_and_takes_everything_with_it(world: World) -> None:
    world.given(autoscaled("c", group("g", 1), authOptions={"mode": "token"}))
    assert "finalizers" not in world.cluster("c")["metadata"]
    world.api.delete(world.clusters("c"))
    assert world.find(world.clusters("c")) is None
    left = [world.path("services", "c-head-svc"), world.path("secrets", "c"), world.path("serviceaccounts", "c")]
    left += [world.rbac("roles", "c"), world.rbac("rolebindings", "c")]
    world.wait("all to be gone", lambda: not world.pods("c") and not any(map(world.find, left)))


def test_the_same_name_again_at_once(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    before = world.uids("c")
    world.api.delete(world.clusters("c"))
    world.api.create(world.clusters(), raycluster("c", group("g", 1)))
    world.wait("new pods only", lambda: len(found := world.uids("c")) == 2 and not found & before)


def test_with_redis_there_is_a_finalizer(world: World) -> None:
    options = {"redisAddress": "redis:6379"}
    world.given(raycluster("c", gcsFaultToleranceOptions=options))
    assert world.cluster("c")["metadata"]["finalizers"] == ["ray.io/gcs-ft-redis-cleanup-finalizer"]
    assert world.head("c")["metadata"]["annotations"]["ray.io/ft-enabled"] == "true"
    world.api.merge(world.clusters("c"), {"metadata": {"finalizers": None}})
