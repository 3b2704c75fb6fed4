"""The pods that KubeRay's stand-in makes run Ray, and Ray's own autoscaler adds to them.

.venv/bin/python -m pytest e2e/test_kuberay_pods.py     # root on Linux; ten minutes, more when no image is built yet

The tests of this file are one story, told in its order.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bed.processes import wait_for
from images.build import Built, build
from images.plan import project_images
from kuberay_contract import Object, World, api_of
from kuberay_process import StandInProcess, crd
from machine.cluster import MachineCluster
from ray_clusters import GROUP, RAY_VERSION, RayCluster, is_ready
from redis_process import RedisProcess

if sys.platform != "linux" or os.geteuid() != 0:
    pytest.skip("a cluster on this machine needs root on Linux", allow_module_level=True)

Say = Callable[[str], None]
NAMESPACE = "shop"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture(scope="module")
def runtime(say: Say) -> Built:
    return build([project_images()["runtime"]], say=say)["runtime"]


@pytest.fixture(scope="module")
def cluster(runtime: Built, say: Say, folder: Path) -> Iterator[MachineCluster]:
    cluster = MachineCluster.up(folder, say)
    try:
        cluster.load_image(runtime.archive)
        cluster.kubectl("apply", "--server-side", "-f", str(crd()))
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="module")
def kuberay(cluster: MachineCluster) -> Iterator[StandInProcess]:
    kuberay = StandInProcess(cluster.kubeconfig, cluster.layout.logs, cluster.make_process)
    kuberay.start()
    yield kuberay
    kuberay.stop()


@pytest.fixture(scope="module")
def world(cluster: MachineCluster, kuberay: StandInProcess) -> Iterator[World]:
    api = api_of(cluster.kubeconfig)
    api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": RESTRICTED}})
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
    wait_for("a service account", lambda: api.find(account), 60)
    yield World(api, NAMESPACE)
    api.close()


@pytest.fixture(scope="module")
def ray(world: World, runtime: Built) -> RayCluster:
    """It runs from the first test on that asks for it."""
    ray = RayCluster(world, "c", runtime.reference)
    ray.create()
    return ray


def uid(pod: Object) -> str:
    found: str = pod["metadata"]["uid"]
    return found


def created(world: World, reason: str) -> int:
    """How many pods KubeRay says that it made, or deleted."""
    found = world.events("c", reason)
    return sum((event.get("series") or {}).get("count", 1) for event in found)


def test_the_head_comes_up_under_the_restricted_level_and_asks_for_the_token(
    ray: RayCluster, world: World, say: Say
) -> None:
    begun = time.monotonic()
    ip = ray.head_ip()
    say(f"head ready after {time.monotonic() - begun:.0f} s")
    world.wait_condition("c", "HeadPodReady", "True")
    assert ray.ask(ip, "GET", "/api/ray/version", token="").status_code == 401
    assert ray.ask(ip, "GET", "/api/ray/version").json()["ray_version"] == RAY_VERSION
    head = world.head("c")
    assert [status["ready"] for status in head["status"]["containerStatuses"]] == [True, True]
    assert ray.workers() == []


def test_ray_s_autoscaler_adds_one_pod_for_a_replica_which_answers(ray: RayCluster, world: World, say: Say) -> None:
    ip = ray.head_ip()
    begun = time.monotonic()
    ray.put(ip)
    ray.wait_running(ip)
    (worker,) = ray.workers()
    assert ray.answer(worker) == worker["metadata"]["name"]
    say(f"a new pod answers {time.monotonic() - begun:.0f} s after the PUT")
    assert created(world, "CreatedWorkerPod") == 1
    assert ray.group()["replicas"] == 1
    world.wait("a worker that is ready", lambda: is_ready(ray.workers()[0]), 60)
    world.wait("one ready worker in the status", lambda: world.status("c").get("readyWorkerReplicas") == 1)


def test_without_kuberay_ray_goes_on_and_pods_come_when_it_is_back(
    ray: RayCluster, kuberay: StandInProcess, world: World
) -> None:
    ip = ray.head_ip()
    kuberay.pause()
    ray.put(ip, replicas=2)
    world.wait("the autoscaler's wish for a second pod", lambda: ray.group()["replicas"] == 2, 90)
    (worker,) = ray.workers()
    assert ray.answer(worker) == worker["metadata"]["name"]
    kuberay.resume()
    ray.wait_running(ip)
    assert {ray.answer(worker) for worker in ray.workers()} <= {pod["metadata"]["name"] for pod in ray.workers()}
    assert len(ray.workers()) == 2


def test_a_stand_in_that_ended_is_started_again_and_takes_over(
    ray: RayCluster, kuberay: StandInProcess, world: World
) -> None:
    before = world.uids("c")
    old = kuberay.pid
    kuberay.stop()
    lost = ray.workers()[0]
    world.delete_pod(lost)
    kuberay.start()
    assert kuberay.pid != old

    def replaced() -> bool:
        """Ray's autoscaler may have asked for another one meanwhile."""
        now = ray.workers()
        return uid(lost) not in map(uid, now) and len(now) == ray.group()["replicas"] and all(map(is_ready, now))

    world.wait("a pod in the place of the one that was deleted", replaced, 120)
    assert world.uids("c", GROUP) - before
    ray.wait_running(ray.head_ip())


def test_ray_s_autoscaler_names_the_pods_that_go(ray: RayCluster, world: World, say: Say) -> None:
    ip = ray.head_ip()
    ray.put(ip, replicas=0)
    begun = time.monotonic()
    world.wait("the end of all idle pods", lambda: ray.workers() == [], 180)
    say(f"idle pods are gone after {time.monotonic() - begun:.0f} s")
    assert ray.group()["replicas"] == 0


def test_a_head_that_is_lost_takes_serve_s_state_with_it(ray: RayCluster, world: World, say: Say) -> None:
    ip = ray.head_ip()
    ray.put(ip)
    ray.wait_running(ip)
    (worker,) = ray.workers()
    lost = world.head("c")
    world.delete_pod(lost)
    begun = time.monotonic()
    ip = ray.head_ip(but=uid(lost))
    say(f"another head is ready after {time.monotonic() - begun:.0f} s")
    assert ray.applications(ip) == {}
    gone = "the worker of the former head to end"
    world.wait(gone, lambda: uid(worker) not in world.uids("c", GROUP), 180)
    say(f"the former head's worker is gone after {time.monotonic() - begun:.0f} s")
    ray.put(ip)
    ray.wait_running(ip)


def test_a_deleted_raycluster_leaves_nothing(ray: RayCluster, world: World) -> None:
    ray.delete()
    assert_nothing_is_left(world)


def test_with_redis_another_head_knows_what_the_former_one_knew(
    cluster: MachineCluster, world: World, runtime: Built, say: Say
) -> None:
    redis = RedisProcess(cluster.layout.address, cluster.layout.logs, cluster.make_process)
    redis.start()
    ray = RayCluster(world, "f", runtime.reference, gcsFaultTolerance={"redisAddress": redis.host_and_port})
    ray.create()
    ip = ray.head_ip()
    ray.put(ip)
    ray.wait_running(ip)
    (worker,) = ray.workers()
    ray.answer(worker)
    lost = world.head("f")
    world.delete_pod(lost)
    begun = time.monotonic()
    world.wait("the head to go", lambda: uid(lost) not in world.uids("f"), 60)
    assert ray.answer(worker) == worker["metadata"]["name"]
    ip = ray.head_ip(but=uid(lost))
    ray.wait_running(ip)
    say(f"with Redis another head knows the application after {time.monotonic() - begun:.0f} s")
    assert [uid(one) for one in ray.workers()] == [uid(worker)]
    assert ray.answer(worker) == worker["metadata"]["name"]
    assert redis.ask("DBSIZE") != "0"
    ray.delete()
    assert redis.ask("DBSIZE") == "0"
    assert_nothing_is_left(world)
    redis.stop()


def assert_nothing_is_left(world: World) -> None:
    paths = [world.path(plural) for plural in ("pods", "services", "secrets", "persistentvolumeclaims")]
    paths += [world.rbac(plural) for plural in ("roles", "rolebindings")]
    paths += [world.path("jobs", group="apis/batch/v1"), world.path("serviceaccounts")]

    def left() -> list[str]:
        found = [obj["metadata"]["name"] for path in paths for obj in world.api.get(path)["items"]]
        return [name for name in found if name != "default"]

    wait_for("nothing to be left", lambda: not left(), 120, lambda: f"left: {left()}")
