"""Worker groups over random lives: every PUT asks for groups that are there and hold what the revisions need.

The worlds of `test_engine_invariants` with a RayCluster below them: images, pod fields and pools change, pods hang in
groups that ought to be empty, heads are lost and shells killed.
"""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from simulated_cluster import ClusterWorld, slot_of
from test_engine_converges import (
    NODES,
    Edit,
    Faults,
    Spec,
    built,
    check_expected,
    edit_steps,
    fault_steps,
    repaired,
    sabotage,
    sabotage_steps,
    start,
    wait_steps,
)
from test_engine_invariants import Watched

from servepipe.api.v1alpha1 import ServePipeline
from servepipe.api.v1alpha1 import Spec as ApiSpec
from servepipe_operator.engine.pools import PodWish
from servepipe_operator.engine.state import ClusterProblem, Json
from servepipe_operator.engine.wishes import ingress_wish, node_wish


class WatchedCluster(Watched, ClusterWorld):
    """Checks at each PUT that whoever is newly placed finds pods as its revision and the accepted spec ask for."""

    def _checked_put(self, config: Json) -> None:
        before = {name: slot_of(found) for name, found in self._deployed().items()}
        checkpoint = self.checkpoint()
        records = self.records.values()
        specs = {r.name: ApiSpec.model_validate(r.data["spec"]) for r in records if r.kind == "spec"}
        identities = {r.name: r.data["identity"] for r in records if r.kind == "node"}
        spec = specs[checkpoint["spec"]]
        for application in config["applications"]:
            name, slot = application["name"], slot_of(application)
            held = self.cluster.wishes.get(slot)
            node, full = name.partition("--")[0], name
            if name == "ingress":
                full = f"ingress--{application['args']['revision']}"
            if held is None or full not in identities:
                continue  # complained of by the cluster, or only there to drain
            unit = checkpoint["nodes"].get(node, {"stable": None, "live": ""})
            old = specs[unit["live"]] if full == f"{node}--{unit['stable']}" else spec
            wish = (
                ingress_wish(identities[full], spec)
                if name == "ingress"
                else node_wish(node, identities[full], spec, old.image)
            )
            # Who stays keeps pods as they were; who comes gets what the spec asks for.
            same = _own(held) == _own(wish) if before.get(name) == slot else held.digest == wish.digest
            if not same:
                self.complain(f"{name} is put on {slot}, which holds {held.content} and not {wish.content}")
        super()._checked_put(config)


def _own(wish: PodWish) -> tuple[object, ...]:
    """What a revision's own identity says of its pods."""
    fields = ("image", "env", "volumes", "nodeSelector", "tolerations")
    return tuple(wish.content.get(field) for field in fields)


# --- Edits ------------------------------------------------------------------------------------------------------------


def change_image(spec: Spec, name: str, value: int) -> None:
    spec["top"]["image"] = f"all:{value}"


def change_own_image(spec: Spec, name: str, value: int) -> None:
    if name in spec["nodes"] and spec["nodes"][name].get("placement") != "Inline" and name not in "cdf":
        spec["nodes"][name]["image"] = f"own:{value}"


def drop_own_image(spec: Spec, name: str, value: int) -> None:
    if name in spec["nodes"]:
        spec["nodes"][name].pop("image", None)


def change_env(spec: Spec, name: str, value: int) -> None:
    if name in "ab" and name in spec["nodes"]:
        spec["nodes"][name]["env"] = [{"name": "LEVEL", "value": str(value)}] if value else []


def change_account(spec: Spec, name: str, value: int) -> None:
    spec["top"]["serviceAccountName"] = f"account-{value}"


def change_workers(spec: Spec, name: str, value: int) -> None:
    spec["top"]["cluster"] = {
        "workers": {"minReplicas": value, "maxReplicas": 2 * value + 1, "resources": {"cpu": str(4 + value % 2)}}
    }


POOL_EDITS = (change_image, change_image, change_own_image, drop_own_image, change_env, change_account, change_workers)


@st.composite
def pool_edits(draw: st.DrawFn) -> tuple[str, Edit]:
    kind, name, value = draw(st.sampled_from(POOL_EDITS)), draw(st.sampled_from(NODES)), draw(st.integers(0, 3))
    return f"{kind.__name__}({name}, {value})", lambda spec: kind(spec, name, value)


pool_steps = st.tuples(st.just("edit"), pool_edits(), st.none())
stuck_steps = st.tuples(st.just("stuck"), st.integers(0, 1000), st.none())
away_steps = st.tuples(st.just("away"), st.sampled_from([30, 700]), st.none())
head_steps = st.tuples(st.just("head"), st.sampled_from([5, 60]), st.booleans())
steps_of_a_life = st.lists(
    st.one_of(
        *(pool_steps, pool_steps, edit_steps, wait_steps, wait_steps, fault_steps, sabotage_steps),
        *(stuck_steps, away_steps, head_steps),
    ),
    max_size=20,
)


def lose_head(world: WatchedCluster, pipeline: ServePipeline, seconds: float, told: bool) -> None:
    """The head is gone, and comes back without a memory; ``told``: KubeRay says so meanwhile."""
    fault, puts = world.fault, len(world.serve.puts)
    world.serve.lose_state()
    world.fault = lambda call: "unreachable" if call in ("applications", "put", "acks", "ready") else ""
    if told:
        world.cluster.problem, world.cluster.up = ClusterProblem("HeadPodNotReady", "is not ready"), False
    world.bear(seconds)
    world.run(pipeline, seconds)
    if told:
        assert len(world.serve.puts) == puts
    world.fault, world.cluster.problem, world.cluster.up = fault, None, True


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps_of_a_life)
def test_every_put_finds_its_worker_groups(steps: list[tuple[str, Any, Any]]) -> None:
    faults = Faults()
    world = WatchedCluster(faults)
    spec, generation = start(), 1
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
        elif kind == "away":
            world.bear(first)
            world.wait(first)
        elif kind == "head":
            note(f"{world.clock.now - 1.7e9:.0f}: no head for {first} s, told: {second}")
            lose_head(world, pipeline, first, second)
        elif kind == "fault":
            faults.arm(first, second)
        elif kind == "stuck":
            names = [slot.name for slot in world.cluster.groups]
            world.cluster.stuck_pods = {name: 1 for at, name in enumerate(names) if first >> at & 1}
            note(f"{world.clock.now - 1.7e9:.0f}: stuck {sorted(world.cluster.stuck_pods)}")
        else:
            note(f"{world.clock.now - 1.7e9:.0f}: {first} {second}")
            sabotage(world, first, second)
    faults.arm(-1, "")
    world.cluster.stuck_pods = {}
    final = repaired(copy.deepcopy(spec))
    pipeline = built(final, generation + 1)
    world.settle(pipeline, 6 * 3600)

    assert world.broken == []
    assert world.cluster.problems == []
    assert world.serve.problems == []
    world.run(pipeline, 120)
    check_expected(world, final)
    world.wait(60)
    world.look(pipeline)
    world.wait(60)
    world.look(pipeline)
    assert [write for write in world.writes if write != "cluster"] == []
