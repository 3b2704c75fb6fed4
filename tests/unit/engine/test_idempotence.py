"""Who is told that a node must not see a call twice."""

from __future__ import annotations

from typing import Any

import pytest
from simulated_world import World, node, resource

from servepipe_operator.engine.state import Json


@pytest.fixture
def world() -> World:
    return World()


def pipeline(*, version: str = "1", **settings: Any):
    nodes = {
        "held": node("good", version, **settings),
        "holder": node("good", {"$node": "held"}),
        "other": node("good"),
    }
    return resource(nodes, steps=["holder", "other"])


def holder_config(world: World) -> Json:
    (name,) = world.node_applications("holder")
    config: Json = world.serve.applications[name].deployment["user_config"]
    return config


def test_the_ingress_and_holders_learn_which_nodes_are_not_idempotent_in_place(world: World) -> None:
    world.settle(pipeline())
    applications, before = sorted(world.serve.applications), holder_config(world)
    assert not any("idempotent" in entry for entry in world.table()["nodes"].values())
    assert "notIdempotent" not in before

    world.settle(pipeline(idempotent=False))

    assert sorted(world.serve.applications) == applications
    assert {name: entry.get("idempotent") for name, entry in world.table()["nodes"].items()} == {
        "held": False,
        "holder": None,
        "other": None,
    }
    after = holder_config(world)
    assert after["notIdempotent"] == ["held"]
    assert after["table"] != before["table"]

    world.settle(pipeline())
    assert holder_config(world) == before


@pytest.mark.parametrize(("old", "new"), [(False, True), (True, False)])
def test_while_a_node_is_upgraded_neither_revision_sees_a_call_twice_where_one_must_not(
    world: World, old: bool, new: bool
) -> None:
    world.settle(pipeline(idempotent=old))
    before = len(world.serve.puts)

    world.settle(pipeline(version="2", idempotent=new))

    tables = [
        application["deployments"][0]["user_config"]["nodes"]["held"]
        for _, config in world.serve.puts[before:]
        for application in config["applications"]
        if application["name"] == "ingress"
    ]
    stable = tables[0]["routes"][0]["revision"]
    with_old = [table for table in tables if stable in [route["revision"] for route in table["routes"]]]
    assert any(len(table["routes"]) == 2 for table in with_old)
    assert all(table.get("idempotent") is False for table in with_old)
    assert (world.table()["nodes"]["held"].get("idempotent") is None) is new
