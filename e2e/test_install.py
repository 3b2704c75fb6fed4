"""The life of the chart beside a pipeline that serves: whatever Helm does, callers and pods notice nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from callers import Callers
from chart import CHART
from chart_older import NAME, older
from clusters.cluster import Ability, Cluster
from image_set import ImageSet
from installation import Helm, Installation
from resources import compiled
from world import Object, World

pytestmark = pytest.mark.needs(Ability.CLUSTER_OBJECTS)
Say = Callable[[str], None]


@pytest.fixture(scope="module")
def diamond(
    helm: Helm, cluster: Cluster, images: ImageSet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """The diamond, run by an older version of the chart, whose CRD has no `spec.paused`."""
    helm.uninstall()
    cluster.kubectl("delete", "crd", NAME, "--timeout=60s", timeout=70)
    helm.do("install", older(tmp_path_factory.mktemp("older")))
    with World(cluster, "install").made() as world:
        world.apply(compiled("examples/diamond/diamond.py", images.diamond))
        world.wait_settled("diamond")
        yield world


@pytest.fixture
def unnoticed(
    diamond: World, installation: Installation, images: ImageSet, say: Say, request: pytest.FixtureRequest
) -> Iterator[None]:
    """While the test goes on no request fails, no pod and no replica changes, and Serve is told nothing.

    Nor is it afterwards, until the operator that works then has looked twice at what there is.
    """

    def state() -> object:
        pods = {(pod["metadata"]["uid"], *restarts(pod)) for pod in diamond.pods("diamond")}
        return pods, diamond.replicas("diamond"), diamond.deployed_at("diamond")

    def looked() -> bool:
        pod, looks = installation.looks()
        return looks >= 2 + (looks_before if pod == pod_before else 0)

    before = state()
    pod_before, looks_before = diamond.wait("an operator that works", installation.looks, 60, "diamond")
    address = "http://diamond:8000/"
    with Callers(
        diamond.cluster, diamond.namespace, images.runtime, url=address, body=[1, 2, 3], answers=[8]
    ) as callers:
        yield
        diamond.wait("the operator to have looked twice", looked, 120, "diamond")
        diamond.wait_settled("diamond")
        seen = callers.wait_for_more(100)
    say(f"e2e: {request.node.name.removeprefix('test_')}: {seen}")
    assert seen.unnoticed
    assert state() == before


def restarts(pod: Object) -> tuple[int, ...]:
    return tuple(one["restartCount"] for one in pod["status"].get("containerStatuses", ()))


@pytest.mark.usefixtures("unnoticed")
def test_an_upgrade_brings_the_new_crd(diamond: World, helm: Helm) -> None:
    """From an older version: objects survive, and the new field is kept."""
    uid = diamond.pipeline("diamond")["metadata"]["uid"]
    helm.do("upgrade")
    diamond.patch("diamond", {"paused": True})
    diamond.wait("the new field to be kept", lambda: diamond.pipeline("diamond")["spec"].get("paused"), 30)
    diamond.patch("diamond", {"paused": None})
    assert diamond.pipeline("diamond")["metadata"]["uid"] == uid


@pytest.mark.usefixtures("unnoticed")
def test_changed_defaults_restart_nothing(diamond: World, helm: Helm, images: ImageSet) -> None:
    helm.do(
        "upgrade",
        CHART,
        "--set=settings.steadySeconds=5",
        "--set=resources.limits.memory=600Mi",
        "--set=settings.resyncSeconds=20",
        f"--set-string=settings.runtimeImage={images.diamond}",
    )


@pytest.mark.usefixtures("unnoticed")
def test_uninstalled_and_installed_again(diamond: World, helm: Helm) -> None:
    assert "kept due to the resource policy" in helm.uninstall()
    with pytest.raises(AssertionError, match=f"belongs to release {helm.release}.*") as refused:
        helm.do("install", release="another")
    assert "kubectl" in str(refused.value), "it says how to adopt"
    helm.do("install")


@pytest.mark.usefixtures("unnoticed")
def test_adopted_by_another_release(diamond: World, cluster: Cluster, helm: Helm) -> None:
    helm.uninstall()
    with pytest.raises(AssertionError) as refused:
        helm.do("install", release="another")
    commands = [line.split()[1:] for line in str(refused.value).splitlines() if line.strip().startswith("kubectl ")]
    assert len(commands) == 2
    for command in commands:
        cluster.kubectl(*command)
    helm.release = "another"
    helm.do("install")
