"""The cluster that the user's KUBECONFIG names: the run makes namespaces in it, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from clusters.cluster import Ability, Cluster


class Current(Cluster):
    """servepipe's CRD and operator, KubeRay and the images have to be there already."""

    mode = "current"
    abilities: frozenset[Ability] = frozenset()

    def __init__(self, kubeconfig: Path, binaries: Mapping[str, Path], folder: Path) -> None:
        installed = {name: Path(found) for name in ("kubectl", "helm") if (found := shutil.which(name))}
        super().__init__(kubeconfig, {**binaries, **installed}, folder)

    def load(self, archives: Sequence[Path]) -> None:
        """Nothing: the cluster's nodes pull them, or have them."""

    def down(self) -> None:
        """Nothing: the namespaces go with the tests that made them."""
