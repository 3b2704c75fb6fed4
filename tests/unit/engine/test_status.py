"""What status says, and that it never says more than is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulated_world import World, node, resource

from servepipe.api.v1alpha1 import ServePipeline, Status
from servepipe_operator.engine.conditions import Condition, merged
from servepipe_operator.engine.plan import plan
from servepipe_operator.engine.state import Environment, Json, Observed


def state_of(conditions: list[Json], kind: str) -> Json:
    return next((one for one in conditions if one["type"] == kind), {})


@pytest.fixture
def pipeline() -> ServePipeline:
    return resource({"m1": node("good"), "m2": node("good")}, generation=7)


@pytest.fixture
def world(pipeline: ServePipeline) -> World:
    world = World()
    world.settle(pipeline)
    return world


INVALID = resource({"m1": node("good")}, graph={"output": {"$step": "nobody"}}, generation=8)


def test_a_converged_pipeline_is_left_alone(world: World, pipeline: ServePipeline) -> None:
    plan = world.look(pipeline)

    assert plan is not None
    assert world.writes == []
    assert (plan.records, plan.serve_config, plan.events, plan.prune) == ((), None, (), ())
    assert plan.look_again_after_s == 10.0


def test_status_follows_the_schema_of_the_resource(world: World) -> None:
    Status.model_validate(world.status)
    world.run(resource({"m1": node("crashes"), "m2": node("good", "new")}), 7)
    Status.model_validate(world.status)
    world.run(resource({"m1": node("crashes"), "m2": node("good", "new")}), 60)
    Status.model_validate(world.status)


def test_conditions_are_always_there_and_bad_news_only_while_true(world: World) -> None:
    assert [one["type"] for one in world.status["conditions"]] == [
        "Accepted",
        "ClusterReady",
        "NodesReady",
        "Available",
        "Ready",
    ]
    assert {one["status"] for one in world.status["conditions"]} == {"True"}
    assert {one["observedGeneration"] for one in world.status["conditions"]} == {7}
    assert world.status["observedGeneration"] == 7


def test_a_transition_time_changes_with_the_status_only(world: World) -> None:
    before = {one["type"]: one["lastTransitionTime"] for one in world.status["conditions"]}
    world.wait(30)

    world.look(resource({"m1": node("good", "new"), "m2": node("good")}, generation=8))

    after = {one["type"]: one["lastTransitionTime"] for one in world.status["conditions"]}
    assert after["Available"] == before["Available"]
    assert after["Ready"] > before["Ready"]
    assert after["Reconciling"] == after["Ready"]


def test_available_says_what_callers_see_during_an_upgrade(world: World) -> None:
    changed = resource({"m1": node("good", "new"), "m2": node("good")})
    seen = set()
    for _ in range(12):
        world.look(changed)
        seen.add((world.condition("Available"), world.condition("Ready")))
        world.wait(1)

    assert ("True", "False") in seen
    assert not any(available != "True" for available, _ in seen)


def test_only_what_replaces_something_is_an_upgrade() -> None:
    world, seen = World(), set()
    for pipeline in (resource({"m1": node("good")}), resource({"m1": node("good"), "m2": node("good")})):
        for _ in range(20):
            world.look(pipeline)
            seen.add((world.reason("Reconciling"), world.status.get("upgrading")))
            world.wait(1)

    assert ("Starting", None) in seen
    assert {upgrading for _, upgrading in seen} == {None}


def test_a_dead_replica_of_the_only_one_is_said(world: World, pipeline: ServePipeline) -> None:
    world.serve.kill_replica(world.node_applications("m1")[0])

    world.look(pipeline)

    assert world.condition("Available") == "False"
    assert "m1" in world.message("Available")
    assert world.condition("NodesReady") == "False"


def test_an_ingress_without_replicas_answers_nobody(world: World, pipeline: ServePipeline) -> None:
    world.serve.kill_replica("ingress")

    world.look(pipeline)

    assert world.reason("Available") == "IngressNotReady"


def test_nodes_that_stay_unready_are_stalled_after_the_deadline(world: World) -> None:
    pipeline = resource({"m1": node("good"), "m2": node("good")}, progressDeadlineSeconds=60)
    world.settle(pipeline)
    (name,) = world.node_applications("m1")
    world.serve.stuck.add(name)
    world.serve.kill_replica(name)

    world.run(pipeline, 58, requests=False)
    assert world.condition("NodesReady") == "False"
    assert world.condition("Stalled") == ""

    world.run(pipeline, 6, requests=False)
    assert (world.reason("Stalled"), world.message("Stalled")) == (
        "ProgressDeadlineExceeded",
        "m1 has 0 of 1 replicas",
    )
    # A deadline that is used up is no reason to write status for ever.
    world.run(pipeline, 120, requests=False)
    assert world.writes == []


def test_ready_is_unknown_when_the_ingress_was_not_asked(world: World, pipeline: ServePipeline) -> None:
    world.fault = lambda call: "unreachable" if call == "ready" else ""

    world.look(pipeline)

    assert world.condition("Ready") in ("Unknown", "False")
    assert world.condition("Ready") != "True"


def test_what_the_ingress_says_counts_more_than_serves_report(world: World, pipeline: ServePipeline) -> None:
    world.serve.ready = lambda: (False, ("m2",))  # type: ignore[method-assign]

    world.look(pipeline)

    assert world.message("Available") == "no replica that answers: m2"
    assert world.condition("Ready") == "False"


# --- Specs ------------------------------------------------------------------------------------------------------------


def test_a_spec_that_is_not_valid_changes_nothing(world: World) -> None:
    world.look(INVALID)

    assert world.writes == ["status"]
    assert world.condition("Accepted") == "False"
    assert "spec.graph" in world.message("Accepted")
    assert "the last accepted spec goes on serving" in world.message("Accepted")
    assert world.condition("Available") == "True"
    assert world.condition("Ready") == "False"


def test_the_last_accepted_spec_is_kept_in_spite_of_everything(world: World) -> None:
    world.serve.lose_state()
    world.status = {}

    world.run(INVALID, 60, requests=False)

    assert world.condition("Available") == "True"
    assert len(world.node_applications("m2")) == 1


def test_a_first_spec_that_is_not_valid_starts_nothing() -> None:
    world = World()

    world.look(INVALID)

    assert world.writes == ["status"]
    assert (world.condition("Accepted"), world.condition("Available")) == ("False", "False")
    assert world.serve.puts == []


def test_a_paused_pipeline_is_reported_and_not_changed(world: World) -> None:
    world.run(resource({"m1": node("good", "new"), "m2": node("good")}, paused=True), 30)

    assert len(world.serve.puts) == 3
    assert "paused" in world.message("Accepted")
    assert world.condition("Available") == "True"
    assert world.condition("Ready") == "False"
    assert not any(record.kind == "spec" and record.data.get("paused") for record in world.records.values())


def test_what_is_paused_and_then_suspended_goes_on_serving_and_says_so(world: World) -> None:
    nodes = {"m1": node("good"), "m2": node("good")}
    world.run(resource(nodes, paused=True), 30)
    world.run(resource(nodes, paused=True, suspend=True), 30)
    assert world.serve.applications
    assert (world.condition("Available"), world.reason("Ready")) == ("True", "Suspended")
    world.run(resource(nodes, suspend=True), 60)
    world.run(resource(nodes, paused=True, suspend=True), 30)
    assert world.serve.applications == {}
    assert (world.condition("Available"), world.reason("Available")) == ("False", "Suspended")


def test_a_suspended_pipeline_frees_everything_and_comes_back(world: World, pipeline: ServePipeline) -> None:
    revision = world.status["nodes"]["m1"]["revision"]
    suspended = resource({"m1": node("good"), "m2": node("good")}, suspend=True)
    world.serve.request(seconds=5)

    world.run(suspended, 60)
    assert world.serve.applications == {}
    assert world.reason("Available") == world.reason("Ready") == "Suspended"
    world.look(suspended)
    assert world.writes == []
    assert world.serve.problems == []

    world.settle(pipeline)
    assert world.status["nodes"]["m1"]["revision"] == revision


def test_a_suspended_pipeline_does_not_start_serve() -> None:
    world = World()

    world.run(resource({"m1": node("good")}, suspend=True), 10)

    assert world.serve.puts == []
    assert world.reason("ClusterReady") == "NotStarted"


def test_canary_is_said_to_run_as_blue_green(world: World) -> None:
    upgrade = {"strategy": "Canary", "steps": [{"weight": 10}]}

    world.settle(resource({"m1": node("good", "new", upgrade=upgrade), "m2": node("good")}))

    assert "strategy Canary is not there yet and runs as BlueGreen: m1" in world.message("Accepted")
    assert [event.message for event in world.events if event.reason == "Notice"] == [world.message("Accepted")]


def test_surge_in_place_is_said_to_run_as_full(world: World) -> None:
    world.settle(resource({"m1": node("good", "new", upgrade={"surge": "InPlace"}), "m2": node("good")}))

    assert world.message("Accepted") == "surge InPlace is not there yet and runs as Full: m1"


def test_fields_without_meaning_here_are_named_and_restart_nothing() -> None:
    world = World()
    world.environment = replace(world.environment, ignored_fields={"image": "", "cluster": "but for flags"})
    world.settle(resource({"m1": node("good", image="acme/m1:1")}, image="acme/all:1", cluster={}))
    puts = len(world.serve.puts)

    world.settle(resource({"m1": node("good", image="acme/m1:2")}, image="acme/all:2", cluster={}))

    assert len(world.serve.puts) == puts
    assert world.message("Accepted") == "without meaning here: cluster (but for flags), image"


def test_a_new_default_image_is_a_new_revision_of_all_that_inherit_it() -> None:
    world = World()
    world.settle(resource({"m1": node("good"), "m2": node("good", image="acme/m2:1")}, image="acme/all:1"))
    m1, m2 = world.node_applications("m1"), world.node_applications("m2")

    world.settle(resource({"m1": node("good"), "m2": node("good", image="acme/m2:1")}, image="acme/all:2"))

    assert world.node_applications("m1") != m1
    assert world.node_applications("m2") == m2


# --- Robustness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status",
    [
        {"conditions": "none"},
        {"conditions": [{"type": "Ready"}, 7], "nodes": []},
        {"nodes": {"m1": None, "m2": {"candidate": "x"}}},
        {"nodes": {"m1": {"candidate": {"revision": 3, "since": "yesterday"}}}},
    ],
)
def test_a_status_edited_by_hand_does_no_harm(world: World, pipeline: ServePipeline, status: dict) -> None:
    world.status = status

    world.settle(pipeline)


def test_merged_keeps_times_of_what_stays() -> None:
    first = merged([Condition("Ready", "False", "Starting")], None, 0.0, None)

    second = merged([Condition("Ready", "False", "Draining"), Condition("Stalled", "True", "X")], first, 60.0, 2)

    assert [one["lastTransitionTime"] for one in second] == ["1970-01-01T00:00:00Z", "1970-01-01T00:01:00Z"]
    assert "observedGeneration" not in first[0]
    assert state_of(second, "Stalled")["reason"] == "X"
    assert state_of(second, "Available") == {}


def test_the_clock_and_the_environment_decide_when_to_look_again(pipeline: ServePipeline) -> None:
    environment = Environment(changing_s=1.0, steady_s=10.0)

    found = plan(pipeline, Observed("NotStarted"), environment, 0.0)

    assert found.look_again_after_s == 1.0
    assert plan(pipeline, Observed("NotStarted"), environment, 0.0) == found


def test_a_user_config_that_replicas_refuse_is_said_and_the_old_one_serves(world: World) -> None:
    refused = resource({"m1": {**node("good"), "userConfig": {"refused": True}}, "m2": node("good")}, generation=8)

    world.run(refused, 60)

    m1 = world.status["nodes"]["m1"]
    assert (m1["state"], m1["message"]) == ("ConfigurationRefused", "userConfig: ValueError: not this")
    assert (world.condition("Available"), world.condition("Ready")) == ("True", "False")
    stalled = state_of(world.status["conditions"], "Stalled")
    assert (stalled["reason"], stalled["message"]) == (
        "ConfigurationRefused",
        "m1: userConfig: ValueError: not this",
    )
    Status.model_validate(world.status)

    world.settle(resource({"m1": {**node("good"), "userConfig": {"fine": True}}, "m2": node("good")}, generation=9))

    assert world.status["nodes"]["m1"]["state"] == "Running"
    assert world.condition("Ready") == "True"
