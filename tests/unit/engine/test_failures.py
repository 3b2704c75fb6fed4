"""What cannot be started is given up, said, remembered and tried again; what serves goes on serving."""

from __future__ import annotations

import itertools

import pytest
from simulated_serve import RAISES
from simulated_world import World, node, resource

from servepipe_operator.view import status_lines


@pytest.fixture
def world() -> World:
    world = World()
    world.settle(resource({"m1": node("good"), "m2": node("good")}))
    return world


def broken(how: str, **fields: object):
    return resource({"m1": node(how, **fields), "m2": node("good")})


@pytest.mark.parametrize(
    ("how", "reason", "message"),
    [
        ("build-fails", "BuildFailed", "ModuleNotFoundError: No module named 'model'"),
        ("crashes", "ReplicaFailed", "ValueError: weights are missing"),
        ("mismatches", "RuntimeMismatch", RAISES["mismatches"]),
    ],
)
def test_a_broken_model_is_taken_out_and_said(world: World, how: str, reason: str, message: str) -> None:
    stable = world.node_applications("m1")

    world.run(broken(how), 60)

    assert world.node_applications("m1") == stable
    assert (world.condition("Stalled"), world.reason("Stalled")) == ("True", reason)
    assert message in world.message("Stalled")
    failed = world.status["nodes"]["m1"]["failedRevision"]
    assert (failed["reason"], failed["message"], failed["attempts"]) == (reason, message, 1)
    assert failed["retryAt"] > failed["at"]
    assert world.condition("Available") == "True"
    assert world.condition("Ready") == "False"
    assert [(e.type, e.reason, e.node) for e in world.events if e.type == "Warning"] == [("Warning", reason, "m1")]
    assert world.serve.problems == []


@pytest.mark.parametrize("how", ["hangs", "build-hangs"])
def test_no_progress_is_a_failure_after_the_deadline(world: World, how: str) -> None:
    pipeline = broken(how, progressDeadlineSeconds=100)

    world.run(pipeline, 90)
    assert len(world.node_applications("m1")) == 2
    assert world.condition("Stalled") == ""

    world.run(pipeline, 30)
    assert len(world.node_applications("m1")) == 1
    assert world.reason("Stalled") == "ProgressDeadlineExceeded"
    assert "not healthy after 100 s" in world.message("Stalled")


def test_it_is_tried_again_after_5_10_20_to_60_minutes(world: World) -> None:
    start = world.clock.now

    world.run(broken("crashes"), 4 * 3600, requests=False)

    begun = [
        round((at - start) / 60)
        for at, config in world.serve.puts
        if at >= start and sum(a["name"].startswith("m1--") for a in config["applications"]) == 2
    ]
    pauses = [later - earlier for earlier, later in itertools.pairwise(begun)]
    assert pauses == pytest.approx([5, 10, 20, 40, 60, 60], abs=1)
    attempts = {
        a["args"]["attempt"]
        for _, config in world.serve.puts
        for a in config["applications"]
        if a["name"].startswith("m1--") and a["args"]["args"] == ["crashes"]
    }
    assert attempts >= {0, 1, 2, 3, 4, 5}


def test_a_changed_retry_token_tries_it_again_at_once(world: World) -> None:
    world.run(broken("crashes"), 60)
    assert len(world.node_applications("m1")) == 1

    world.look(broken("crashes", upgrade={"retryToken": "again"}))

    assert len(world.node_applications("m1")) == 2


def test_a_changed_model_is_tried_at_once_and_the_failure_forgotten(world: World) -> None:
    world.run(broken("crashes"), 60)

    world.settle(resource({"m1": node("good", "fixed"), "m2": node("good")}))

    assert "failedRevision" not in world.status["nodes"]["m1"]
    assert world.condition("Stalled") == ""


def test_a_failure_is_remembered_when_status_is_wiped(world: World) -> None:
    world.run(broken("crashes"), 60)
    puts = len(world.serve.puts)
    world.status = {}

    world.run(broken("crashes"), 60)

    assert len(world.serve.puts) == puts
    assert world.status["nodes"]["m1"]["failedRevision"]["attempts"] == 1


def test_going_back_needs_no_retry(world: World) -> None:
    good = resource({"m1": node("good"), "m2": node("good")})
    world.run(broken("crashes"), 60)
    puts = len(world.serve.puts)

    world.look(good)
    world.look(good)

    assert len(world.serve.puts) == puts
    assert world.condition("Ready") == "True"
    assert "retryAt" not in world.status["nodes"]["m1"]["failedRevision"]
    assert "failed" not in status_lines(world.status)[1]


def test_a_failure_of_before_is_not_said_to_be_retried_while_another_revision_starts(world: World) -> None:
    world.run(broken("crashes"), 60)
    assert " failed: ReplicaFailed" in status_lines(world.status)[1]

    world.run(resource({"m1": node("hangs"), "m2": node("good")}), 10)

    m1 = world.status["nodes"]["m1"]
    assert m1["candidate"]["revision"] != m1["failedRevision"]["revision"]
    assert "retryAt" not in m1["failedRevision"]
    assert "failed" not in status_lines(world.status)[1]


def test_a_failed_node_does_not_hold_up_the_others(world: World) -> None:
    pipeline = resource({"m1": node("crashes"), "m2": node("good", "new")})

    world.run(pipeline, 120)

    assert world.status["nodesReady"] == "1/2"
    assert "candidate" not in world.status["nodes"]["m2"]


def test_a_new_graph_waits_for_its_broken_node_and_the_old_one_serves(world: World) -> None:
    graph = world.table()["graph"]

    world.run(resource({"m1": node("good"), "m3": node("crashes")}), 120)

    assert world.table()["graph"] == graph
    assert world.condition("Available") == "True"
    assert "ValueError: weights are missing" in world.message("Stalled")


def test_a_first_deployment_with_a_broken_node_says_so_and_serves_the_rest() -> None:
    world = World()

    world.run(resource({"m1": node("crashes"), "m2": node("good")}), 120)

    assert world.reason("Stalled") == "ReplicaFailed"
    assert world.condition("Available") == "False"
    assert world.status["nodes"]["m2"]["readyReplicas"] == 1
    assert world.table()["nodes"]["m1"]["routes"] == []
    world.settle(resource({"m1": node("good"), "m2": node("good")}))


def test_a_preprocessor_that_cannot_be_loaded_leaves_the_old_ingress(world: World) -> None:
    replicas = [replica.id for replica in world.serve.applications["ingress"].replicas]

    world.run(resource({"m1": node("good"), "m2": node("good")}, preprocessor="broken:hook"), 120)

    assert world.reason("Stalled") == "ReplicaFailed"
    assert world.message("Stalled").startswith("ingress: ")
    assert [replica.id for replica in world.serve.applications["ingress"].alive()] == replicas
    assert world.serve.applications["ingress"].config["args"]["preprocessor"] is None
    assert world.condition("Available") == "True"
    world.settle(resource({"m1": node("good"), "m2": node("good")}, preprocessor="hooks:one"))


def test_a_first_ingress_that_fails_is_tried_again_with_another_attempt() -> None:
    world = World()
    pipeline = resource({"m1": node("good")}, preprocessor="broken:hook")

    world.run(pipeline, 30)
    assert world.serve.applications["ingress"].config["args"]["attempt"] == 0
    assert world.reason("Stalled") == "ReplicaFailed"

    world.run(pipeline, 400)
    assert world.serve.applications["ingress"].config["args"]["attempt"] == 1
    world.settle(resource({"m1": node("good")}))


def test_a_stable_revision_that_serve_gave_up_is_started_again(world: World) -> None:
    (name,) = world.node_applications("m1")
    application = world.serve.applications[name]
    application.replicas.clear()
    application.failed, application.message = "start", "OSError: disk"
    good = resource({"m1": node("good"), "m2": node("good")})

    world.run(good, 60, requests=False)
    assert world.node_applications("m1") == [name]
    assert world.condition("Available") == "False"
    assert "OSError: disk" in world.message("Stalled")

    world.run(good, 400, requests=False)
    assert world.condition("Ready") == "True"
    assert world.serve.applications[name].config["args"]["attempt"] == 1
    assert world.condition("Stalled") == ""
    puts = len(world.serve.puts)
    world.run(good, 60)
    assert len(world.serve.puts) == puts


# --- No room ----------------------------------------------------------------------------------------------------------


def test_without_room_the_candidate_waits_and_status_names_what_is_missing() -> None:
    world = World(cpus=5)
    world.settle(resource({"m1": node("good", "a", resources={"cpu": "3"})}))
    pipeline = resource({"m1": node("good", "b", resources={"cpu": "3"})})

    world.run(pipeline, 900)

    assert world.reason("Reconciling") == "InsufficientCapacity"
    assert "m1: CPU: 3 needed, 1 free of 5" in world.message("Reconciling")
    assert world.status["nodes"]["m1"]["candidate"]["reason"] == "InsufficientCapacity"
    assert "failedRevision" not in world.status["nodes"]["m1"]
    assert world.condition("Available") == "True"

    world.serve.cpus = 10
    world.settle(pipeline)


def test_time_without_room_does_not_count_towards_the_deadline() -> None:
    world = World(cpus=5)
    world.settle(resource({"m1": node("good", resources={"cpu": "3"})}))
    pipeline = resource({"m1": node("hangs", resources={"cpu": "3"}, progressDeadlineSeconds=60)})
    world.run(pipeline, 600)
    world.serve.cpus = 10

    world.run(pipeline, 40)
    assert "failedRevision" not in world.status["nodes"]["m1"]

    world.run(pipeline, 40)
    assert world.reason("Stalled") == "ProgressDeadlineExceeded"


# --- The ingress ------------------------------------------------------------------------------------------------------


def with_ingress(**fields: object):
    return resource({"m1": node("good"), "m2": node("good")}, ingress=fields)


def test_an_ingress_that_does_not_start_is_taken_back_though_the_graph_is_the_same(world: World) -> None:
    world.serve.stuck.add("ingress")
    larger = with_ingress(resources={"cpu": "2"})

    world.run(larger, 300)
    assert world.serve.applications["ingress"].deployment["ray_actor_options"]["num_cpus"] == 2

    world.run(larger, 400)
    assert world.serve.applications["ingress"].deployment["ray_actor_options"]["num_cpus"] == 1
    assert "not healthy after 600 s" in world.message("Stalled")
    assert world.condition("Available") == "True"


def test_another_ingress_is_given_up_after_one_that_failed(world: World) -> None:
    world.run(resource({"m1": node("good"), "m2": node("good")}, preprocessor="broken:hook"), 60)
    world.serve.stuck.add("ingress")

    world.run(with_ingress(resources={"cpu": "2"}), 700)

    assert "not healthy after 600 s" in world.message("Stalled")


def test_a_stable_ingress_that_serve_gave_up_is_started_again_at_growing_intervals(world: World) -> None:
    good = resource({"m1": node("good"), "m2": node("good")})
    for attempt, interval_s in enumerate((300, 600), start=1):
        ingress = world.serve.applications["ingress"]
        ingress.replicas.clear()
        ingress.failed, ingress.message = "start", "OSError: disk"
        world.serve.stuck.add("ingress")

        world.run(good, interval_s - 20, requests=False)
        assert world.serve.applications["ingress"].config["args"]["attempt"] == attempt - 1
        assert "OSError: disk" in world.message("Stalled")

        world.run(good, 40, requests=False)
        assert world.serve.applications["ingress"].config["args"]["attempt"] == attempt

    world.serve.stuck.clear()
    world.settle(good)


def test_what_serve_says_about_a_late_candidate_is_in_the_message(world: World) -> None:
    pipeline = broken("build-hangs", progressDeadlineSeconds=100)
    world.run(pipeline, 50)
    (new,) = [name for name in world.node_applications("m1") if world.serve.applications[name].built_at is not None]
    world.serve.applications[new].message = "Installing packages"

    world.run(pipeline, 80)

    assert "not healthy after 100 s: Installing packages" in world.message("Stalled")
