"""From an installed chart to an answer, one upgrade and one dead head under load, and nothing left.

The tests of this file build on each other; they are what `make e2e-core` runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from callers import Callers
from clusters.cluster import Cluster
from image_set import ImageSet
from installation import Installation
from resources import compiled
from world import World, condition

pytestmark = pytest.mark.core
Say = Callable[[str], None]


@pytest.fixture(scope="module")
def diamond(world: World, images: ImageSet) -> Iterator[str]:
    """REP-001's diamond, by plain `kubectl apply`; Ready."""
    world.apply(compiled("examples/diamond/diamond.py", images.diamond))
    world.wait_settled("diamond")
    yield "diamond"


def callers_of(diamond: str, world: World, images: ImageSet, *, answers: list[int]) -> Callers:
    """Constant load on the diamond, from a pod; ``answers`` are those that may come."""
    url = f"http://{diamond}:8000/"
    return Callers(world.cluster, world.namespace, images.runtime, url=url, body=[1, 2, 3], answers=answers)


def test_the_installed_chart_passes_its_own_test(cluster: Cluster, installation: Installation) -> None:
    if not installation.namespace:
        pytest.skip("the operator of this cluster was installed by others, its release is not known")
    cluster.helm("test", installation.release, "--namespace", installation.namespace, "--timeout", "3m")


def test_the_diamond_answers_through_its_service(world: World, diamond: str, images: ImageSet, say: Say) -> None:
    with callers_of(diamond, world, images, answers=[8]) as callers:
        seen = callers.wait_for_more(50)
    say(f"e2e: the diamond: {seen}")
    assert seen.failures == []


def test_its_nodes_are_called_over_channels(world: World, diamond: str, images: ImageSet, say: Say) -> None:
    """Through the network policies, from one pod to another; only before the first channel is there over a handle."""

    def told() -> dict[str, float] | None:
        ways = world.node_calls(diamond)
        return ways if ways.get("channel", 0) >= 900 else None

    with callers_of(diamond, world, images, answers=[8]) as callers:
        callers.wait_for_more(500)
        ways = world.wait("the metrics to tell of calls over channels", told, 90, diamond)
        seen = callers.wait_for_more(1)
    say(f"e2e: nodes were called by these ways: {ways}")
    assert seen.failures == []
    assert ways["channel"] >= 0.9 * sum(ways.values())


def test_people_read_it(world: World, diamond: str) -> None:
    """With kubectl, and with its plug-in, which reaches the head and the ingress by port-forward."""
    heading, line = world.kubectl("get", "svp").splitlines()
    columns = dict(zip(heading.split(), line.split(), strict=False))
    assert {key: columns[key] for key in ("NAME", "AVAILABLE", "READY", "NODES")} == {
        "NAME": "diamond",
        "AVAILABLE": "True",
        "READY": "True",
        "NODES": "3/3",
    }
    plugin, where = world.cluster.plugin, ("-n", world.namespace)
    status = plugin("status", diamond, *where)
    assert all(word in status for word in ("m1", "m2", "ensemble", "Available")), status
    assert plugin("call", "[1, 2, 3]", *where).strip() == "8"
    lines = plugin("logs", "m1", *where, "--tail=5").splitlines()
    replicas = {line.partition(" | ")[0] for line in lines}
    assert len(replicas) == 3, lines  # each line begins with its replica


def test_one_model_is_upgraded_under_load(world: World, diamond: str, images: ImageSet, say: Say) -> None:
    before = world.replicas(diamond)
    with callers_of(diamond, world, images, answers=[8, 10]) as callers:
        begun = time.monotonic()
        world.patch(diamond, {"nodes": {"m1": {"args": [3]}}})
        world.wait_settled(diamond)
        took = time.monotonic() - begun
        seen = callers.wait_for_more(100)
    say(f"e2e: m1 upgraded in {took:.0f} s: {seen}")
    assert seen.failures == []
    after = world.replicas(diamond)
    assert after["m1"] and not after["m1"] & before["m1"]
    assert {node: ids for node, ids in after.items() if node != "m1"} == {
        node: ids for node, ids in before.items() if node != "m1"
    }


def test_a_killed_head_comes_back(world: World, diamond: str, images: ImageSet, say: Say) -> None:
    """Without GCS fault tolerance its workers end with it: callers notice, and it mends itself."""
    old = world.head(diamond)["metadata"]
    before = world.replicas(diamond)
    reasons: set[str] = set()

    def available_again() -> bool:
        live = world.pipeline(diamond)
        available = condition(live, "Available")
        if available.get("status") != "True":
            reasons.add(available.get("reason", ""))
        heads = {pod["metadata"]["uid"] for pod in world.pods(diamond, "ray.io/node-type=head")}
        if not reasons or old["uid"] in heads or available.get("status") != "True":
            return False
        # For some seconds the old workers answer although their head is gone: they have to be others.
        now = world.replicas(diamond)
        return all(now.get(node) and not ids & now[node] for node, ids in before.items())

    with callers_of(diamond, world, images, answers=[10]) as callers:
        begun = time.monotonic()
        world.kubectl("delete", "pod", old["name"], "--grace-period=0", "--force")
        world.wait("the pipeline to be Available with a new head", available_again, pipeline=diamond)
        took = time.monotonic() - begun
        answered = callers.wait_for_more(50)
        failed = len(answered.failures)
        seen = callers.wait_for_more(100)
    say(f"e2e: head killed: Available after {took:.0f} s, meanwhile {sorted(reasons)}; {seen}")
    assert len(seen.failures) == failed, "requests failed after it said Available"
    world.wait_settled(diamond)


def test_a_deleted_pipeline_leaves_nothing(world: World, diamond: str) -> None:
    world.kubectl("delete", "svp", diamond, "--timeout=120s", timeout=130)
    world.wait("nothing of it to be left", lambda: not world.left())
