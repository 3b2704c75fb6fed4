"""The head is killed, and what it knew is in a Redis: callers notice nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters.cluster import Cluster
from clusters.on_machine import OnMachine
from disturbance import kill_head
from image_set import ImageSet
from redis_process import RedisProcess
from resources import Shop
from world import World

Say = Callable[[str], None]


@pytest.fixture(scope="module")
def redis(cluster: Cluster) -> Iterator[str]:
    """The address of a Redis that pods reach."""
    if not isinstance(cluster, OnMachine):
        pytest.skip(f"no Redis is brought to {cluster.mode} yet")
    redis = RedisProcess(cluster.machine.layout.address, cluster.machine.layout.logs, cluster.machine.make_process)
    redis.start()
    yield redis.host_and_port
    redis.stop()


@pytest.fixture(scope="module")
def tolerant(
    redis: str, world: World, images: ImageSet, second_shop: Path, tmp_path_factory: pytest.TempPathFactory
) -> Shop:
    """The Redis is asked for first, so that it ends last: KubeRay empties it when the pipeline goes."""
    shop = Shop(world, images, second_shop)
    overlay = tmp_path_factory.mktemp("overlay") / "redis.yaml"
    overlay.write_text(json.dumps({"spec": {"cluster": {"gcsFaultTolerance": {"redisAddress": redis}}}}))
    world.apply(shop.compiled("one", overlay))
    world.wait_settled("shop")
    return shop


def test_the_head_is_killed(tolerant: Shop, say: Say) -> None:
    seen = kill_head(tolerant, say, "the head killed, with GCS fault tolerance", loses=False)
    assert seen.failures == []
