"""How many replicas run, also while a node is replaced, turned off or on."""

from __future__ import annotations

import pytest
from simulated_world import World, node, resource

from servepipe_operator.engine.state import Json


@pytest.fixture
def world() -> World:
    return World()


def bounds(world: World, name: str) -> Json:
    return world.serve.applications[name].deployment["autoscaling_config"]


def test_replicas_change_in_place_and_weights_do_not(world: World) -> None:
    world.settle(resource({"m1": node("good"), "m2": node("good")}))
    (name,), table = world.node_applications("m1"), world.table()
    first = world.serve.applications[name].replicas[0].id

    world.settle(resource({"m1": node("good", replicas=3), "m2": node("good")}))

    assert world.node_applications("m1") == [name]
    assert first in [replica.id for replica in world.serve.applications[name].alive()]
    assert len(world.serve.applications[name].alive()) == 3
    assert world.table() == table
    assert world.status["nodes"]["m1"]["readyReplicas"] == 3


def test_a_fixed_number_is_an_autoscaling_config_too(world: World) -> None:
    world.settle(resource({"m1": node("good", replicas=2)}))
    (name,) = world.node_applications("m1")
    fixed = bounds(world, name)

    world.settle(resource({"m1": node("good", autoscaling={"minReplicas": 2, "maxReplicas": 5})}))

    assert (fixed["min_replicas"], fixed["max_replicas"]) == (2, 2)
    assert world.node_applications("m1") == [name]
    assert (bounds(world, name)["min_replicas"], bounds(world, name)["max_replicas"]) == (2, 5)
    assert all(
        "num_replicas" not in deployment
        for _, config in world.serve.puts
        for application in config["applications"]
        for deployment in application["deployments"]
    )


def test_a_node_that_is_turned_off_first_disappears_from_the_table(world: World) -> None:
    world.settle(resource({"m1": node("good"), "m2": node("good")}))
    (name,) = world.node_applications("m1")
    off = resource({"m1": node("good", replicas=0), "m2": node("good")})

    world.look(off)
    assert world.table()["nodes"]["m1"]["off"] is True
    assert bounds(world, name)["min_replicas"] == 1

    world.settle(off)
    world.run(off, 30)
    assert (bounds(world, name)["min_replicas"], bounds(world, name)["max_replicas"]) == (0, 1)
    assert world.serve.applications[name].alive() == []
    assert world.status["nodesReady"] == "1/1"
    assert world.status["nodes"]["m1"]["state"] == "Off"
    assert world.condition("Ready") == "True"


def test_a_node_that_is_turned_on_is_called_when_it_runs(world: World) -> None:
    off, on = (resource({"m1": node("good", replicas=count), "m2": node("good")}) for count in (0, 2))
    world.settle(off)
    (name,) = world.node_applications("m1")
    world.run(off, 30)

    world.look(on)
    assert world.table()["nodes"]["m1"]["off"] is True

    world.settle(on)
    assert world.table()["nodes"]["m1"]["off"] is False
    assert len(world.serve.applications[name].alive()) == 2
    assert world.serve.problems == []


def test_a_node_that_is_off_is_upgraded_without_starting_it(world: World) -> None:
    world.settle(resource({"m1": node("good", "a", replicas=0), "m2": node("good")}))

    world.settle(resource({"m1": node("good", "b", replicas=0), "m2": node("good")}))

    (name,) = world.node_applications("m1")
    assert world.serve.applications[name].config["args"]["args"] == ["good", "b"]
    assert world.serve.applications[name].alive() == []


def test_a_candidate_has_as_many_replicas_as_answer_now(world: World) -> None:
    autoscaling = {"minReplicas": 1, "maxReplicas": 8}
    world.settle(resource({"m1": node("good", "a", autoscaling=autoscaling)}))
    (old,) = world.node_applications("m1")
    world.serve.applications[old].target = 5
    pipeline = resource({"m1": node("good", "b", autoscaling=autoscaling)})

    world.look(pipeline)
    (new,) = [name for name in world.node_applications("m1") if name != old]
    assert bounds(world, new)["min_replicas"] == 5
    world.serve.applications[old].target = 7
    world.look(pipeline)
    assert bounds(world, new)["min_replicas"] == 5

    world.settle(pipeline)
    assert bounds(world, new)["min_replicas"] == 1


def test_a_candidate_that_starts_on_demand_shows_first_that_it_starts(world: World) -> None:
    autoscaling = {"minReplicas": 0, "maxReplicas": 2}
    world.settle(resource({"m1": node("good", "a", autoscaling=autoscaling)}))

    world.run(resource({"m1": node("crashes", autoscaling=autoscaling)}), 60)

    assert world.reason("Stalled") == "ReplicaFailed"
    assert world.condition("Available") == "True"


def test_replicas_can_be_capped_by_the_machine(world: World) -> None:
    from dataclasses import replace

    world.environment = replace(world.environment, replicas_at_most=2)

    world.settle(resource({"m1": node("good", replicas=50)}))

    (name,) = world.node_applications("m1")
    assert len(world.serve.applications[name].alive()) == 2
