"""What is installed in the cluster before any test: the images, KubeRay, and our chart."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kuberay_process
from bed.processes import wait_for
from chart import CHART
from clusters.cluster import Cluster
from clusters.on_machine import OnMachine
from image_set import ImageSet
from kuberay_process import StandInProcess

Say = Callable[[str], None]

NAMESPACE = "servepipe-system"
RELEASE = "servepipe"
KUBERAY_REPOSITORY = "https://ray-project.github.io/kuberay-helm/"
KUBERAY_CHART = ("install", "kuberay-operator", "kuberay-operator", "--version=1.7.0", f"--repo={KUBERAY_REPOSITORY}")
RAYCLUSTERS = "rayclusters.ray.io"


class Installation:
    """The operator in the cluster.

    Attributes:
        namespace: Of the operator; empty where others installed it.
        release: Of Helm.
    """

    def __init__(self, cluster: Cluster, namespace: str, release: str) -> None:
        self.namespace, self.release, self._cluster = namespace, release, cluster

    def leader(self) -> str:
        """The pod of the operator that works. Raises AssertionError where none does."""
        leases = self._cluster.find("-n", self.namespace, "leases")
        holders = {str(one["spec"].get("holderIdentity") or "") for one in leases}
        pods = {one["metadata"]["name"] for one in self._cluster.find("-n", self.namespace, "pods")}
        working = sorted(pod for pod in pods if any(pod in holder for holder in holders))
        assert len(working) == 1, f"leases are held by {sorted(holders)}, pods are {sorted(pods)}"
        return working[0]

    def looks(self) -> tuple[str, int]:
        """The pod that works, and how often it has looked at a pipeline with which nothing was under way."""
        pod = self.leader()
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}:8080/proxy/metrics"
        metrics = self._cluster.kubectl("get", "--raw", path).stdout
        found = re.findall(r'^servepipe_reconciles_total\{result="ok"\} (\S+)$', metrics, re.MULTILINE)
        return pod, int(sum(map(float, found)))

    def kill_operator(self) -> str:
        """The pod that works ends at once, without a word; its name."""
        pod = self.leader()
        self._cluster.kubectl("-n", self.namespace, "delete", "pod", pod, "--grace-period=0", "--force")
        return pod


def values(images: ImageSet) -> list[str]:
    """What `helm` is told of the built images."""
    repository, _, tag = images.operator.rpartition(":")
    told = {"image.repository": repository, "image.tag": tag, "settings.runtimeImage": images.runtime}
    return [word for name, value in told.items() for word in ("--set-string", f"{name}={value}")]


@contextlib.contextmanager
def kuberay_of(cluster: Cluster, say: Say) -> Iterator[str]:
    """KubeRay works in the block: the one that is there, from its chart, or the tests' stand-in; says which it is."""
    # Not by its CRD: who may use RayClusters in a namespace need not be allowed to read CRDs.
    if cluster.serves(RAYCLUSTERS):
        say(kind := "e2e: KubeRay is installed already")
        yield kind
        return
    if cluster.mode == "kind":
        cluster.helm(
            *KUBERAY_CHART, "-n", "kuberay-system", "--create-namespace", "--wait", "--timeout=5m", timeout=400
        )
        say(kind := f"e2e: KubeRay from its chart: {' '.join(KUBERAY_CHART)}")
        yield kind
        return
    assert isinstance(cluster, OnMachine), f"KubeRay is not installed in the cluster of {cluster.kubeconfig}"
    cluster.kubectl("apply", "--server-side", "-f", str(kuberay_process.crd()))
    wait_for("RayClusters to be served", lambda: cluster.find(RAYCLUSTERS, "--all-namespaces") == [], 60, pause=0.1)
    standin = StandInProcess(cluster.kubeconfig, cluster.folder, cluster.machine.make_process)
    standin.start()
    say(kind := "e2e: a stand-in for KubeRay, as its chart cannot be had here")
    try:
        yield kind
    finally:
        standin.stop()


@contextlib.contextmanager
def install(cluster: Cluster, images: ImageSet, say: Say) -> Iterator[Installation]:
    if cluster.mode == "current":
        yield Installation(cluster, "", "")
        return
    begun = time.monotonic()
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    cluster.apply(namespace)
    try:
        cluster.helm(
            "install", RELEASE, str(CHART), "--namespace", NAMESPACE, *values(images), "--wait", "--timeout=4m"
        )
    except AssertionError as error:
        pods = cluster.kubectl("-n", NAMESPACE, "describe", "pods", check=False).stdout
        logs = cluster.kubectl(
            "-n", NAMESPACE, "logs", "-l", "app.kubernetes.io/name=servepipe-operator", check=False
        ).stdout
        raise AssertionError(f"{error}\n{pods[-5000:]}\n{logs[-3000:]}") from None
    say(f"e2e: the chart is installed after {time.monotonic() - begun:.0f} s")
    yield Installation(cluster, NAMESPACE, RELEASE)


class Helm:
    """One release in the operator's namespace."""

    def __init__(self, cluster: Cluster, installation: Installation, images: ImageSet) -> None:
        self._cluster, self._images = cluster, images
        self.release, self.namespace = installation.release, installation.namespace

    def do(self, verb: str, chart: Path = CHART, *more: str, release: str = "") -> str:
        return self._cluster.helm(
            verb,
            release or self.release,
            str(chart),
            "--namespace",
            self.namespace,
            *values(self._images),
            *more,
            "--wait",
            "--timeout=4m",
        )

    def uninstall(self) -> str:
        return self._cluster.helm("uninstall", self.release, "--namespace", self.namespace, "--wait")
