"""KubeRay's contract, part 3: what it does, and does not do, when a RayCluster or its pods change.

Each test is a row: given a RayCluster, when something happens, then these pods and Events. The traps for operators that
sit above KubeRay are here.
"""

from __future__ import annotations

import pytest
from bed.client import RefusedError
from kuberay.samples import autoscaled, group, raycluster, template
from kuberay_contract import Object, World

GROUP = "/spec/workerGroupSpecs"


def with_image(index: int, wanted: str) -> tuple[str, str, str]:
    return ("replace", f"{GROUP}/{index}/template/spec/containers/0/image", wanted)


def image_of(pod: Object) -> str:
    image: str = pod["spec"]["containers"][0]["image"]
    return image


def images(pods: list[Object]) -> set[str]:
    return {*map(image_of, pods)}


def own_pod(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}


# -- own objects with KubeRay's labels


def test_a_foreign_pod_with_the_cluster_s_label_is_deleted_on_suspension(world: World) -> None:
    world.given(raycluster("c"))
    world.api.create(world.path("pods"), own_pod("mine", **{"ray.io/cluster": "c"}))
    world.json_patch("c", ("add", "/spec/suspend", True))
    world.wait("my pod to go", lambda: world.find(world.path("pods", "mine")) is None)


def test_a_foreign_pod_that_looks_like_a_worker_is_counted(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    labels = {"ray.io/cluster": "c", "ray.io/node-type": "worker"}
    mine = world.api.create(world.path("pods"), own_pod("mine", **labels))
    world.runs(mine, *world.pods("c"))
    world.wait("two workers", lambda: world.status("c").get("availableWorkerReplicas") == 2)
    assert world.status("c")["desiredWorkerReplicas"] == 1
    world.passes()
    # One pod too many: it can never be "ready".
    assert "state" not in world.status("c")


def test_a_foreign_service_with_the_head_s_labels_is_taken_for_the_head_service(world: World) -> None:
    labels = {"ray.io/cluster": "c", "ray.io/node-type": "head", "ray.io/identifier": "c-head"}
    service = {"metadata": {"name": "mine", "labels": labels}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}}
    world.api.create(world.path("services"), service)
    # KubeRay may be asked before it has seen the Service.
    world.passes()
    world.given(raycluster("c"))
    world.wait("serviceName", lambda: world.status("c").get("head", {}).get("serviceName") == "mine")
    assert world.find(world.path("services", "c-head-svc")) is None


def test_two_such_services_stop_everything(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    world.wait("a status", lambda: world.status("c"))
    labels = {"ray.io/cluster": "c", "ray.io/node-type": "head", "ray.io/identifier": "c-head"}
    service = {"metadata": {"name": "mine", "labels": labels}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}}
    world.api.create(world.path("services"), service)
    world.passes()
    world.scale("c", 0, 3)
    world.passes()
    assert len(world.pods("c", "g")) == 1
    assert world.status("c")["desiredWorkerReplicas"] == 1
    world.api.delete(world.path("services", "mine"))
    world.wait_pods("c", 3, "g")


# -- who writes workerGroupSpecs


@pytest.mark.parametrize("how", ["merge patch", "server-side apply"])
def test_writing_the_groups_as_a_list_undoes_what_the_autoscaler_wrote(world: World, how: str) -> None:
    body = autoscaled("c", group("a", 0), group("b", 0))
    world.given(body)
    world.json_patch("c", ("replace", f"{GROUP}/0/replicas", 2), ("add", f"{GROUP}/0/scaleStrategy", {}))
    world.wait_pods("c", 2, "a")
    spec = {"workerGroupSpecs": [group("a", 0), group("b", 1)]}
    if how == "merge patch":
        after = world.api.merge(world.clusters("c"), {"spec": spec})
    else:
        identity = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "c"}}
        after = world.api.apply(world.clusters("c"), {**identity, "spec": spec}, force=True)
    assert [one["replicas"] for one in after["spec"]["workerGroupSpecs"]] == [0, 1]


def test_a_json_patch_with_a_test_of_the_name_leaves_the_other_fields(world: World) -> None:
    world.given(autoscaled("c", group("a", 0), group("b", 0)))
    world.scale("c", 0, 2)
    after = world.json_patch("c", ("test", f"{GROUP}/1/groupName", "b"), ("replace", f"{GROUP}/1/maxReplicas", 7))
    assert [one["replicas"] for one in after["spec"]["workerGroupSpecs"]] == [2, 0]
    with pytest.raises(RefusedError) as refused:
        world.json_patch("c", ("test", f"{GROUP}/0/groupName", "b"), ("replace", f"{GROUP}/0/maxReplicas", 7))
    assert refused.value.code == 422


# -- changed templates


def test_a_changed_template_does_not_roll_pods(world: World) -> None:
    world.given(raycluster("c", group("g", 1), group("other", 0)))
    before = world.uids("c")
    world.json_patch("c", with_image(0, "new"), ("replace", f"{GROUP}/1/replicas", 1))
    world.wait_pods("c", 1, "other")
    assert before <= world.uids("c")
    assert images(world.pods("c", "g")) == {"rayproject/ray:2.60.0"}


def test_deleted_pods_come_back_from_the_new_template_and_others_stay(world: World) -> None:
    world.given(raycluster("c", group("g", 2), group("other", 1)))
    stay = world.uids("c", "headgroup") | world.uids("c", "other")
    world.json_patch("c", with_image(0, "new"))
    world.passes()
    first, second = world.pods("c", "g")
    world.delete_pod(first)
    world.wait("one new pod", lambda: images(world.pods("c", "g")) == {"new", "rayproject/ray:2.60.0"})
    world.delete_pod(second)
    world.wait("two new pods", lambda: [*map(image_of, world.pods("c", "g"))] == ["new", "new"])
    assert stay == world.uids("c", "headgroup") | world.uids("c", "other")


def test_recreate_deletes_every_pod_also_the_head(world: World) -> None:
    world.given(raycluster("c", group("g", 1), group("other", 1), upgradeStrategy={"type": "Recreate"}))
    before = world.uids("c")
    world.json_patch("c", with_image(0, "new"))
    world.wait("all pods to be new", lambda: len(found := world.uids("c")) == 3 and not before & found)
    assert images(world.pods("c", "g")) == {"new"}
    assert "spec change" in world.wait("an Event", lambda: world.events("c", "DeletedPod"))[0]["note"]


def test_recreate_leaves_pods_alone_when_only_numbers_change(world: World) -> None:
    world.given(raycluster("c", group("g", 1), upgradeStrategy={"type": "Recreate"}))
    before = world.uids("c")
    world.json_patch("c", ("replace", f"{GROUP}/0/replicas", 2), ("replace", f"{GROUP}/0/maxReplicas", 20))
    world.wait_pods("c", 2, "g")
    world.passes()
    assert before <= world.uids("c")


# -- groups


def test_removing_a_group_orphans_its_pods(world: World) -> None:
    world.given(raycluster("c", group("a", 1), group("b", 1)))
    world.json_patch("c", ("remove", f"{GROUP}/1"), ("replace", f"{GROUP}/0/replicas", 2))
    world.wait_pods("c", 2, "a")
    world.passes()
    assert len(world.pods("c", "b")) == 1
    assert world.status("c")["desiredWorkerReplicas"] == 2


def test_a_group_that_is_scaled_to_0_keeps_its_place_and_loses_its_pods(world: World) -> None:
    world.given(raycluster("c", group("a", 1), group("b", 1)))
    world.scale("c", 0, 0)
    world.wait_pods("c", 0, "a")
    assert len(world.pods("c", "b")) == 1


def test_a_group_that_is_appended_gets_its_pods(world: World) -> None:
    world.given(raycluster("c", group("a", 1)))
    before = world.uids("c")
    world.json_patch("c", ("add", f"{GROUP}/-", group("b", 2)))
    world.wait_pods("c", 2, "b")
    assert before <= world.uids("c")


def test_a_group_that_is_suspended_loses_its_pods(world: World) -> None:
    world.given(raycluster("c", group("a", 1), group("b", 1)))
    world.json_patch("c", ("add", f"{GROUP}/0/suspend", True))
    world.wait_pods("c", 0, "a")
    assert len(world.pods("c", "b")) == 1


# -- numbers


@pytest.mark.parametrize(("replicas", "pods"), [(0, 1), (2, 2), (9, 3)])
def test_the_bounds_of_a_group_limit_its_pods(world: World, replicas: int, pods: int) -> None:
    world.given(raycluster("c", group("g", replicas, minReplicas=1, maxReplicas=3)), made=1 + pods)
    world.passes()
    assert len(world.pods("c", "g")) == pods


def test_without_the_autoscaler_surplus_pods_are_deleted(world: World) -> None:
    world.given(raycluster("c", group("g", 3)))
    world.scale("c", 0, 1)
    world.wait_pods("c", 1, "g")


def test_with_the_autoscaler_surplus_pods_stay(world: World) -> None:
    world.given(autoscaled("c", group("g", 3)))
    world.scale("c", 0, 1)
    world.passes()
    assert len(world.pods("c", "g")) == 3


def test_the_named_workers_are_deleted_and_no_others(world: World) -> None:
    world.given(autoscaled("c", group("g", 3)))
    first, *others = world.pods("c", "g")
    world.json_patch(
        "c",
        ("replace", f"{GROUP}/0/replicas", 2),
        ("add", f"{GROUP}/0/scaleStrategy", {"workersToDelete": [first["metadata"]["name"]]}),
    )
    world.wait_pods("c", 2, "g")
    assert world.uids("c", "g") == {pod["metadata"]["uid"] for pod in others}
    # The list is the autoscaler's to clear.
    (found,) = world.cluster("c")["spec"]["workerGroupSpecs"]
    assert found["scaleStrategy"]["workersToDelete"] == [first["metadata"]["name"]]


def test_a_named_worker_without_fewer_replicas_is_replaced(world: World) -> None:
    world.given(autoscaled("c", group("g", 1)))
    (before,) = world.pods("c", "g")
    world.json_patch("c", ("add", f"{GROUP}/0/scaleStrategy", {"workersToDelete": [before["metadata"]["name"]]}))
    world.wait(
        "another pod", lambda: len(found := world.uids("c", "g")) == 1 and before["metadata"]["uid"] not in found
    )


# -- pods that end


def test_a_head_that_is_deleted_comes_back_and_the_workers_stay(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    workers, before = world.uids("c", "g"), world.head("c")
    world.passes()
    world.delete_pod(before)
    world.wait("another head", lambda: before["metadata"]["uid"] not in world.uids("c", "headgroup") != set())
    assert world.uids("c", "g") == workers


@pytest.mark.parametrize("which", ["headgroup", "g"])
def test_a_failed_pod_is_replaced(world: World, which: str) -> None:
    world.given(raycluster("c", group("g", 1)))
    (before,) = world.pods("c", which)
    world.fails(before)
    world.wait(
        "another pod", lambda: len(found := world.uids("c", which)) == 1 and before["metadata"]["uid"] not in found
    )
    reason = "DeletedHeadPod" if which == "headgroup" else "DeletedWorkerPod"
    assert "Failed" in world.wait("an Event", lambda: world.events("c", reason))[0]["note"]


@pytest.mark.parametrize(("policy", "replaced"), [("Never", True), ("Always", False)])
def test_a_pod_whose_ray_has_ended_is_replaced_unless_it_restarts(world: World, policy: str, replaced: bool) -> None:
    pod = template()
    pod["spec"]["restartPolicy"] = policy
    world.given(raycluster("c", group("g", 1, template=pod)))
    (before,) = world.pods("c", "g")
    world.runs(before, ended=True)
    if replaced:
        world.wait("another pod", lambda: before["metadata"]["uid"] not in world.uids("c", "g") != set())
    else:
        world.passes()
        assert before["metadata"]["uid"] in world.uids("c", "g")


def test_a_service_or_token_that_is_deleted_comes_back(world: World) -> None:
    world.given(raycluster("c", authOptions={"mode": "token"}))
    for path in (world.path("services", "c-head-svc"), world.path("secrets", "c")):
        before = world.wait(path, lambda path=path: world.find(path))
        world.api.delete(path)
        world.wait(
            f"another {path}",
            lambda path=path, before=before: (
                (now := world.find(path)) and now["metadata"]["uid"] != before["metadata"]["uid"]
            ),
        )


def test_a_head_service_is_not_updated(world: World) -> None:
    world.given(raycluster("c"))
    before = world.service("c-head-svc")
    port = {"name": "dashboard", "containerPort": 9000}
    world.json_patch("c", ("add", "/spec/headGroupSpec/template/spec/containers/0/ports", [port]))
    world.passes()
    assert world.service("c-head-svc")["spec"]["ports"] == before["spec"]["ports"]
