"""The order in which a plan is carried out, and what is left when a part of it fails."""

from __future__ import annotations

import pytest
from simulated_world import World, node, resource

from servepipe.api.v1alpha1 import ServePipeline
from servepipe_operator.ports import ServeRejectedError


@pytest.fixture
def pipeline() -> ServePipeline:
    return resource({"m1": node("good")})


def test_records_come_before_what_they_tell_of_and_status_after(pipeline: ServePipeline) -> None:
    world = World()

    world.look(pipeline)

    kinds = [write.split()[0] for write in world.writes]
    assert kinds == ["record"] * 5 + ["put", "status"] + ["event"] * 2
    assert world.writes[4] == "record checkpoint"


@pytest.mark.parametrize("call", ["list", "read-status", "write", "write-status"])
def test_without_history_or_status_nothing_more_is_done(pipeline: ServePipeline, call: str) -> None:
    world = World()
    world.fault = lambda name: "unreachable" if name == call else ""

    assert world.look(pipeline) is None
    assert (world.serve.puts == []) is (call != "write-status")
    world.fault = lambda name: ""
    world.settle(pipeline)


def test_a_put_that_nobody_answers_leaves_an_honest_status(pipeline: ServePipeline) -> None:
    world = World()
    world.fault = lambda name: "unreachable-after" if name == "put" else ""

    plan = world.look(pipeline)

    assert plan is not None
    assert world.condition("ClusterReady") == "Unknown"
    assert len(world.serve.puts) == 1
    world.fault = lambda name: ""
    world.settle(pipeline)


def test_a_refused_configuration_is_said_once(pipeline: ServePipeline) -> None:
    world = World()

    def refuse(config: object) -> None:
        raise ServeRejectedError("1 validation error for ServeDeploySchema")

    put, world.serve.put = world.serve.put, refuse  # type: ignore[method-assign]
    plan = world.look(pipeline)
    assert plan is not None
    assert (world.condition("Stalled"), world.reason("Stalled")) == ("True", "ServeRejected")
    assert "1 validation error" in world.message("Stalled")
    assert plan.look_again_after_s == 10.0

    world.look(pipeline)
    assert world.writes == ["put"]

    world.serve.put = put  # type: ignore[method-assign]
    world.settle(pipeline)
    assert world.condition("Stalled") == ""


def test_unknown_capacity_is_no_trouble(pipeline: ServePipeline) -> None:
    world = World()
    world.fault = lambda name: "unreachable" if name == "capacity" else ""

    world.settle(pipeline)


@pytest.mark.parametrize("seconds", [0, 3, 6, 9])
def test_a_write_of_history_that_fails_is_repeated(pipeline: ServePipeline, seconds: int) -> None:
    world = World()
    world.run(pipeline, seconds)

    def fail(name: str) -> str:
        return "unreachable" if name == "write" else ""

    world.fault = fail
    world.run(pipeline, 10)
    world.fault = lambda name: ""
    world.settle(pipeline)


def test_history_that_was_read_late_sends_nothing(pipeline: ServePipeline) -> None:
    world = World()
    world.settle(pipeline)
    world.stale_records = dict(world.records)
    b, c = resource({"m1": node("good", "b")}), resource({"m1": node("good", "c")})
    world.look(b)
    puts = len(world.serve.puts)

    assert world.look(c) is None
    assert len(world.serve.puts) == puts

    world.stale_records = None
    world.settle(c)
    assert world.serve.problems == []


def test_what_was_decided_is_told_although_serve_refuses_the_rest(pipeline: ServePipeline) -> None:
    world = World()
    world.settle(pipeline)
    world.events.clear()

    def refuse(config: object) -> None:
        raise ServeRejectedError("no")

    put, world.serve.put = world.serve.put, refuse  # type: ignore[method-assign]
    changed = resource({"m1": node("good", "new")})
    world.run(changed, 60)
    assert [event.reason for event in world.events] == ["Accepted"]

    world.serve.put = put  # type: ignore[method-assign]
    world.settle(changed)
    assert [event.reason for event in world.events][:3] == ["Accepted", "Starting", "Promoted"]
