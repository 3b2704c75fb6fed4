"""Nodes in the ingress's process are upgraded alone too."""

from __future__ import annotations

from typing import Any

import pytest
from simulated_world import World, resource

from servepipe_operator.view import node_rows

CODE = {name: f"sha256:{digit * 64}" for name, digit in (("old", "1"), ("new", "2"), ("other", "3"))}


def function(code: str = "old", **fields: Any) -> dict[str, Any]:
    return {"import": "functions:f", "code": CODE[code], "placement": "Inline", **fields}


def model(**fields: Any) -> dict[str, Any]:
    return {"import": "models:Model", **fields}


@pytest.fixture
def world() -> World:
    world = World()
    world.settle(resource({"m1": model(), "f": function()}))
    return world


def ingress_replicas(world: World) -> list[str]:
    return [replica.id for replica in world.serve.applications["ingress"].alive()]


def test_an_inline_node_has_no_application(world: World) -> None:
    assert world.node_applications("f") == []
    (route,) = world.table()["nodes"]["f"]["routes"]
    assert route["inline"] == {
        "import": "functions:f",
        "args": [],
        "kwargs": {},
        "code": CODE["old"],
        "blocking": None,
        "userConfig": None,
        "maxOngoingRequests": 5,
    }
    assert world.serve.applications["ingress"].config["args"]["codes"] == [CODE["old"]]
    assert world.status["nodes"]["f"] == {"revision": route["revision"], "placement": "Inline", "state": "Running"}


def test_an_inline_node_of_a_suspended_pipeline_has_no_replicas_that_are_missing(world: World) -> None:
    revision = world.status["nodes"]["f"]["revision"]

    world.run(resource({"m1": model(), "f": function()}, suspend=True), 60)

    assert world.status["nodes"]["f"] == {"revision": revision, "placement": "Inline", "state": "Suspended"}
    assert world.status["nodes"]["m1"]["state"] == "Suspended"
    shown = {row[0]: row[2:] for row in node_rows(world.status)}
    assert shown == {"f": ("inline", "100%", "Suspended"), "m1": ("0/1", "100%", "Suspended")}


def test_new_arguments_change_the_table_only(world: World) -> None:
    replicas, puts = ingress_replicas(world), len(world.serve.puts)

    world.settle(resource({"m1": model(), "f": function(kwargs={"limit": 3})}))

    offered, switched = (config for _, config in world.serve.puts[puts:])
    routes = [
        application["deployments"][0]["user_config"]["nodes"]["f"]["routes"]
        for config in (offered, switched)
        for application in config["applications"]
        if application["name"] == "ingress"
    ]
    assert [[route["weight"] for route in one] for one in routes] == [[100, 0], [100]]
    assert [len(one) for one in routes] == [2, 1]
    assert ingress_replicas(world) == replicas


def test_a_new_user_config_is_applied_in_place(world: World) -> None:
    replicas, puts = ingress_replicas(world), len(world.serve.puts)

    world.settle(resource({"m1": model(), "f": function(userConfig={"limit": 3})}))

    assert len(world.serve.puts) == puts + 1
    assert world.table()["nodes"]["f"]["routes"][0]["inline"]["userConfig"] == {"limit": 3}
    assert ingress_replicas(world) == replicas


def test_new_code_runs_on_its_own_until_it_is_promoted(world: World) -> None:
    replicas, puts = ingress_replicas(world), len(world.serve.puts)

    world.settle(resource({"m1": model(), "f": function("new")}))

    dedicated = [
        any(a["name"].startswith("f--") for a in config["applications"]) for _, config in world.serve.puts[puts:]
    ]
    assert dedicated == [True, True, True, True, False]
    assert world.node_applications("f") == []
    assert world.table()["nodes"]["f"]["routes"][0]["inline"]["code"] == CODE["new"]
    assert set(ingress_replicas(world)).isdisjoint(replicas)
    assert world.serve.problems == []


def test_the_old_ingress_keeps_what_it_calls_until_the_new_one_has_found_room(world: World) -> None:
    """However long that takes: its table sends requests to the replicas of the promoted revision."""
    wanted = resource({"m1": model(), "f": function("new")})
    world.serve.cpus = 3.0  # m1, the ingress and f's candidate
    replicas = ingress_replicas(world)

    world.run(wanted, 300)

    assert ingress_replicas(world) == replicas
    assert len(world.node_applications("f")) == 1
    assert world.condition("Available") == "True"
    assert world.serve.problems == []

    world.serve.cpus = 4.0
    world.settle(wanted)

    assert world.node_applications("f") == []
    assert set(ingress_replicas(world)).isdisjoint(replicas)
    assert world.serve.problems == []


def test_broken_new_code_never_reaches_the_ingress(world: World) -> None:
    replicas = ingress_replicas(world)

    world.run(resource({"m1": model(), "f": function("new", args=["crashes"])}), 120)

    assert "ValueError: weights are missing" in world.message("Stalled")
    assert world.table()["nodes"]["f"]["routes"][0]["inline"]["code"] == CODE["old"]
    assert ingress_replicas(world) == replicas
    assert world.condition("Available") == "True"


def test_an_instance_that_cannot_be_built_is_taken_out_of_the_table(world: World) -> None:
    world.run(resource({"m1": model(), "f": function(args=["crashes"])}), 60)

    assert "ValueError: cannot be built" in world.message("Stalled")
    assert [route["weight"] for route in world.table()["nodes"]["f"]["routes"]] == [100]
    assert world.condition("Available") == "True"


def test_the_ingress_waits_until_all_its_nodes_agree_on_their_code(world: World) -> None:
    world.settle(resource({"f": function(), "g": function(), "m1": model()}))

    world.run(resource({"f": function("new"), "g": function("new", args=["crashes"]), "m1": model()}), 200)

    table = world.table()["nodes"]
    assert "inline" not in table["f"]["routes"][0]
    assert table["g"]["routes"][0]["inline"]["code"] == CODE["old"]
    assert world.serve.applications["ingress"].config["args"]["codes"] == [CODE["old"]]
    assert world.serve.problems == []

    world.settle(resource({"f": function("new"), "g": function("new"), "m1": model()}))
    assert world.serve.applications["ingress"].config["args"]["codes"] == [CODE["new"]]
    assert world.node_applications("f") == world.node_applications("g") == []


def test_what_a_dedicated_node_holds_has_replicas_of_its_own() -> None:
    world = World()

    world.settle(resource({"f": function(), "holder": model(args=["good", {"$node": "f"}])}))

    assert len(world.node_applications("f")) == 1
    assert "inline" not in world.table()["nodes"]["f"]["routes"][0]


@pytest.mark.parametrize("fields", [{}, {"code": CODE["other"]}])
def test_placement_can_change_both_ways(world: World, fields: dict[str, Any]) -> None:
    def placed(placement: str):
        return resource({"m1": model(), "f": function(), "n": model(placement=placement, **fields)})

    world.settle(placed("Dedicated"))
    assert len(world.node_applications("n")) == 1

    world.settle(placed("Inline"))
    assert world.node_applications("n") == []

    world.settle(placed("Dedicated"))
    assert len(world.node_applications("n")) == 1
    assert world.serve.problems == []


def test_code_that_is_not_needed_any_more_replaces_no_ingress(world: World) -> None:
    world.settle(resource({"m1": model(), "f": function(), "g": function("other")}))
    replicas = ingress_replicas(world)

    world.settle(resource({"m1": model(), "f": function()}))

    assert ingress_replicas(world) == replicas


def test_a_new_graph_and_a_new_preprocessor_bring_new_inline_code_at_once(world: World) -> None:
    world.settle(resource({"m1": model(), "f": function("new"), "m2": model()}, preprocessor="hooks:one"))

    args = world.serve.applications["ingress"].config["args"]
    assert (args["preprocessor"], args["codes"]) == ("hooks:one", [CODE["new"]])
    assert world.node_applications("f") == []
    assert world.serve.problems == []


def test_an_inline_node_runs_while_serve_builds_the_next_ingress(world: World) -> None:
    """Serve shows no replicas of the ingress meanwhile, and those that there are go on answering."""
    replicas = ingress_replicas(world)
    wanted = resource({"m1": model(), "f": function()}, preprocessor="hooks:one")
    looks_at_builds = 0
    while ingress_replicas(world) == replicas:
        world.look(wanted)
        looks_at_builds += world.serve.applications["ingress"].built_at is not None
        assert world.status["nodes"]["f"]["state"] == "Running"
        assert (world.condition("NodesReady"), world.condition("Available")) == ("True", "True")
        assert "0 of 1" not in world.message("Reconciling")
        world.wait(1.0)

    assert looks_at_builds > 1
    world.settle(wanted)
    assert set(ingress_replicas(world)).isdisjoint(replicas)


def test_an_inline_node_is_missing_while_serve_builds_the_first_ingress_again(world: World) -> None:
    """Then nobody answers."""
    wanted = resource({"m1": model(), "f": function()})
    world.serve.lose_state()
    states = set()
    while not (ingress := world.serve.applications.get("ingress")) or not ingress.alive():
        world.look(wanted)
        states.add(world.status["nodes"]["f"]["state"])
        world.wait(1.0, requests=False)

    assert states == {"Missing"}


def test_the_preprocessors_code_belongs_to_the_ingress() -> None:
    def pipeline(version: str):
        return resource({"m1": model()}, preprocessor="hooks:to_inputs", preprocessor_code=CODE[version])

    world = World()
    world.settle(pipeline("old"))
    replicas = ingress_replicas(world)
    assert world.serve.applications["ingress"].config["args"]["preprocessorCode"] == CODE["old"]

    world.settle(pipeline("new"))

    args = world.serve.applications["ingress"].config["args"]
    assert (args["preprocessorCode"], args["codes"]) == (CODE["new"], [CODE["new"]])
    assert set(ingress_replicas(world)).isdisjoint(replicas)
    assert world.serve.problems == []
