"""Random edits of a resource, with faults at any call, always end in what the resource asks for.

On the way callers never notice: whatever the routing table in force names is there, unless somebody broke it by hand.
The world is `simulated_serve`; the model of what should run is `expected`, which knows nothing of the engine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from simulated_serve import BAD
from simulated_world import World, node, resource

from servepipe.api.v1alpha1 import ServePipeline

Spec = dict[str, Any]
NODES = ("a", "b", "c", "d", "f", "g")


def code(version: int) -> str:
    return f"sha256:{version:064x}"


def start() -> Spec:
    """Two plain nodes, one that holds a handle to another, and a function in the ingress."""
    return {
        "nodes": {
            "a": node("good", 0),
            "b": node("good", {"$node": "a"}),
            "c": node("good", 0, replicas=2),
            "f": {"import": "functions:f", "code": code(1), "placement": "Inline"},
        },
        "constant": 0,
        "preprocessor": None,
        "ingress": {"replicas": 1},
        "top": {},
        "invalid": False,
    }


def built(spec: Spec, generation: int) -> ServePipeline:
    nodes = copy.deepcopy(spec["nodes"])
    called = [*nodes, "nobody"] if spec["invalid"] else [*nodes]
    graph = {
        "steps": [{"name": f"{name}-out", "node": name, "args": [spec["constant"]]} for name in nodes],
        "output": [{"$step": f"{name}-out"} for name in called],
    }
    more = {"preprocessor": spec["preprocessor"]} if spec["preprocessor"] else {}
    return resource(nodes, graph=graph, ingress=spec["ingress"], generation=generation, **more, **spec["top"])


# --- Edits ------------------------------------------------------------------------------------------------------------

Edit = Callable[[Spec], None]


@st.composite
def edits(draw: st.DrawFn) -> tuple[str, Edit]:
    kind = draw(st.sampled_from(EDITS))
    name = draw(st.sampled_from(NODES))
    value = draw(st.integers(0, 3))
    return f"{kind.__name__}({name}, {value})", lambda spec: kind(spec, name, value)


def change_model(spec: Spec, name: str, value: int) -> None:
    if name in spec["nodes"] and spec["nodes"][name]["import"] == "models:Model":
        rest = spec["nodes"][name]["args"][2:] if name != "b" else [{"$node": "a"}]
        spec["nodes"][name]["args"] = ["good", value, *rest]


def break_model(spec: Spec, name: str, value: int) -> None:
    if name in spec["nodes"]:
        spec["nodes"][name]["args"] = [BAD[value], *spec["nodes"][name].get("args", [])[1:]]


def change_code(spec: Spec, name: str, value: int) -> None:
    if name in spec["nodes"] and name in "cf":
        spec["nodes"][name]["code"] = code(value + 1)


def scale(spec: Spec, name: str, value: int) -> None:
    if name in spec["nodes"] and spec["nodes"][name].get("placement") != "Inline":
        spec["nodes"][name].pop("autoscaling", None)
        spec["nodes"][name]["replicas"] = value


def autoscale(spec: Spec, name: str, value: int) -> None:
    if name in spec["nodes"] and spec["nodes"][name].get("placement") != "Inline":
        spec["nodes"][name].pop("replicas", None)
        spec["nodes"][name]["autoscaling"] = {"minReplicas": value, "maxReplicas": value + 2}


def configure(spec: Spec, name: str, value: int) -> None:
    if name in spec["nodes"]:
        spec["nodes"][name]["userConfig"] = {"threshold": value}


def move(spec: Spec, name: str, value: int) -> None:
    if name in spec["nodes"] and name in "cdf":
        for field in ("replicas", "autoscaling"):
            spec["nodes"][name].pop(field, None)
        spec["nodes"][name]["placement"] = "Inline" if value % 2 else "Dedicated"


def add(spec: Spec, name: str, value: int) -> None:
    spec["nodes"].setdefault(name, node("good", value) if name != "b" else node("good", {"$node": "a"}))
    spec["nodes"].setdefault("a", node("good", value))


def remove(spec: Spec, name: str, value: int) -> None:
    if name == "a":
        spec["nodes"].pop("b", None)
    if len(spec["nodes"]) > 1 or name not in spec["nodes"]:
        spec["nodes"].pop(name, None)


def rewire(spec: Spec, name: str, value: int) -> None:
    spec["constant"] = value


def preprocess(spec: Spec, name: str, value: int) -> None:
    spec["preprocessor"] = (None, "hooks:one", "hooks:two", "broken:hook")[value]


def scale_ingress(spec: Spec, name: str, value: int) -> None:
    spec["ingress"] = {"replicas": value + 1}


def suspend(spec: Spec, name: str, value: int) -> None:
    spec["top"]["suspend"] = bool(value % 2)


def pause(spec: Spec, name: str, value: int) -> None:
    spec["top"]["paused"] = value == 1


def allow_concurrency(spec: Spec, name: str, value: int) -> None:
    spec["top"]["maxConcurrentUpgrades"] = value + 1


def retry(spec: Spec, name: str, value: int) -> None:
    if name in spec["nodes"]:
        spec["nodes"][name]["upgrade"] = {"retryToken": str(value)}


def write_nonsense(spec: Spec, name: str, value: int) -> None:
    spec["invalid"] = value == 0


EDITS = (
    *(
        change_model,
        change_model,
        change_model,
        break_model,
        change_code,
        scale,
        autoscale,
        configure,
        move,
        add,
        remove,
    ),
    *(rewire, preprocess, scale_ingress, suspend, pause, allow_concurrency, retry, write_nonsense),
)


def repaired(spec: Spec) -> Spec:
    """The same resource without what could never run."""
    spec = copy.deepcopy(spec)
    for fields in spec["nodes"].values():
        if fields.get("args", [""])[0] in BAD:
            fields["args"][0] = "good"
    if spec["preprocessor"] == "broken:hook":
        spec["preprocessor"] = "hooks:one"
    spec["invalid"] = False
    spec["top"].pop("paused", None)
    spec["top"].pop("suspend", None)
    return spec


# --- What should run --------------------------------------------------------------------------------------------------


def check_expected(world: World, spec: Spec) -> None:
    """Compare what runs with the resource, written down without the engine."""
    running = {name: app for name, app in world.serve.applications.items() if not app.deleting}
    table = world.table()
    assert table["graph"]["output"] == [{"$step": f"{name}-out"} for name in spec["nodes"]]
    assert all(step["args"] == [spec["constant"]] for step in table["graph"]["steps"])
    assert table["nodes"].keys() == spec["nodes"].keys()
    assert running["ingress"].config["args"]["preprocessor"] == spec["preprocessor"]
    assert len(running["ingress"].alive()) == spec["ingress"]["replicas"]
    expected = {"ingress"}
    for name, fields in spec["nodes"].items():
        (route,) = table["nodes"][name]["routes"]
        assert route["weight"] == 100
        held = any({"$node": name} in other.get("args", []) for other in spec["nodes"].values())
        if fields.get("placement") == "Inline" and not held:
            what, live = route["inline"], route["inline"]
            assert what["code"] is None or what["code"] in running["ingress"].config["args"]["codes"]
        else:
            assert "inline" not in route
            application = running[f"{name}--{route['revision']}"]
            expected.add(application.name)
            what, live = application.config["args"], application.deployment["user_config"]
            check_replicas(application, fields)
            for replica in application.alive():
                assert replica.user_config == application.deployment["user_config"]
        assert what["import"] == fields["import"]
        assert what["args"] == fields.get("args", [])
        assert what["code"] == fields.get("code")
        assert live["userConfig"] == fields.get("userConfig")
    assert running.keys() == expected
    for replica in running["ingress"].alive():
        assert replica.user_config == table


def check_replicas(application: Any, fields: dict[str, Any]) -> None:
    if "autoscaling" in fields:
        low, high = fields["autoscaling"]["minReplicas"], fields["autoscaling"]["maxReplicas"]
    else:
        low = high = fields.get("replicas", 1)
    bounds = application.deployment["autoscaling_config"]
    assert (bounds["min_replicas"], bounds["max_replicas"]) == (low, max(high, 1))
    assert low <= len(application.alive()) <= high


# --- Faults -----------------------------------------------------------------------------------------------------------

FAULTS = ("unreachable", "unreachable-after", "killed", "killed-after")
SABOTAGE = ("lose-state", "delete", "edit", "kill-replica", "wipe-status")


class Faults:
    """Which call goes wrong next, and how; one at a time, as hypothesis chose."""

    def __init__(self) -> None:
        self.after = -1
        self.kind = ""
        self.happened: list[str] = []

    def __call__(self, call: str) -> str:
        self.after -= 1
        if self.after != -1:
            return ""
        self.happened.append(f"{self.kind} {call}")
        return self.kind

    def arm(self, after: int, kind: str) -> None:
        self.after, self.kind = after, kind


def sabotage(world: World, kind: str, which: int) -> None:
    names = sorted(world.serve.applications) or ["none"]
    name = names[which % len(names)]
    if kind == "lose-state":
        world.serve.lose_state()
    elif kind == "delete":
        world.serve.delete_by_hand(name)
    elif kind == "edit":
        world.serve.edit_by_hand(name)
    elif kind == "kill-replica":
        world.serve.kill_replica(name)
    else:
        world.status = {}


fault_steps = st.tuples(st.just("fault"), st.integers(0, 25), st.sampled_from(FAULTS))
sabotage_steps = st.tuples(st.just("sabotage"), st.sampled_from(SABOTAGE), st.integers(0, 9))
edit_steps = st.tuples(st.just("edit"), edits(), st.none())
wait_steps = st.tuples(st.just("wait"), st.sampled_from([1, 2, 4, 7, 12, 40]), st.none())


def play(steps: list[tuple[str, Any, Any]]) -> tuple[World, Spec, ServePipeline, Faults]:
    """Carry out the steps, then repair the resource and let it settle."""
    faults = Faults()
    world = World(fault=faults)
    spec, generation = start(), 1
    pipeline = built(spec, generation)
    for kind, first, second in steps:
        if kind == "edit":
            name, edit = first
            note(f"{world.clock.now - 1.7e9:.0f}: {name}")
            edit(spec)
            generation += 1
            pipeline = built(spec, generation)
        elif kind == "wait":
            world.run(pipeline, first)
        elif kind == "fault":
            faults.arm(first, second)
        else:
            note(f"{world.clock.now - 1.7e9:.0f}: {first} {second}")
            sabotage(world, first, second)
    faults.arm(-1, "")
    final = repaired(spec)
    pipeline = built(final, generation + 1)
    world.settle(pipeline, 4 * 3600)
    return world, final, pipeline, faults


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(edit_steps, edit_steps, wait_steps, wait_steps, fault_steps, sabotage_steps), max_size=25))
def test_ends_in_what_the_resource_asks_for(steps: list[tuple[str, Any, Any]]) -> None:
    world, spec, pipeline, faults = play(steps)
    note(f"faults: {faults.happened}")
    check_expected(world, spec)
    assert world.serve.problems == []
    world.wait(60)
    world.look(pipeline)
    world.wait(60)
    world.look(pipeline)
    assert world.writes == []


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.sampled_from(NODES), st.integers(0, 3)), min_size=1, max_size=4),
    st.lists(st.one_of(fault_steps, wait_steps, wait_steps), max_size=10),
)
def test_what_serves_goes_on_serving_whatever_cannot_start(
    breaks: list[tuple[str, int]], steps: list[tuple[str, Any, Any]]
) -> None:
    faults = Faults()
    world = World(fault=faults)
    world.serve.deadline_s = 60
    spec = start()
    spec["top"] = {"progressDeadlineSeconds": 60}
    world.settle(built(spec, 1))
    for name, value in breaks:
        break_model(spec, name, value)
    pipeline = built(spec, 2)
    for kind, first, second in steps:
        if kind == "wait":
            world.run(pipeline, first)
        else:
            faults.arm(first, second)
    faults.arm(-1, "")
    world.run(pipeline, 200)

    broken = [name for name, fields in spec["nodes"].items() if fields.get("args", [""])[0] in BAD]
    assert world.serve.problems == []
    assert world.condition("Available") == "True"
    assert (world.condition("Stalled") == "True") is bool(broken)
    assert (world.condition("Ready") == "True") is (not broken)
    assert {name for name in spec["nodes"] if "failedRevision" in world.status["nodes"][name]} <= set(broken)
