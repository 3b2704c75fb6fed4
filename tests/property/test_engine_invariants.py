"""What holds at every single PUT and every deleted record, whatever is edited, lost, killed or slow.

`test_engine_converges` asks where everything ends; this asks about each step on the way. The invariants are checked on
what is sent to Serve, against the history that was written by then.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from simulated_world import World
from test_engine_converges import (
    Faults,
    Spec,
    built,
    edit_steps,
    fault_steps,
    repaired,
    sabotage,
    sabotage_steps,
    start,
    wait_steps,
)

from servepipe_operator.engine.state import Json

long_waits = st.tuples(st.just("away"), st.sampled_from([30, 700]), st.none())
silences = st.tuples(st.just("silence"), st.sampled_from([5, 60, 300]), st.none())
wipes = st.tuples(st.just("sabotage"), st.just("wipe-status"), st.just(0))
steps_of_a_life = st.lists(
    st.one_of(edit_steps, edit_steps, wait_steps, wait_steps, fault_steps, sabotage_steps, wipes, long_waits, silences),
    max_size=20,
)


class Watched(World):
    """A world that checks each PUT and each deletion as it happens."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(fault=faults)
        self.broken: list[str] = []
        self._put = self.serve.put
        self.serve.put = self._checked_put  # type: ignore[method-assign]

    def bear(self, seconds: float) -> None:
        """What was broken by hand stays so for as long as nobody can put it right."""
        if self.serve.sabotaged_until > self.clock.now:
            self.serve.sabotaged_until += seconds

    def checkpoint(self) -> Json:
        return max((r for r in self.records.values() if r.kind == "checkpoint"), key=lambda r: r.sequence).data

    def complain(self, text: str) -> None:
        self.broken.append(f"{self.clock.now - 1.7e9:.0f}: {text}")

    def _checked_put(self, config: Json) -> None:
        before = self._deployed()
        applications = {application["name"]: application for application in config["applications"]}
        self._keeps_what_is_called(before, applications)
        if "ingress" in applications:
            self._table_can_be_served(applications)
            self._stable_is_whole(applications)
        self._put(config)

    def _deployed(self) -> dict[str, Json]:
        found = self.serve.applications.items()
        return {name: application.config for name, application in found if not application.deleting}

    def _keeps_what_is_called(self, before: dict[str, Json], after: dict[str, Json]) -> None:
        """No application goes in the PUT that takes its weight away, while the table still gives it some."""
        if "ingress" not in before or "ingress" not in after:
            return
        for name in called(before["ingress"]):
            if name in before and name not in after:
                self.complain(f"{name} is removed while the table in force calls it")

    def _table_can_be_served(self, applications: dict[str, Json]) -> None:
        for name in called(applications["ingress"]):
            if name not in applications:
                self.complain(f"the table calls {name}, which is not in the same PUT")

    def _stable_is_whole(self, applications: dict[str, Json]) -> None:
        """Each stable revision is in every PUT, with the replicas that the spec in force asks for."""
        checkpoint = self.checkpoint()
        spec = next(r for r in self.records.values() if (r.kind, r.name) == ("spec", checkpoint["spec"])).data["spec"]
        nodes = applications["ingress"]["deployments"][0]["user_config"]["nodes"]
        for node, unit in checkpoint["nodes"].items():
            name = f"{node}--{unit['stable']}"
            routes = {route["revision"]: route for route in nodes.get(node, {"routes": []})["routes"]}
            if unit["stable"] is None or "inline" in routes.get(unit["stable"], {}):
                continue
            if name not in applications and self._is_inline(node, unit):
                continue  # its successor's table has not been promoted yet; it needs no application to come back
            if name not in applications:
                self.complain(f"stable {name} is not in the PUT")
                continue
            if node not in spec["nodes"]:
                continue
            bounds = applications[name]["deployments"][0]["autoscaling_config"]
            fields = spec["nodes"][node]
            inline = fields.get("placement") == "Inline"
            low = fields["autoscaling"].get("minReplicas", 1) if "autoscaling" in fields else fields.get("replicas", 1)
            if bounds["min_replicas"] < (1 if inline else low):
                self.complain(f"stable {name} gets {bounds['min_replicas']} replicas of {low}")

    def _is_inline(self, node: str, unit: Json) -> bool:
        specs = {record.name: record.data["spec"] for record in self.records.values() if record.kind == "spec"}
        return bool(specs[unit["live"]]["nodes"][node].get("placement") == "Inline")

    def check_history(self) -> None:
        """Everything that the checkpoint names is there."""
        keys = {(record.kind, record.name) for record in self.records.values()}
        checkpoint = self.checkpoint()
        named = {("spec", checkpoint["spec"]), ("graph", checkpoint["graph"])}
        for node, unit in (("ingress", checkpoint["ingress"]), *checkpoint["nodes"].items()):
            if unit["stable"]:
                named.add(("node", f"{node}--{unit['stable']}"))
            if unit["live"]:
                named.add(("spec", unit["live"]))
        if missing := named - keys:
            self.complain(f"the checkpoint names {sorted(missing)}, which are not there")


def called(ingress: Json) -> set[str]:
    nodes = ingress["deployments"][0]["user_config"]["nodes"]
    return {
        f"{node}--{route['revision']}"
        for node, entry in nodes.items()
        if not entry["off"]
        for route in entry["routes"]
        if route["weight"] > 0 and "inline" not in route
    }


def play(steps: list[tuple[str, Any, Any]], limit: int) -> tuple[Watched, Spec, int]:
    faults = Faults()
    world = Watched(faults)
    spec, generation = start(), 1
    spec["top"]["historyLimit"] = limit
    pipeline = built(spec, generation)
    for kind, first, second in steps:
        if kind == "edit":
            name, edit = first
            note(f"{world.clock.now - 1.7e9:.0f}: {name}")
            edit(spec)
            generation += 1
            pipeline = built(spec, generation)
            world.look(pipeline)
        elif kind == "wait":
            world.run(pipeline, first)
        elif kind == "away":  # nobody looks; Serve and callers go on
            world.bear(first)
            world.wait(first)
        elif kind == "silence":
            world.bear(first)
            world.fault = lambda call: "unreachable" if call in ("applications", "put", "acks", "ready") else ""
            world.run(pipeline, first)
            world.fault = faults
        elif kind == "fault":
            faults.arm(first, second)
        else:
            note(f"{world.clock.now - 1.7e9:.0f}: {first} {second}")
            sabotage(world, first, second)
        if any(record.kind == "checkpoint" for record in world.records.values()):
            world.check_history()
    faults.arm(-1, "")
    return world, spec, generation


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps_of_a_life, st.sampled_from([1, 2, 10]))
def test_every_put_keeps_what_callers_need(steps: list[tuple[str, Any, Any]], limit: int) -> None:
    world, spec, generation = play(steps, limit)
    world.settle(built(repaired(spec), generation + 1), 6 * 3600)
    world.check_history()

    assert world.broken == []
    assert world.serve.problems == []


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps_of_a_life)
def test_a_spec_that_is_taken_back_leaves_nothing_of_what_was_tried(steps: list[tuple[str, Any, Any]]) -> None:
    world = Watched(Faults())
    first = built(start(), 1)
    world.settle(first)
    spec = start()
    for kind, what, _ in steps:
        if kind == "edit":
            what[1](spec)
            world.look(built(spec, 2))
        elif kind in ("wait", "away"):
            world.run(built(spec, 2), min(what, 40))

    world.settle(first, 6 * 3600)
    world.run(first, 120)

    running = {name: app for name, app in world.serve.applications.items() if not app.deleting}
    assert {name.partition("--")[0] for name in running} == {"ingress", "a", "b", "c"}
    assert len(running) == 4
    assert world.broken == []
    assert world.serve.problems == []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(edit_steps, wait_steps), max_size=10), st.lists(st.booleans(), min_size=400, max_size=400))
def test_status_decides_nothing(steps: list[tuple[str, Any, Any]], wiped: list[bool]) -> None:
    """The same life with and without a status that is wiped at random sends the same, while no deadline passes."""

    def sent(wipe: bool) -> list[str]:
        world, spec, generation = Watched(Faults()), start(), 1
        pipeline, looks = built(spec, generation), iter(wiped)
        for kind, what, _ in steps:
            if kind == "edit":
                what[1](spec)
                generation += 1
                pipeline = built(copy.deepcopy(spec), generation)
            for _ in range(what if kind == "wait" else 1):
                if wipe and next(looks, False):
                    world.status = {}
                world.look(pipeline)
                world.wait(1)
        assert world.broken == []
        return [json.dumps(config, sort_keys=True) for _, config in world.serve.puts]

    assert sent(wipe=True) == sent(wipe=False)
