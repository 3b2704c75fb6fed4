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


# --- A lost head in the middle of an upgrade --------------------------------------------------------------------------


def sent(world: World) -> list[tuple[set[str], list[dict]]]:
    """Of each PUT: the applications, and the routes of m1."""
    found = []
    for _, config in world.serve.puts:
        by_name = {application["name"]: application for application in config["applications"]}
        table = by_name["ingress"]["deployments"][0]["user_config"] if "ingress" in by_name else {"nodes": {}}
        found.append((set(by_name), table["nodes"].get("m1", {"routes": []})["routes"]))
    return found


@pytest.mark.parametrize("seconds", [0, 2, 5, 8, 11])
@pytest.mark.parametrize("wiped", [False, True])
def test_a_head_lost_in_the_middle_of_an_upgrade_first_gets_what_is_stable(
    world: World, seconds: int, wiped: bool
) -> None:
    changed = resource({"m1": node("good", "new"), "m2": node("good", {"$node": "m1"})})
    world.look(changed)
    world.run(changed, seconds)
    checkpoint = max((r for r in world.records.values() if r.kind == "checkpoint"), key=lambda r: r.sequence)
    stable = {name: unit["stable"] for name, unit in checkpoint.data["nodes"].items()}
    world.serve.lose_state()
    if wiped:
        world.status = {}
    before = len(world.serve.puts)
    world.wait(3600, requests=False)

    world.settle(changed)

    names, routes = sent(world)[before]
    assert names == {"ingress", *(f"{name}--{revision}" for name, revision in stable.items())}
    assert [(route["revision"], route["weight"]) for route in routes] == [(stable["m1"], 100)]
    (new,) = world.node_applications("m1")
    assert world.serve.applications[new].config["args"]["args"] == ["good", "new"]


def test_what_was_stable_gets_the_room_after_the_head_was_lost() -> None:
    world = World(cpus=4)
    world.settle(resource({"m1": node("good", resources={"cpu": "2"}), "m2": node("good")}))
    changed = resource({"m1": node("good", "new", resources={"cpu": "2"}), "m2": node("good")})
    world.run(changed, 10)
    (old, _) = sorted(world.node_applications("m1"), key=lambda name: world.serve.applications[name].deployed_at)
    world.serve.lose_state()

    world.run(changed, 30, requests=False)

    assert world.condition("Available") == "True"
    assert len(world.serve.applications[old].alive()) == 1
    assert world.reason("Reconciling") == "InsufficientCapacity"


def test_a_resumed_pipeline_first_gets_what_is_stable(world: World) -> None:
    def changed(**more: object) -> ServePipeline:
        return resource({"m1": node("good", "new"), "m2": node("good", {"$node": "m1"})}, **more)

    world.run(changed(suspend=True), 100)
    assert world.serve.observe() == {}
    before = len(world.serve.puts)

    world.settle(changed())

    assert len(sent(world)[before][0]) == 3
    assert len(world.node_applications("m1")) == 1


def test_a_stable_revision_that_cannot_start_after_the_head_was_lost_does_not_hold_up_its_successor(
    world: World,
) -> None:
    (name,) = world.node_applications("m1")
    world.serve.stuck.add(name)
    world.serve.lose_state()

    world.settle(resource({"m1": node("good", "fixed"), "m2": node("good", {"$node": "m1"})}))
