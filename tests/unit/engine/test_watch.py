"""Deadlines count the time in which the engine watched, over restarts, gaps and lost status."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_world import World, node, resource

from servepipe.api.v1alpha1 import Status
from servepipe_operator.engine.state import Json
from servepipe_operator.engine.watch import Watch

HOURS = 5 * 3600.0


@pytest.fixture
def world() -> World:
    world = World()
    world.settle(resource({"m1": node("good"), "m2": node("good")}))
    return world


def hanging(**fields: object):
    return resource({"m1": node("hangs", **fields), "m2": node("good")})


# --- The count itself -------------------------------------------------------------------------------------------------


def look(status: Json, now: float, attempt: int = 0, deadline_s: int = 600) -> tuple[int, Json]:
    watch = Watch.of(status, now)
    return watch.seconds("m1--a", attempt, deadline_s), {
        "deadlines": {"m1--a": watch.entry("m1--a", attempt, deadline_s)}
    }


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(1.0, 5.0), st.integers(1, 40)), min_size=1, max_size=8),
    st.lists(st.floats(0.0, 1e6), min_size=8, max_size=8),
    st.integers(60, 3000),
)
def test_what_counts_is_what_was_watched_and_little_of_each_gap(
    lives: list[tuple[float, int]], gaps: list[float], deadline_s: int
) -> None:
    status: Json = {}
    now, watched, counted = 1_700_000_000.7, 0.0, 0
    for (interval, looks), gap in zip(lives, gaps, strict=False):
        for number in range(looks):
            counted, status = look(status, now, deadline_s=deadline_s)
            now += interval
            watched += interval if number < looks - 1 else 0.0
        now += gap
    period = min(max(deadline_s // 10, 10), deadline_s)

    assert counted <= watched + (len(lives) - 1) * 1.5 * period + 1
    assert counted >= min(watched, deadline_s) - 1


def test_status_is_written_once_per_tenth_of_the_deadline_and_not_after_it() -> None:
    status: Json = {}
    written: list[Json] = []
    for second in range(0, 3000, 2):
        _, status = look(status, 1e9 + second)
        if not written or status != written[-1]:
            written.append(status)

    assert len(written) == 11
    assert written[-1]["deadlines"]["m1--a"]["watchedSeconds"] == 600


def test_another_attempt_starts_again() -> None:
    _, status = look({}, 1e9)
    _, status = look(status, 1e9 + 70)
    assert look(status, 1e9 + 71)[0] == 71

    assert look(status, 1e9 + 71, attempt=1)[0] == 0


def test_a_clock_that_is_set_back_counts_nothing_and_goes_on_from_there() -> None:
    _, status = look({}, 1e9)
    _, status = look(status, 1e9 + 60)

    counted, status = look(status, 1e9 - HOURS)
    assert counted == 60
    assert look(status, 1e9 - HOURS + 5)[0] == 65


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "x",
        {},
        {"attempt": 0, "watchedSeconds": 5},
        {"attempt": 0, "watchedSeconds": -5, "at": "2026-01-01T00:00:00Z"},
        {"attempt": "0", "watchedSeconds": 5, "at": "2026-01-01T00:00:00Z"},
        {"attempt": 0, "watchedSeconds": 5.5, "at": "2026-01-01T00:00:00Z"},
        {"attempt": 0, "watchedSeconds": 5, "at": "yesterday"},
    ],
)
def test_what_is_no_count_is_as_if_it_were_not_there(entry: object) -> None:
    assert look({"deadlines": {"m1--a": entry}}, 2e9)[0] == 0
    assert look({"deadlines": entry}, 2e9)[0] == 0


# --- Candidates -------------------------------------------------------------------------------------------------------


def test_hours_in_which_nobody_watched_do_not_count(world: World) -> None:
    pipeline = hanging()
    world.run(pipeline, 60)
    world.wait(HOURS)

    world.run(pipeline, 400)
    assert "failedRevision" not in world.status["nodes"]["m1"]
    Status.model_validate(world.status)

    world.run(pipeline, 200)
    assert world.reason("Stalled") == "ProgressDeadlineExceeded"
    assert "deadlines" not in world.status or "m1--" not in str(world.status["deadlines"])


def test_without_anything_to_wait_for_there_is_no_deadline(world: World) -> None:
    assert "deadlines" not in world.status


def test_a_candidate_that_came_up_meanwhile_is_taken(world: World) -> None:
    pipeline = resource({"m1": node("good", "new"), "m2": node("good")})
    world.look(pipeline)
    world.wait(HOURS)

    world.settle(pipeline, 60)

    assert "Promoted" in [event.reason for event in world.events]


@pytest.mark.parametrize("life_s", [8, 30, 100])
def test_an_engine_that_restarts_often_still_gives_up(world: World, life_s: int) -> None:
    pipeline = hanging()
    watched = 0

    while "failedRevision" not in world.status["nodes"]["m1"]:
        assert watched <= 700, world.status
        world.run(pipeline, life_s)
        watched += life_s
        world.wait(40)

    assert world.status["nodes"]["m1"]["failedRevision"]["reason"] == "ProgressDeadlineExceeded"


def test_time_without_an_answer_from_serve_does_not_count(world: World) -> None:
    pipeline = hanging()
    world.run(pipeline, 60)
    world.fault = lambda call: "unreachable" if call == "applications" else ""
    world.run(pipeline, 2000)
    world.fault = lambda call: ""

    world.run(pipeline, 300)
    assert "failedRevision" not in world.status["nodes"]["m1"]


def test_a_lost_status_costs_the_time_that_it_knew_of_and_nothing_else(world: World) -> None:
    pipeline = hanging()
    world.run(pipeline, 500)
    world.status = {}

    world.run(pipeline, 500)
    assert "failedRevision" not in world.status["nodes"]["m1"]

    world.run(pipeline, 150)
    assert world.reason("Stalled") == "ProgressDeadlineExceeded"


def test_a_suspended_upgrade_has_its_whole_time_when_it_goes_on(world: World) -> None:
    world.run(hanging(), 400)
    suspended = resource({"m1": node("hangs"), "m2": node("good")}, suspend=True)
    world.run(suspended, 1000)
    assert world.serve.observe() == {}

    world.run(hanging(), 500)
    assert "failedRevision" not in world.status["nodes"]["m1"]

    world.run(hanging(), 200)
    assert world.reason("Stalled") == "ProgressDeadlineExceeded"


def test_a_lost_head_gives_a_candidate_its_whole_time(world: World) -> None:
    world.run(hanging(), 500)
    world.serve.lose_state()

    world.run(hanging(), 500, requests=False)
    assert "failedRevision" not in world.status["nodes"]["m1"]


# --- The ingress, and nodes as a whole --------------------------------------------------------------------------------


def test_an_ingress_that_was_replaced_while_nobody_watched_is_not_given_up_for_one_lost_answer(world: World) -> None:
    pipeline = resource({"m1": node("good"), "m2": node("good")}, preprocessor="hooks:one")
    world.look(pipeline)
    world.wait(HOURS)
    world.fault = lambda call: "unreachable" if call == "acks" else ""
    world.look(pipeline)
    assert world.condition("Stalled") == ""

    world.fault = lambda call: ""
    world.settle(pipeline, 60)

    assert world.serve.applications["ingress"].config["args"]["preprocessor"] == "hooks:one"
    assert not [event for event in world.events if event.type == "Warning"]


def test_an_ingress_that_never_acknowledges_is_given_up_after_its_deadline(world: World) -> None:
    pipeline = resource({"m1": node("good"), "m2": node("good")}, preprocessor="hooks:one")
    world.fault = lambda call: "unreachable" if call == "acks" else ""

    world.run(pipeline, 550)
    assert world.serve.applications["ingress"].config["args"]["preprocessor"] == "hooks:one"

    world.run(pipeline, 100)
    assert world.serve.applications["ingress"].config["args"]["preprocessor"] is None
    assert "not healthy after 600 s" in world.message("Stalled")


def test_a_start_after_a_long_time_is_not_stalled_at_once(world: World) -> None:
    """What a machine that was switched off in the middle of an upgrade finds: its status, and nothing in Serve."""
    world.run(hanging(), 500)
    world.wait(HOURS)
    world.serve.lose_state()

    world.run(hanging(), 120, requests=False)

    assert world.condition("Stalled") == ""
    assert world.condition("Available") == "True"
