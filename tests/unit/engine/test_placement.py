"""Worker groups: who runs where, who waits, and what needs another RayCluster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from simulated_cluster import ClusterWorld
from simulated_world import World, node, resource

from servepipe.api.problem import Problem
from servepipe_operator.engine.placement import Tenant, place
from servepipe_operator.engine.plan import plan
from servepipe_operator.engine.pools import Slot
from servepipe_operator.engine.reasons import Reason
from servepipe_operator.engine.state import ClusterDefaults, ClusterProblem, Json, Observed
from servepipe_operator.ports import ClusterState, TokenRefusedError


@pytest.fixture
def world() -> ClusterWorld:
    return ClusterWorld()


def groups(world: ClusterWorld) -> list[str]:
    return [slot.name for slot in world.cluster.groups]


def test_every_actor_is_pinned_to_a_group_that_is_there_before_the_put(world: ClusterWorld) -> None:
    world.settle(resource({"m1": node("good"), "m2": node("good", image="own:1")}, image="all:1"))

    (m1,), (m2,) = world.node_applications("m1"), world.node_applications("m2")
    assert (world.slot(m1), world.slot(m2), world.slot("ingress")) == ("default-a", "m2-a", "ingress-a")
    assert world.cluster.wishes["m2-a"].content["image"] == "own:1"
    assert world.cluster.wishes["ingress-a"].content["image"] == "all:1"
    assert world.cluster.problems == []
    assert world.status["clusters"] == [{"name": world.cluster.name, "role": "Active"}]


def test_a_new_image_goes_to_other_groups_node_after_node(world: ClusterWorld) -> None:
    nodes = {"m1": node("good"), "m2": node("good")}
    world.settle(resource(nodes, image="all:1"))

    world.settle(resource(nodes, image="all:2"))

    assert groups(world) == ["ingress-a", "default-a", "default-b", "ingress-b"]
    assert world.slot(world.node_applications("m1")[0]) == "default-b"
    assert world.slot("ingress") == "ingress-b"
    assert world.cluster.wishes["default-b"].content["image"] == "all:2"
    assert world.serve.problems == world.cluster.problems == []

    world.run(resource(nodes, image="all:2"), 60)
    world.settle(resource(nodes, image="all:3"))

    # The first groups are empty by then and get the new contents.
    assert len(groups(world)) == 4
    assert world.cluster.wishes[world.slot("ingress")].content["image"] == "all:3"
    assert world.serve.problems == world.cluster.problems == []


def test_the_old_images_pods_stay_shared_while_a_new_one_comes(world: ClusterWorld) -> None:
    nodes = {"m1": node("good", replicas=40), "m2": node("good")}
    workers = {"workers": {"minReplicas": 1, "maxReplicas": 5}}
    world.settle(resource(nodes, image="all:1", cluster=workers))

    for _ in range(60):
        world.look(resource(nodes, image="all:2", cluster=workers))
        for slot in world.cluster.groups:
            if slot.pool == "default":
                assert slot.low <= 1, slot
        world.wait(1)


def test_what_ran_with_the_old_image_comes_back_to_shared_pods(world: ClusterWorld) -> None:
    nodes = {"m1": node("good"), "m2": node("good")}
    world.settle(resource(nodes, image="all:1"))
    broken = resource({**nodes, "m1": node("hangs")}, image="all:2")
    world.run(broken, 20)
    world.serve.lose_state()
    world.run(broken, 60)

    assert {slot.pool for slot in world.cluster.groups} == {"default", "ingress"}
    stable = f"m1--{world.status['nodes']['m1']['revision']}"
    assert world.cluster.wishes[world.slot(stable)].content["image"] == "all:1"
    assert world.cluster.problems == []


@pytest.mark.parametrize(
    "change",
    [
        {"serviceAccountName": "other"},
        {"imagePullSecrets": [{"name": "s"}]},
        {"cluster": {"workers": {"resources": {"cpu": "8"}}}},
        {"cluster": {"workers": {"template": {"metadata": {"labels": {"a": "b"}}}}}},
    ],
)
def test_what_changes_about_all_pods_waits_for_new_pods_and_status_says_so(
    world: ClusterWorld, change: dict[str, Any]
) -> None:
    nodes = {"m1": node("good")}
    world.settle(resource(nodes))
    puts, before = len(world.serve.puts), groups(world)
    assert world.message("Accepted") == "the spec is valid"

    world.settle(resource(nodes, **change))

    assert (len(world.serve.puts), groups(world)) == (puts, before)
    assert "m1: the pods are from before a change of" in world.message("Accepted").replace("ingress, ", "")
    world.run(resource(nodes, **change, suspend=True), 120, requests=False)
    world.settle(resource(nodes, **change))
    assert world.message("Accepted") == "the spec is valid"
    assert groups(world) == before
    assert world.cluster.problems == []


def test_going_back_takes_the_group_that_still_has_the_old_image(world: ClusterWorld) -> None:
    nodes = {"m1": node("good")}
    world.settle(resource(nodes, image="all:1"))
    world.settle(resource(nodes, image="all:2"))

    world.settle(resource(nodes, image="all:1"))

    assert world.slot(world.node_applications("m1")[0]) == "default-a"
    assert world.slot("ingress") == "ingress-a"
    assert world.serve.problems == world.cluster.problems == []


def test_a_candidate_waits_for_a_group_and_says_so(world: ClusterWorld) -> None:
    world.settle(resource({"m1": node("good", image="a:1")}))
    for image in ("a:2", "a:3"):
        world.run(resource({"m1": node("good", image=image)}), 60)
    assert [name for name in groups(world) if name.startswith("m1")] == ["m1-a", "m1-b"]
    world.cluster.stuck_pods = {"m1-b": 1}
    world.settle(resource({"m1": node("good", image="a:4")}))
    world.cluster.stuck_pods = {"m1-a": 1, "m1-b": 1, "m1-c": 1}
    (stable,), puts = world.node_applications("m1"), len(world.serve.puts)

    world.run(resource({"m1": node("good", image="a:5")}), 60)

    assert len(world.serve.puts) == puts
    assert world.node_applications("m1") == [stable]
    candidate = world.status["nodes"]["m1"]["candidate"]
    assert candidate["reason"] == "WaitingForWorkers"
    assert candidate["message"] == "waits until one of the worker groups m1-a, m1-b, m1-c is empty"
    assert world.condition("Available") == "True"
    assert "Stalled" not in [one["type"] for one in world.status["conditions"]]

    world.cluster.stuck_pods = {}
    world.settle(resource({"m1": node("good", image="a:5")}))
    assert world.serve.problems == world.cluster.problems == []


def test_the_ingress_waits_with_the_graph_that_needs_it(world: ClusterWorld) -> None:
    world.settle(resource({"m1": node("good")}, image="a:1"))
    world.settle(resource({"m1": node("good")}, image="a:2"))
    world.settle(resource({"m1": node("good")}, image="a:3"))
    world.cluster.stuck_pods = {name: 1 for name in groups(world) if name.startswith("ingress")}
    world.settle(resource({"m1": node("good")}, image="a:4"))
    world.cluster.stuck_pods = {name: 1 for name in groups(world) if name.startswith("ingress")}
    before = world.slot("ingress")

    world.run(resource({"m1": node("good"), "m2": node("good")}, image="a:5"), 120)

    assert world.slot("ingress") == before
    assert world.reason("Ready") in ("ChangingGraph", "IngressWaits", "Starting", "Upgrading", "NodesNotReady")
    assert "waits until one of the worker groups ingress-a, ingress-b, ingress-c" in world.message("Reconciling")
    assert world.condition("Available") == "True"

    world.cluster.stuck_pods = {}
    world.settle(resource({"m1": node("good"), "m2": node("good")}, image="a:5"))
    assert world.serve.problems == world.cluster.problems == []


def test_stable_revisions_choose_first_after_a_lost_head(world: ClusterWorld) -> None:
    world.settle(resource({"m1": node("good", image="a:1")}))
    slot = world.slot(world.node_applications("m1")[0])
    world.look(resource({"m1": node("hangs", image="a:2")}))
    world.serve.lose_state()

    world.run(resource({"m1": node("hangs", image="a:2")}), 60)

    stable = f"m1--{world.status['nodes']['m1']['revision']}"
    assert world.slot(stable) == slot
    assert world.condition("Available") == "True"
    assert world.cluster.problems == []


def test_suspend_lets_the_pods_go_after_the_last_request_and_resume_brings_all_back(world: ClusterWorld) -> None:
    nodes = {"m1": node("good")}
    world.settle(resource(nodes))
    (m1,) = world.node_applications("m1")

    world.run(resource(nodes, suspend=True), 120, requests=False)

    assert world.cluster.plan is not None
    assert world.cluster.plan.suspend
    assert world.reason("ClusterReady") == "Suspended"
    assert world.condition("Stalled") == ""
    world.settle(resource(nodes))
    assert world.node_applications("m1") == [m1]
    assert not world.cluster.plan.suspend
    assert world.cluster.problems == []


@pytest.mark.parametrize("reason", ["Suspended", "FailedDeleteAllPods"])
def test_a_suspension_that_began_is_not_taken_back_while_pods_still_answer(world: ClusterWorld, reason: Reason) -> None:
    pipeline = resource({"m1": node("good")}, suspend=True)
    world.settle(resource({"m1": node("good")}))
    world.run(pipeline, 120, requests=False)
    half_gone = Observed(
        "Unreachable",
        ready=True,
        records=tuple(world.records.values()),
        slots=tuple(world.cluster.groups),
        cluster=ClusterProblem(reason, "is suspended", suspending=True),
    )

    decided = plan(pipeline, half_gone, world.environment, world.clock.now).cluster

    assert decided is not None
    assert decided.suspend


def test_what_needs_another_cluster_is_refused_and_the_old_definition_serves(world: ClusterWorld) -> None:
    world.settle(resource({"m1": node("good")}))
    name, puts = world.cluster.name, len(world.serve.puts)
    changed = resource({"m1": node("good", "new")}, rayVersion="2.61.0", cluster={"head": {"resources": {"cpu": "4"}}})

    world.run(changed, 120)

    assert len(world.serve.puts) == puts
    assert world.cluster.name == name
    assert world.reason("Accepted") == world.reason("Stalled") == "ClusterReplacementRequired"
    assert "spec.cluster.head, spec.rayVersion: this needs a second RayCluster" in world.message("Stalled")
    assert world.condition("Ready") == "False"
    assert world.condition("Available") == "True"

    world.settle(resource({"m1": node("good")}))
    assert world.condition("Stalled") == ""


def test_a_cluster_in_which_nothing_ever_served_is_replaced(world: ClusterWorld) -> None:
    world.run(resource({"m1": node("hangs")}, cluster={"head": {"image": "wrong"}}), 60)
    first = world.cluster.name

    world.settle(resource({"m1": node("good")}, cluster={"head": {"image": "right"}}))

    assert world.cluster.name != first
    assert world.cluster.problems == []


def test_new_defaults_of_the_operator_change_no_cluster_that_lives(world: ClusterWorld) -> None:
    world.settle(resource({"m1": node("good")}))
    name, puts = world.cluster.name, len(world.serve.puts)
    world.environment = replace(world.environment, cluster=ClusterDefaults("2.61.0", "newer:{ray_version}"))

    world.run(resource({"m1": node("good")}), 120)

    assert (world.cluster.name, len(world.serve.puts)) == (name, puts)
    assert world.cluster.plan is not None
    assert (world.cluster.plan.ray_version, world.cluster.plan.image) == ("2.60.0", "runtime:ray2.60.0")
    assert world.condition("Ready") == "True"


def test_an_old_ray_is_refused(world: ClusterWorld) -> None:
    world.run(resource({"m1": node("good")}, rayVersion="2.51.0"), 10)

    assert world.reason("Accepted") == "InvalidSpec"
    assert world.message("Accepted").startswith("spec.rayVersion: Ray 2.51.0 cannot protect its dashboard")
    assert world.cluster.name == ""


def test_what_the_shell_found_wrong_is_not_accepted(world: ClusterWorld) -> None:
    world.settle(resource({"m1": node("good")}))
    world.cluster.refused = (Problem("spec.nodes.m1", "serviceaccount nobody not found"),)

    world.run(resource({"m1": node("good", "new")}), 30)

    assert world.message("Accepted").startswith("spec.nodes.m1: serviceaccount nobody not found; the last accepted")
    assert world.condition("Available") == "True"
    world.cluster.refused = ()
    world.settle(resource({"m1": node("good", "new")}))


def test_a_cluster_that_takes_nothing_gets_no_put(world: ClusterWorld) -> None:
    world.cluster.problem = ClusterProblem("RayVersionMismatch", "the head runs another Ray", stalled=True)
    pipeline = resource({"m1": node("good")})
    world.run(pipeline, 60)

    assert world.serve.puts == []
    assert world.reason("ClusterReady") == world.reason("Stalled") == "RayVersionMismatch"
    assert [event.reason for event in world.events].count("RayVersionMismatch") >= 1

    world.cluster.problem = ClusterProblem("FailedCreateWorkerPod", "quota", stalled=True, blocking=False)
    world.run(pipeline, 60)
    assert world.serve.puts
    assert world.reason("Stalled") == "FailedCreateWorkerPod"
    world.cluster.problem = None
    world.settle(pipeline)


def test_children_that_cannot_be_had_are_told(world: ClusterWorld) -> None:
    world.cluster.troubles = (ClusterProblem("NameTaken", "Service diamond belongs to others", True, blocking=False),)
    pipeline = resource({"m1": node("good")})
    world.run(pipeline, 120)

    assert world.serve.puts
    assert world.condition("Ready") == "False"
    assert world.reason("Stalled") == world.reason("Ready") == "NameTaken"
    world.cluster.troubles = ()
    world.settle(pipeline)


def test_of_each_reason_there_is_one_event_that_stays_the_same(world: ClusterWorld) -> None:
    world.cluster.troubles = tuple(
        ClusterProblem("NameTaken", f"{kind} belongs to others", True, blocking=False)
        for kind in ("Service", "NetworkPolicy", "Service")
    )
    world.run(resource({"m1": node("good")}), 60)

    told = {event.message for event in world.events if event.reason == "NameTaken"}
    assert told == {"Service belongs to others; NetworkPolicy belongs to others"}


def test_a_token_that_ray_does_not_take_needs_somebody(world: ClusterWorld) -> None:
    class OtherToken:
        async def applications(self) -> None:
            raise TokenRefusedError("delete the RayCluster")

    pipeline = resource({"m1": node("good")})
    world.settle(pipeline)
    world.ports = replace(world.ports, serve=OtherToken())  # type: ignore[arg-type]
    world.look(pipeline)

    assert world.reason("ClusterReady") == world.reason("Stalled") == "TokenRefused"
    assert world.message("Stalled") == "delete the RayCluster"
    assert world.condition("Ready") == "Unknown"
    assert world.condition("Available") == "True"


def test_a_token_that_is_refused_does_not_take_a_suspension_back(world: ClusterWorld) -> None:
    class OtherToken:
        async def applications(self) -> None:
            raise TokenRefusedError("delete the RayCluster")

    class StillAnswering:
        async def ready(self) -> tuple[bool, tuple[str, ...]]:
            return True, ()

    async def begun(kept: Json | None) -> ClusterState:
        slots = tuple(world.cluster.groups)
        return ClusterState(ClusterProblem("Suspended", "is suspended", suspending=True), slots, False, False)

    pipeline = resource({"m1": node("good")}, suspend=True)
    world.settle(resource({"m1": node("good")}))
    world.run(pipeline, 120, requests=False)
    world.ports = replace(world.ports, serve=OtherToken(), routing=StillAnswering())  # type: ignore[arg-type]
    world.cluster.look = begun  # type: ignore[method-assign]
    world.look(pipeline)

    assert world.reason("Stalled") == "TokenRefused"
    assert world.cluster.plan is not None
    assert world.cluster.plan.suspend


def test_a_paused_pipeline_is_not_touched(world: ClusterWorld) -> None:
    world.run(resource({"m1": node("good")}, paused=True), 60)

    assert world.cluster.name == ""
    assert "cluster" not in world.writes


def test_the_ingress_is_asked_even_if_the_dashboard_does_not_answer() -> None:
    faults: set[str] = set()
    world = ClusterWorld(fault=lambda call: "unreachable" if call in faults else "")
    pipeline = resource({"m1": node("good")})
    world.settle(pipeline)
    faults.add("applications")

    world.run(pipeline, 30)

    assert world.condition("Available") == "True"
    assert world.condition("NodesReady") == world.condition("Ready") == "Unknown"
    faults.add("ready")
    world.run(pipeline, 30)
    assert world.condition("Available") == "Unknown"


def test_a_slot_whose_group_is_gone_is_left_for_another_and_kept_where_there_is_none() -> None:
    spec = resource({"m1": node("good")}).spec
    held = {"deployments": [{"ray_actor_options": {"resources": {"svp-default-z": 1}}}]}
    tenant = Tenant("m1--a", "m1", {"import": "m:M"}, held, 1, 1, first=True)

    assert place([tenant], spec, []).pinned == {"m1--a": {"svp-default-a": 1}}
    full = [Slot(f"default-{letter}", "default", "other", replicas=1, pods=1) for letter in "abc"]
    assert place([tenant], spec, full).pinned == {"m1--a": {"svp-default-z": 1}}
    waiting = place([replace(tenant, config=None)], spec, full)
    assert waiting.pinned == {}
    assert waiting.waiting == {"m1--a": "waits until one of the worker groups default-a, default-b, default-c is empty"}


def test_there_are_no_pools_on_one_machine() -> None:
    world = World()
    world.settle(resource({"m1": node("good")}))

    assert "resources" not in world.serve.applications["ingress"].deployment["ray_actor_options"]
    assert "clusters" not in world.status
