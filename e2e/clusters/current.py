"""The cluster that the user's KUBECONFIG names: the run makes namespaces in it, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from clusters.cluster import Ability, Cluster

#: What has to be there already, and what brings it.
NEEDED = {
    "servepipelines.servepipe.dev": "servepipe's chart (charts/servepipe) brings its CRD and its operator",
    "rayclusters.ray.io": "KubeRay's chart brings it",
}


class CurrentError(Exception):
    """It cannot be used; the message says why, and what to do."""


class Current(Cluster):
    """servepipe's CRD and operator, KubeRay and the images have to be there already."""

    mode = "current"
    abilities: frozenset[Ability] = frozenset()

    def __init__(self, kubeconfig: Path, binaries: Mapping[str, Path], folder: Path) -> None:
        installed = {name: Path(found) for name in ("kubectl", "helm") if (found := shutil.which(name))}
        super().__init__(kubeconfig, {**binaries, **installed}, folder)
        # The user's own: a plug-in that logs in is on their PATH, and its files are in their home.
        self.environment = dict(os.environ)
        self._check()

    def _check(self) -> None:
        where = f"the cluster of KUBECONFIG={self.kubeconfig}"
        try:
            asked = self.kubectl("version", "--request-timeout=20s", check=False, timeout=40)
            trouble = asked.stderr.strip() if asked.returncode else ""
        except subprocess.TimeoutExpired:
            trouble = "kubectl version did not end within 40 s"
        if trouble:
            raise CurrentError(f"{where} does not answer: {trouble}\nSee that `kubectl version` works first.")
        for resource, brings in NEEDED.items():
            if not self.serves(resource):
                raise CurrentError(f"{where} has no {resource}: {brings}, and this run installs nothing in it.")
        if self.kubectl("auth", "can-i", "create", "namespaces", check=False).returncode:
            raise CurrentError(f"{where}: you may not create namespaces there, and every test makes one of its own.")

    def load(self, archives: Sequence[Path]) -> None:
        """Nothing: the cluster's nodes pull them, or have them."""

    def down(self) -> None:
        """Nothing: the namespaces go with the tests that made them."""
