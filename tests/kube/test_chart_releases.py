"""Helm installs, upgrades and uninstalls the chart at a real API server; no pod runs, so nothing is waited for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bed.client import Object
from bed.control_plane import ControlPlane, load_crd
from bed.processes import wait_for
from chart import CHART
from chart_older import GENERATED, NAME, fields, older
from chart_render import Helm

Json = dict[str, Any]
CRD = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{NAME}"


class Releases:
    """Helm in one namespace."""

    def __init__(self, helm: Helm, plane: ControlPlane, namespace: str) -> None:
        self.helm = replace(helm, kubeconfig=plane.kubeconfig)
        self.plane, self.namespace = plane, namespace
        self.begun: set[str] = set()

    def install(self, release: str, values: Json | None = None, **more: Any) -> str:
        """What Helm says, the notes."""
        return self._done(self.try_install(release, values, **more))

    def try_install(self, release: str, values: Json | None = None, chart: Path = CHART, verb: str = "install") -> Any:
        self.begun.add(release)
        return self.helm.run(verb, release, str(chart), "--namespace", self.namespace, values=values or {})

    def upgrade(self, release: str, values: Json | None = None) -> str:
        return self._done(self.try_install(release, values, verb="upgrade"))

    def uninstall(self, release: str) -> str:
        self.begun.discard(release)
        return self._done(self.helm.run("uninstall", release, "--namespace", self.namespace))

    def adopt(self, refusal: str) -> None:
        """Does what a refusal says."""
        commands = re.findall(r"^ *kubectl (.*)$", refusal, flags=re.MULTILINE)
        assert len(commands) == 2, refusal
        for command in commands:
            self.plane.kubectl(*command.split())

    def crd(self) -> Object:
        return self.plane.api.get(CRD)

    @staticmethod
    def _done(done: Any) -> str:
        assert done.returncode == 0, done.stderr
        return str(done.stdout)


@pytest.fixture
def releases(helm: Helm, control_plane: ControlPlane, namespace: str) -> Iterator[Releases]:
    """At the end, no release is left and the CRD is nobody's."""
    releases = Releases(helm, control_plane, namespace)
    yield releases
    for release in list(releases.begun):
        releases.helm.run("uninstall", release, "--namespace", namespace)
    control_plane.install_crd(load_crd(GENERATED))


@pytest.fixture
def pipeline(control_plane: ControlPlane, namespace: str) -> str:
    """The path of a pipeline that nobody runs."""
    folder = f"/apis/servepipe.dev/v1alpha1/namespaces/{namespace}/servepipelines"
    graph = {
        "steps": [{"name": "out", "node": "m1", "args": [{"$input": []}]}],
        "output": {"$step": "out"},
    }
    spec = {"image": "shop/models:1", "nodes": {"m1": {"import": "shop:Model"}}, "graph": graph}
    kind = {"apiVersion": "servepipe.dev/v1alpha1", "kind": "ServePipeline"}
    control_plane.api.create(folder, {**kind, "metadata": {"name": "survivor"}, "spec": spec})
    return f"{folder}/survivor"


def test_a_release_from_install_to_the_next_one(releases: Releases, pipeline: str, tmp_path: Path) -> None:
    plane, namespace = releases.plane, releases.namespace
    uid = plane.api.get(pipeline)["metadata"]["uid"]

    # The CRD came with kubectl: Helm may not take it by itself.
    old = older(tmp_path)
    refused = releases.try_install("first", chart=old)
    assert refused.returncode != 0
    assert f"The CRD {NAME} is there already and belongs to no release of Helm" in refused.stderr
    assert "--set crds.enabled=false" in refused.stderr
    releases.adopt(refused.stderr)
    notes = releases.install("first", chart=old)
    assert "helm test first" in notes
    assert "is not known to this cluster" not in notes, "RayCluster is there"
    assert "paused" not in fields(releases.crd())
    assert "paused" not in plane.api.merge(pipeline, {"spec": {"paused": True}})["spec"]

    # An upgrade brings the new CRD; what was there before survives, and the new field works.
    releases.upgrade("first", {"replicas": 3})
    assert "paused" in fields(releases.crd())
    wait_for(
        "the new field to be kept",
        lambda: plane.api.merge(pipeline, {"spec": {"paused": True}})["spec"].get("paused"),
        30,
    )
    deployment = plane.api.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/first-servepipe")
    assert deployment["spec"]["replicas"] == 3

    # What a release lets go of stays too.
    assert "crds.enabled=false" in releases.upgrade("first", {"crds": {"enabled": False}})
    assert releases.crd()
    releases.upgrade("first", {"crds": {"enabled": True}})  # with no value at all Helm would take those before
    assert "kept due to the resource policy" in releases.uninstall("first")
    assert plane.api.get(pipeline)["metadata"]["uid"] == uid
    assert plane.api.find(f"/apis/apps/v1/namespaces/{namespace}/deployments/first-servepipe") is None

    # The same name again: it is still its own.
    releases.install("first")
    releases.uninstall("first")

    # Another name: Helm says how to adopt.
    refused = releases.try_install("second")
    assert f"belongs to release first in namespace {namespace}" in refused.stderr
    releases.adopt(refused.stderr)
    releases.install("second")
    annotations = releases.crd()["metadata"]["annotations"]
    assert annotations["meta.helm.sh/release-name"] == "second"
    assert plane.api.get(pipeline)["metadata"]["uid"] == uid


def test_two_releases_share_a_cluster(releases: Releases) -> None:
    refusal = releases.try_install("one").stderr
    releases.adopt(refusal)
    releases.install("one")
    refused = releases.try_install("other", {"crds": {"enabled": False}})
    assert f'Installation "servepipe" is that of release one in namespace {releases.namespace}' in refused.stderr
    assert "--set installation=NAME" in refused.stderr
    refused = releases.try_install("other", {"installation": "other"})
    assert f"belongs to release one in namespace {releases.namespace}" in refused.stderr
    notes = releases.install("other", {"installation": "other", "crds": {"enabled": False}})
    assert 'installation "other"' in notes
    assert "crds.enabled=false" in notes
    releases.uninstall("other")
    assert releases.crd()["metadata"]["annotations"]["meta.helm.sh/release-name"] == "one"


def test_a_wrong_value_changes_nothing(releases: Releases) -> None:
    refused = releases.try_install("wrong", {"crds": {"enabled": False}, "replica": 1})
    assert refused.returncode != 0
    assert "additional properties 'replica' not allowed" in refused.stderr
    path = f"/api/v1/namespaces/{releases.namespace}/serviceaccounts/wrong-servepipe"
    assert releases.plane.api.find(path) is None
