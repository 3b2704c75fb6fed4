"""What others did to Serve, or the head forgot, is put right; nothing is decided while nobody can see."""

from __future__ import annotations

import pytest
from simulated_world import World, node, resource

from servepipe.api.v1alpha1 import ServePipeline


@pytest.fixture
def pipeline() -> ServePipeline:
    return resource({"m1": node("good"), "m2": node("good", {"$node": "m1"})})


@pytest.fixture
def world(pipeline: ServePipeline) -> World:
    world = World()
    world.settle(pipeline)
    return world


def test_an_edited_application_gets_its_configuration_back(world: World, pipeline: ServePipeline) -> None:
    (name,) = world.node_applications("m1")
    config = world.serve.applications[name].config
    world.serve.edit_by_hand(name)
    assert world.serve.applications[name].config != config

    world.settle(pipeline)

    assert world.serve.applications[name].config == config


def test_a_deleted_application_comes_back(world: World, pipeline: ServePipeline) -> None:
    (name,) = world.node_applications("m1")
    world.serve.delete_by_hand(name)

    world.look(pipeline)
    assert world.condition("Available") == "False"
    assert "m1" in world.message("Available")

    world.settle(pipeline)
    assert world.node_applications("m1") == [name]


def test_a_foreign_application_is_removed(world: World, pipeline: ServePipeline) -> None:
    _, config = world.serve.puts[-1]
    foreign = {**config["applications"][-1], "name": "m1--00000000"}
    world.serve.put({**config, "applications": [*config["applications"], foreign]})

    world.run(pipeline, 120)

    assert len(world.node_applications("m1")) == 1


@pytest.mark.parametrize("wiped", [False, True])
def test_a_head_that_lost_its_state_gets_the_same_stable_revisions(
    world: World, pipeline: ServePipeline, wiped: bool
) -> None:
    before = {name: app.config for name, app in world.serve.applications.items()}
    world.run(resource({"m1": node("crashes"), "m2": node("good", {"$node": "m1"})}), 60)
    world.serve.lose_state()
    if wiped:
        world.status = {}

    world.run(resource({"m1": node("crashes"), "m2": node("good", {"$node": "m1"})}), 60, requests=False)

    assert {name: app.config for name, app in world.serve.applications.items()} == before
    assert world.condition("Available") == "True"
    assert world.status["nodes"]["m1"]["failedRevision"]["reason"] == "ReplicaFailed"


def test_nothing_is_sent_while_something_builds(world: World, pipeline: ServePipeline) -> None:
    changed = resource({"m1": node("good", "new"), "m2": node("good", {"$node": "m1"})})
    world.look(changed)
    puts = len(world.serve.puts)

    world.look(resource({"m1": node("good", "new"), "m2": node("good", {"$node": "m1"}, replicas=2)}))
    assert len(world.serve.puts) == puts
    assert world.reason("Reconciling") == "Upgrading"

    world.settle(resource({"m1": node("good", "new"), "m2": node("good", {"$node": "m1"}, replicas=2)}))
    assert world.serve.problems == []


def test_a_build_that_never_ends_holds_up_nobody_for_ever(world: World) -> None:
    stuck = resource({"m1": node("build-hangs"), "m2": node("good", {"$node": "m1"})}, progressDeadlineSeconds=60)

    world.run(stuck, 120)

    assert len(world.node_applications("m1")) == 1
    assert world.reason("Stalled") == "ProgressDeadlineExceeded"


def test_while_serve_does_not_answer_nothing_is_decided(world: World, pipeline: ServePipeline) -> None:
    world.fault = lambda call: "unreachable" if call == "applications" else ""
    nodes = world.status["nodes"]

    plan = world.look(resource({"m1": node("good", "new"), "m2": node("good", {"$node": "m1"})}))

    assert plan is not None
    assert world.writes == ["status"]
    assert {kind: world.condition(kind) for kind in ("ClusterReady", "NodesReady", "Available", "Ready")} == {
        "ClusterReady": "Unknown",
        "NodesReady": "Unknown",
        "Available": "Unknown",
        "Ready": "Unknown",
    }
    assert world.reason("Available") == "Unreachable"
    assert world.status["nodes"] == nodes

    world.fault = lambda call: ""
    world.settle(pipeline)


def test_without_answers_from_the_ingress_nothing_is_promoted_or_removed(world: World) -> None:
    changed = resource({"m1": node("good", "new"), "m2": node("good", {"$node": "m1"})})
    world.fault = lambda call: "unreachable" if call in ("acks", "ready") else ""

    world.run(changed, 300)

    assert len(world.node_applications("m1")) == 2
    assert world.table()["nodes"]["m1"]["routes"][0]["weight"] == 100
    world.fault = lambda call: ""
    world.settle(changed)


def test_routing_that_is_never_acknowledged_is_said(world: World) -> None:
    changed = resource({"m1": node("good", "new", progressDeadlineSeconds=60), "m2": node("good", {"$node": "m1"})})
    world.fault = lambda call: "unreachable" if call == "acks" else ""

    world.run(changed, 120)

    assert world.reason("Stalled") == "RoutingNotAcknowledged"


def test_a_lost_graph_record_is_no_dead_end(world: World) -> None:
    for key in [key for key in world.records if key[0] == "graph"]:
        del world.records[key]

    world.settle(resource({"m1": node("good"), "m3": node("good")}))


def test_a_lost_revision_record_starts_the_node_anew(world: World, pipeline: ServePipeline) -> None:
    for key in [key for key in world.records if key[0] in ("node", "spec")]:
        del world.records[key]

    world.settle(resource({"m1": node("good", "new"), "m2": node("good", {"$node": "m1"})}))


def test_a_node_whose_spec_record_is_lost_can_still_be_removed(world: World) -> None:
    for key in [key for key in world.records if key[0] == "spec"]:
        del world.records[key]

    world.settle(resource({"m1": node("good"), "m3": node("good")}))

    assert world.node_applications("m2") == []
