"""What happens to a pipeline and its callers when something around it breaks, and that it comes back by itself.

Each test prints what callers saw, after how many seconds the pipeline was Available again, and the reasons that status
gave in between. None of them repairs anything but what it broke itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from clusters.cluster import Ability
from disturbance import ANSWERS, ORDER, disturbed, kill_head, watched
from resources import SMALL_POD, Shop
from world import Object, World, condition

Say = Callable[[str], None]


def pods_of(world: World, role: str) -> list[Object]:
    found = world.pods("shop", f"servepipe.dev/role={role}")
    assert found, role
    return found


def pod_of(world: World, node: str) -> Object:
    """One in which a replica of the node runs."""
    (application,) = [found for name, found in world.serve("shop").items() if name.startswith(f"{node}--")]
    addresses = {one["node_ip"] for found in application["deployments"].values() for one in found["replicas"]}
    return next(pod for pod in world.pods("shop") if pod["status"].get("podIP") in addresses)


def test_a_worker_pod_is_killed(shop: Shop, say: Say) -> None:
    pod = pod_of(shop.world, "tagger")
    name = pod["metadata"]["name"]
    disturbed(
        shop,
        say,
        "a worker pod killed",
        lambda: shop.world.kubectl("delete", "pod", name, "--grace-period=0", "--force"),
    )


def test_a_worker_pod_is_evicted(shop: Shop, say: Say) -> None:
    pod = pod_of(shop.world, "tagger")
    seen = disturbed(shop, say, "a worker pod evicted", lambda: evict(shop.world, pod))
    assert seen.unnoticed
    assert seen.slowest < 5, "a pod that is evicted answers until its replicas run elsewhere; lost ones take far longer"


def test_an_ingress_pod_is_evicted_and_the_budget_keeps_the_others(shop: Shop, say: Say) -> None:
    shop.world.patch("shop", {"ingress": {"replicas": 2}})
    shop.world.wait_settled("shop")
    first, second = pods_of(shop.world, "ingress")

    def disturb() -> None:
        evict(shop.world, first)
        with pytest.raises(AssertionError, match="disruption budget"):
            evict(shop.world, second)

    seen = disturbed(shop, say, "an ingress pod evicted", disturb)
    assert seen.unnoticed


def evict(world: World, pod: Object) -> None:
    """As `kubectl drain` does."""
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": world.namespace}}
    path = f"/api/v1/namespaces/{world.namespace}/pods/{name}/eviction"
    world.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


def test_a_replica_is_killed(shop: Shop, say: Say) -> None:
    disturbed(
        shop,
        say,
        "a replica killed",
        lambda: shop.ask({"kind": "risky", "do": "exit"}),
    )


@pytest.mark.needs(Ability.NODES)
def test_containerd_is_restarted(shop: Shop, say: Say) -> None:
    seen = disturbed(shop, say, "containerd restarted", shop.world.cluster.restart_containerd, loses=False)
    assert seen.failures == []


@pytest.mark.needs(Ability.DNS)
def test_dns_is_gone_for_a_minute(shop: Shop, say: Say) -> None:
    def disturb() -> None:
        with shop.world.cluster.without_dns():
            time.sleep(60)  # what is tested is a minute

    seen = disturbed(shop, say, "DNS gone for a minute", disturb, loses=False)
    assert seen.failures == []


def test_an_image_cannot_be_pulled(shop: Shop, say: Say) -> None:
    node = {"image": "registry.invalid/shop:none", "template": SMALL_POD}
    refused(shop, say, "an image that cannot be pulled", node, "cannot pull its image registry.invalid/shop:none")


def test_a_pod_cannot_be_scheduled(shop: Shop, say: Say) -> None:
    refused(shop, say, "a pod that fits nowhere", {"resources": {"cpu": "1000"}}, "cannot be scheduled")


def refused(shop: Shop, say: Say, what: str, node: Object, words: str) -> None:
    """A revision whose pods never come: stable goes on untouched, status says why, and taking it back is enough."""
    world = shop.world
    before = world.replicas("shop")
    with watched(world) as status, shop.callers(ORDER, ANSWERS) as callers:
        begun = time.monotonic()
        world.patch("shop", {"nodes": {"tagger": node}})
        world.wait(f"status to say {words!r}", lambda: words in told(world), 120, "shop")
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
    disturbed(
        shop,
        say,
        "out of memory in one model",
        lambda: shop.ask({"kind": "risky", "do": "eat memory"}),
    )


def test_a_full_disk_on_a_worker(shop: Shop, say: Say) -> None:
    """All that the pod of one node can write, Ray's own files among it, is full; the pod is replaced by hand."""
    world = shop.world
    small = {
        "containers": [{**SMALL_POD["spec"]["containers"][0], "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}],
        "volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}],
    }
    world.patch("shop", {"nodes": {"risky": {"template": {"spec": small}}}})
    world.wait_settled("shop")
    (pod,) = world.pods("shop", "servepipe.dev/pool=risky")

    def disturb() -> None:
        answer = shop.ask({"kind": "risky", "do": "fill the disk", "mebibytes": 100})
        say(f"e2e: a full disk: the model that filled it answered {answer.status} {answer.text[:200]}")
        say(f"e2e: a full disk: others are answered {shop.ask(ORDER).text}")
        world.kubectl("delete", "pod", pod["metadata"]["name"])

    seen = disturbed(shop, say, "a full disk on a worker", disturb)
    assert seen.failures == []
    world.patch("shop", {"nodes": {"risky": {"template": None}}})
    world.wait_settled("shop")


def test_the_head_is_killed(shop: Shop, say: Say) -> None:
    """Without GCS fault tolerance all that it knew is lost, and its workers end."""
    kill_head(shop, say, "the head killed", loses=True)
