"""One model replaces another: what is sent to Serve, step by step, and what callers see meanwhile."""

from __future__ import annotations

from itertools import groupby

import pytest
from simulated_world import World, node, resource

from servepipe_operator.engine.state import Json


@pytest.fixture
def world() -> World:
    return World()


def weights(table: Json, name: str) -> list[int]:
    return [route["weight"] for route in table["nodes"][name]["routes"]]


def tables(world: World) -> list[Json]:
    """The ingress's table in each PUT so far."""
    return [
        application["deployments"][0]["user_config"]
        for _, config in world.serve.puts
        for application in config["applications"]
        if application["name"] == "ingress"
    ]


def names(world: World, put: int) -> set[str]:
    return {application["name"] for application in world.serve.puts[put][1]["applications"]}


def test_a_new_pipeline_starts_all_its_nodes_at_once(world: World) -> None:
    world.settle(resource({"m1": node("good"), "m2": node("good", 2)}))

    (m1,), (m2,) = world.node_applications("m1"), world.node_applications("m2")
    assert names(world, 0) == {m1, m2, "ingress"}
    # Nobody is sent to a node before it is there.
    assert [weights(table, "m1") for table in tables(world)] == [[], [0], [100]]
    assert world.status["nodesReady"] == "2/2"
    assert world.status["url"] == "http://127.0.0.1:8000/"
    assert world.condition("Available") == "True"


def test_an_upgrade_starts_beside_switches_at_once_and_removes_last(world: World) -> None:
    world.settle(resource({"m1": node("good"), "m2": node("good")}))
    (old,), before = world.node_applications("m1"), len(world.serve.puts)
    others = {r.id for r in world.serve.applications[world.node_applications("m2")[0]].replicas}

    world.settle(resource({"m1": node("good", "new"), "m2": node("good")}))

    (new,) = world.node_applications("m1")
    assert new != old
    assert [weights(table, "m1") for table in tables(world)[before:]] == [[100], [100, 0], [100], [100]]
    assert [{old, new} <= names(world, put) for put in range(before, before + 4)] == [True, True, True, False]
    assert {r.id for r in world.serve.applications[world.node_applications("m2")[0]].replicas} == others
    assert world.serve.problems == []


def test_it_is_promoted_only_when_every_replica_uses_the_table(world: World) -> None:
    pipeline = resource({"m1": node("good")}, ingress={"replicas": 2})
    world.settle(pipeline)
    first = world.status["nodes"]["m1"]["revision"]
    deaf = world.serve.applications["ingress"].replicas[0].id
    pipeline = resource({"m1": node("good", "new")}, ingress={"replicas": 2})
    for _ in range(60):
        world.look(pipeline)
        if weights(tables(world)[-1], "m1") == [100, 0]:
            break
        world.wait(1)
    world.wait(2)
    world.serve.deaf.add(deaf)

    world.run(pipeline, 30)

    assert world.status["nodes"]["m1"]["revision"] == first
    assert world.status["upgrading"] == "m1 100%"
    world.serve.deaf.clear()
    world.settle(pipeline)
    assert world.status["nodes"]["m1"]["revision"] != first


def test_a_holder_knows_the_candidate_before_the_ingress_sends_to_it(world: World) -> None:
    def pipeline(version: int):
        return resource({"held": node("good", version), "holder": node("good", {"$node": "held"})}, steps=["holder"])

    world.settle(pipeline(1))
    before = len(world.serve.puts)
    holder = world.node_applications("holder")
    replica = world.serve.applications[holder[0]].replicas[0].id

    world.settle(pipeline(2))

    for _, config in world.serve.puts[before:]:
        applications = {application["name"]: application for application in config["applications"]}
        routes = applications["ingress"]["deployments"][0]["user_config"]["nodes"]["held"]["routes"]
        known = applications[holder[0]]["deployments"][0]["user_config"]["routes"]["held"]
        assert {route["revision"] for route in routes} <= {route["revision"] for route in known}
    assert world.node_applications("holder") == holder
    assert world.serve.applications[holder[0]].replicas[0].id == replica
    assert world.serve.problems == []


def test_the_old_application_stays_while_a_request_is_in_it(world: World) -> None:
    world.settle(resource({"m1": node("good", drainSeconds=120)}))
    (old,) = world.node_applications("m1")
    pipeline = resource({"m1": node("good", "new", drainSeconds=120)})
    world.look(pipeline)
    world.serve.request(seconds=60)

    world.run(pipeline, 50)
    assert old in world.node_applications("m1")
    assert world.condition("Ready") == "True"
    assert world.reason("Reconciling") == "Draining"

    world.run(pipeline, 30)
    assert old not in world.node_applications("m1")
    assert world.serve.problems == []


def test_taking_an_old_application_out_leaves_the_pipeline_ready(world: World) -> None:
    """It changes nothing about what serves: no more than draining does."""
    world.settle(resource({"m1": node("good")}))
    (old,) = world.node_applications("m1")
    pipeline = resource({"m1": node("good", "new")})
    told = []
    while old in world.serve.applications:
        plan = world.look(pipeline)
        assert plan is not None
        told.append((world.condition("Ready"), world.reason("Reconciling")))
        assert len(told) < 100, told
        world.wait(plan.look_again_after_s)
    world.settle(pipeline)

    # At the end it is taken out of what is wanted, and Serve has not ended it yet.
    assert [state for state, _ in groupby(told)] == [("False", "Upgrading"), ("True", "Draining"), ("True", "")]


def test_draining_has_a_deadline(world: World) -> None:
    world.settle(resource({"m1": node("good", drainSeconds=20)}))
    (old,) = world.node_applications("m1")
    pipeline = resource({"m1": node("good", "new", drainSeconds=20)})
    world.look(pipeline)
    world.serve.request(seconds=10_000)

    world.run(pipeline, 60, requests=False)

    assert old not in world.node_applications("m1")


def test_nodes_are_upgraded_one_after_the_other(world: World) -> None:
    world.settle(resource({name: node("good") for name in ("m1", "m2", "m3")}))
    pipeline = resource({name: node("good", "new") for name in ("m1", "m2", "m3")})
    most = 0

    while world.condition("Ready") != "True" or world.status["observedGeneration"] != 1 or most == 0:
        world.look(pipeline)
        most = max(most, sum(len(world.node_applications(name)) - 1 for name in ("m1", "m2", "m3")))
        world.wait(1)

    assert most == 1
    waiting = [event.node for event in world.events if event.reason == "Promoted"][3:]
    assert waiting == ["m1", "m2", "m3"]


def test_several_at_once_when_the_spec_allows_it(world: World) -> None:
    world.settle(resource({name: node("good") for name in ("m1", "m2", "m3")}))

    world.look(resource({name: node("good", "new") for name in ("m1", "m2", "m3")}, maxConcurrentUpgrades=2))

    assert [len(world.node_applications(name)) for name in ("m1", "m2", "m3")] == [2, 2, 1]
    assert world.status["nodes"]["m3"]["candidate"]["reason"] == "Waiting"


@pytest.mark.parametrize("looks", range(2, 14, 2))
def test_back_to_a_in_the_middle_returns_at_once(world: World, looks: int) -> None:
    a, b = resource({"m1": node("good", "a")}), resource({"m1": node("good", "b")})
    world.settle(a)
    (stable,) = world.node_applications("m1")
    for _ in range(looks):
        world.look(b)
        world.wait(1)
    switched_back = world.status["nodes"]["m1"]["revision"] != stable.removeprefix("m1--")

    plan = world.look(a)

    if not switched_back:
        assert plan is not None
        assert world.table()["nodes"]["m1"]["routes"] == [{"revision": stable.removeprefix("m1--"), "weight": 100}]
    world.settle(a)
    assert world.node_applications("m1") == [stable]
    assert world.serve.problems == []


def test_a_second_change_in_the_middle_drops_the_first(world: World) -> None:
    world.settle(resource({"m1": node("good", "a")}))
    b, c = resource({"m1": node("good", "b")}), resource({"m1": node("good", "c")})
    world.look(b)
    (stable, dropped) = sorted(
        world.node_applications("m1"), key=lambda name: world.serve.applications[name].deployed_at
    )

    world.settle(c)

    (current,) = world.node_applications("m1")
    assert current not in (stable, dropped)
    assert "Promoted" in [event.reason for event in world.events]
    assert world.serve.problems == []


def test_a_new_graph_starts_everything_first_and_switches_once(world: World) -> None:
    world.settle(resource({"m1": node("good"), "gone": node("good")}))
    before, first = len(world.serve.puts), world.status["graph"]["revision"]
    old = world.table()["graph"]

    world.settle(resource({"m1": node("good", "new"), "m2": node("good"), "m3": node("good")}))

    graphs = [table["graph"] for table in tables(world)[before:]]
    switched = next(index for index, graph in enumerate(graphs) if graph != old)
    assert all(graph == old for graph in graphs[:switched])
    assert [weights(tables(world)[before + switched], name) for name in ("m1", "m2", "m3")] == [[100]] * 3
    assert all(weights(table, "m1")[0] == 100 for table in tables(world)[before:])
    assert world.status["graph"]["revision"] != first
    assert world.node_applications("gone") == []
    assert world.serve.problems == []


def test_a_removed_node_goes_in_a_later_put_than_its_last_request(world: World) -> None:
    world.settle(resource({"m1": node("good"), "gone": node("good")}))
    (gone,), before = world.node_applications("gone"), len(world.serve.puts)

    world.settle(resource({"m1": node("good")}))

    first, *later = range(before, len(world.serve.puts))
    assert gone in names(world, first)
    assert "gone" not in tables(world)[first]["nodes"]
    assert later
    assert gone not in names(world, later[-1])


def test_a_change_of_the_graph_alone_needs_one_put(world: World) -> None:
    world.settle(resource({"m1": node("good"), "m2": node("good")}))
    before = len(world.serve.puts)

    world.settle(
        resource({"m1": node("good"), "m2": node("good")}, graph={"output": [{"$step": "m2-out"}, {"$step": "m1-out"}]})
    )

    assert len(world.serve.puts) == before + 1


def test_user_config_changes_in_place(world: World) -> None:
    world.settle(resource({"m1": node("good", userConfig={"threshold": 1})}))
    (application,) = world.node_applications("m1")
    replica = world.serve.applications[application].replicas[0].id

    world.settle(resource({"m1": node("good", userConfig={"threshold": 2})}))

    assert world.node_applications("m1") == [application]
    (found,) = world.serve.applications[application].replicas
    assert found.id == replica
    assert found.user_config["userConfig"] == {"threshold": 2}


def test_a_user_config_meant_for_the_new_revision_never_reaches_the_old_one(world: World) -> None:
    world.settle(resource({"m1": node("good", "a", userConfig={"threshold": 1})}))
    (old,) = world.node_applications("m1")
    pipeline = resource({"m1": node("good", "b", userConfig={"limit": 2})})

    for _ in range(6):
        world.look(pipeline)
        if old in world.serve.applications:
            assert world.serve.applications[old].deployment["user_config"]["userConfig"] == {"threshold": 1}
        world.wait(1)

    world.settle(pipeline)
    (new,) = world.node_applications("m1")
    assert world.serve.applications[new].deployment["user_config"]["userConfig"] == {"limit": 2}


def test_a_new_preprocessor_replaces_the_ingress_with_the_new_graph(world: World) -> None:
    world.settle(resource({"m1": node("good")}))
    replica = world.serve.applications["ingress"].replicas[0].id

    world.settle(resource({"m1": node("good")}, preprocessor="hooks:one"))

    (found,) = world.serve.applications["ingress"].alive()
    assert found.id != replica
    assert world.serve.applications["ingress"].config["args"]["preprocessor"] == "hooks:one"
    assert world.serve.problems == []


def test_a_holder_that_has_not_taken_its_table_holds_up_the_switch(world: World) -> None:
    def pipeline(version: int):
        return resource({"held": node("good", version), "holder": node("good", {"$node": "held"})}, steps=["holder"])

    world.settle(pipeline(1))
    (holder,) = world.node_applications("holder")
    replica = world.serve.applications[holder].replicas[0].id
    world.serve.deaf.add(replica)

    world.run(pipeline(2), 60)
    assert weights(world.table(), "held") == [100, 0]
    assert world.condition("Available") == "True"

    world.serve.deaf.clear()
    world.settle(pipeline(2))
    assert world.serve.problems == []


def test_what_the_table_in_force_calls_is_not_removed_when_the_upgrade_is_taken_back(world: World) -> None:
    a, b = (resource({"m1": node("good", version, drainSeconds=0)}) for version in ("a", "b"))
    world.settle(a)
    (stable,) = world.node_applications("m1")
    for _ in range(60):
        world.look(b)
        if (
            weights(world.table(), "m1") == [100]
            and stable != f"m1--{world.table()['nodes']['m1']['routes'][0]['revision']}"
        ):
            break
        world.wait(1)
    switched_to = f"m1--{world.table()['nodes']['m1']['routes'][0]['revision']}"
    assert switched_to in names(world, -1)

    world.look(a)

    assert world.table()["nodes"]["m1"]["routes"] == [{"revision": stable.removeprefix("m1--"), "weight": 100}]
    assert {stable, switched_to} <= names(world, -1)
    world.settle(a)
    assert world.node_applications("m1") == [stable]
    assert world.serve.problems == []


def test_a_graph_is_not_promoted_before_the_ingress_uses_it(world: World) -> None:
    nodes = {"m1": node("good"), "m2": node("good")}
    world.settle(resource(nodes))
    first = world.status["graph"]["revision"]
    world.serve.deaf.add(world.serve.applications["ingress"].replicas[0].id)
    changed = resource(nodes, graph={"output": [{"$step": "m2-out"}, {"$step": "m1-out"}]})

    world.run(changed, 30)
    assert world.status["graph"]["revision"] == first

    world.serve.deaf.clear()
    world.settle(changed)
    assert world.status["graph"]["revision"] != first


def test_a_graph_that_never_answered_is_replaced_at_once(world: World) -> None:
    world.look(resource({"m1": node("hangs")}))
    first = world.status["graph"]["revision"]

    world.look(resource({"m2": node("good")}))

    assert world.status["graph"]["revision"] != first
