"""What happens to a pipeline and its callers when something around it breaks, and that it comes back by itself.

Each test prints what callers saw, after how many seconds the pipeline was Available again, and the reasons that status
gave in between. None of them repairs anything but what it broke itself.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from callers import Seen
from clusters.cluster import Ability
from clusters.on_machine import OnMachine
from resources import SMALL_POD, Shop
from world import Object, World, condition

Say = Callable[[str], None]
ORDER = {"kind": "plain"}
ANSWERS = [["tag one", 0, None]]


@dataclass
class Watched:
    """What status said while something was broken.

    Attributes:
        began: `time.monotonic` at the start.
        said: By condition, status and reason, beside what a healthy pipeline says: from when to when, in seconds.
    """

    began: float = field(default_factory=time.monotonic)
    said: dict[str, tuple[float, float]] = field(default_factory=dict)

    def look(self, conditions: Sequence[Object]) -> None:
        now = time.monotonic() - self.began
        for one in conditions:
            good = "False" if one["type"] in ("Stalled", "Reconciling") else "True"
            if one["status"] != good:
                text = f"{one['type']}={one['status']} {one.get('reason', '')}"
                self.said[text] = (self.said.get(text, (now, now))[0], now)

    def __str__(self) -> str:
        return ", ".join(f"{text} ({a:.0f}-{b:.0f} s)" for text, (a, b) in self.said.items()) or "as always"


@contextlib.contextmanager
def watched(world: World) -> Iterator[Watched]:
    """Reads status all the time while the block runs."""
    found, ended = Watched(), threading.Event()

    def read() -> None:
        while not ended.is_set():
            with contextlib.suppress(AssertionError):
                found.look(world.pipeline("shop").get("status", {}).get("conditions", []))
            ended.wait(0.5)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def disturbed(
    shop: Shop, say: Say, what: str, disturb: Callable[[], object], recovered: Callable[[], object] = lambda: True
) -> Seen:
    """Disturbs the shop under load, waits until it is well again, and prints what was seen.

    Args:
        recovered: What has to be true besides; AssertionErrors mean: not yet.
    """
    world = shop.world

    def well() -> bool:
        live = world.pipeline("shop")
        available = condition(live, "Available").get("status") == "True"
        return available and not condition(live, "Reconciling") and bool(recovered())

    with watched(world) as status, shop.callers(ORDER, ANSWERS) as callers:
        begun = time.monotonic()
        disturb()
        world.wait(f"the shop to be well again after: {what}", well, 400, "shop")
        took = time.monotonic() - begun
        so_far = callers.wait_for_more(40)
        seen = callers.wait_for_more(100)
    say(f"e2e: {what}: well after {took:.0f} s; callers: {seen}; status: {status}")
    assert len(seen.failures) == len(so_far.failures), "requests failed after status said that all is well"
    return seen


def pods_of(world: World, role: str) -> list[Object]:
    found = world.pods("shop", f"servepipe.dev/role={role}")
    assert found, role
    return found


def gone(world: World, pod: Object) -> bool:
    return pod["metadata"]["uid"] not in {one["metadata"]["uid"] for one in world.pods("shop")}


def test_a_worker_pod_is_killed(shop: Shop, say: Say) -> None:
    (pod, *_) = pods_of(shop.world, "worker")
    name = pod["metadata"]["name"]
    disturbed(
        shop,
        say,
        "a worker pod killed",
        lambda: shop.world.kubectl("delete", "pod", name, "--grace-period=0", "--force"),
        lambda: gone(shop.world, pod),
    )


def test_a_worker_pod_is_evicted(shop: Shop, say: Say) -> None:
    (pod, *_) = pods_of(shop.world, "worker")
    disturbed(shop, say, "a worker pod evicted", lambda: evict(shop.world, pod), lambda: gone(shop.world, pod))


def test_an_ingress_pod_is_evicted_and_the_budget_keeps_the_others(shop: Shop, say: Say) -> None:
    shop.world.patch("shop", {"ingress": {"replicas": 2}})
    shop.world.wait_settled("shop")
    first, second = pods_of(shop.world, "ingress")

    def disturb() -> None:
        evict(shop.world, first)
        with pytest.raises(AssertionError, match="disruption budget"):
            evict(shop.world, second)

    seen = disturbed(shop, say, "an ingress pod evicted", disturb, lambda: gone(shop.world, first))
    assert seen.failures == []


def evict(world: World, pod: Object) -> None:
    """As `kubectl drain` does."""
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": world.namespace}}
    path = f"/api/v1/namespaces/{world.namespace}/pods/{name}/eviction"
    world.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


def test_a_replica_is_killed(shop: Shop, say: Say) -> None:
    before = shop.world.replicas("shop")["risky"]
    disturbed(
        shop,
        say,
        "a replica killed",
        lambda: shop.ask({"kind": "risky", "do": "exit"}),
        lambda: (now := shop.world.replicas("shop")["risky"]) and not now & before,
    )


@pytest.mark.needs(Ability.NODES)
def test_containerd_is_restarted(shop: Shop, say: Say) -> None:
    cluster = shop.world.cluster
    if not isinstance(cluster, OnMachine):
        pytest.skip(f"no way to restart containerd on {cluster.mode} yet")
    before = shop.world.replicas("shop")
    seen = disturbed(shop, say, "containerd restarted", cluster.machine.restart_containerd)
    assert seen.failures == []
    assert shop.world.replicas("shop") == before


@pytest.mark.needs(Ability.DNS)
def test_dns_is_gone_for_a_minute(shop: Shop, say: Say) -> None:
    cluster = shop.world.cluster
    if not isinstance(cluster, OnMachine):
        pytest.skip(f"no way to stop the DNS of {cluster.mode} yet")
    before = shop.world.replicas("shop")

    def disturb() -> None:
        cluster.machine.stop_daemon("coredns")
        time.sleep(60)  # what is tested is a minute
        cluster.machine.start_daemon("coredns")

    seen = disturbed(shop, say, "DNS gone for a minute", disturb)
    assert seen.failures == []
    assert shop.world.replicas("shop") == before


def test_an_image_cannot_be_pulled(shop: Shop, say: Say) -> None:
    refused(shop, say, "an image that cannot be pulled", {"image": "registry.invalid/shop:none", "template": SMALL_POD})


def test_a_pod_cannot_be_scheduled(shop: Shop, say: Say) -> None:
    refused(shop, say, "a pod that fits nowhere", {"resources": {"cpu": "1000"}})


def refused(shop: Shop, say: Say, what: str, node: Object) -> None:
    """A revision whose pods never come: stable goes on untouched, status says why, and taking it back is enough."""
    world = shop.world
    before = world.replicas("shop")
    with watched(world) as status, shop.callers(ORDER, ANSWERS) as callers:
        begun = time.monotonic()
        world.patch("shop", {"nodes": {"tagger": node}})
        world.wait(f"status to say what is wrong with {what}", lambda: told(world), 120, "shop")
        took = time.monotonic() - begun
        message = told(world)
        world.patch("shop", {"nodes": {"tagger": dict.fromkeys(node)}})
        world.wait_settled("shop")
        seen = callers.wait_for_more(80)
    say(f"e2e: {what}: told after {took:.0f} s: {message}; callers: {seen}; status: {status}")
    assert seen.failures == []
    assert world.replicas("shop") == before


def told(world: World) -> str:
    """What status says of pods that do not come."""
    live = world.pipeline("shop")
    ready = condition(live, "ClusterReady")
    return f"{ready['reason']}: {ready['message']}" if ready.get("status") == "False" else ""


def test_a_model_eats_all_memory(shop: Shop, say: Say) -> None:
    """The kernel ends its container, or Ray the replica before that; callers of others are answered again soon."""
    before = shop.world.replicas("shop")["risky"]
    disturbed(
        shop,
        say,
        "out of memory in one model",
        lambda: shop.ask({"kind": "risky", "do": "eat memory"}),
        lambda: (now := shop.world.replicas("shop")["risky"]) and not now & before,
    )


def test_a_full_disk_on_a_worker(shop: Shop, say: Say) -> None:
    disturbed(shop, say, "a full disk on a worker", lambda: shop.ask({"kind": "risky", "do": "fill the disk"}))


def test_the_head_is_killed(shop: Shop, say: Say) -> None:
    """Without GCS fault tolerance all that it knew is lost, and its workers end."""
    head = shop.world.head("shop")
    disturbed(
        shop,
        say,
        "the head killed",
        lambda: shop.world.kubectl("delete", "pod", head["metadata"]["name"], "--grace-period=0", "--force"),
        lambda: gone(shop.world, head) and shop.world.replicas("shop"),
    )
