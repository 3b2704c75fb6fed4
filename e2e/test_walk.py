"""The commands of the documentation, run as a reader would: what a page shows is what comes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chart_older import NAME
from clusters.cluster import Ability, Cluster
from image_set import ImageSet
from installation import RELEASE, Helm
from resources import ROOT
from walk import walk

Say = Callable[[str], None]
PAGES = ("install.md", "first-pipeline.md", "operate.md")
#: Steps of the pages that have been done here in another way.
DONE = ("images", "cluster", "kuberay", "load")
#: Namespaces that the pages make and leave, as their reader goes on.
MADE = ("shop",)


@pytest.mark.needs(Ability.CLUSTER_OBJECTS)
def test_from_install_to_operating(cluster: Cluster, helm: Helm, images: ImageSet, say: Say, tmp_path: Path) -> None:
    images.bring("operator", "runtime", "diamond")
    helm.uninstall()
    cluster.kubectl("delete", "crd", NAME, "--timeout=60s", timeout=70)
    cluster.kubectl("delete", "namespace", helm.namespace, "--timeout=120s", timeout=130)
    helm.release = RELEASE  # as the pages call it
    programs, work = tmp_path / "bin", tmp_path / "work"
    for folder in (programs, work):
        folder.mkdir()
    for name, path in cluster.binaries.items():
        (programs / name).symlink_to(path)
    for name in ("examples", "charts", "docs"):
        (work / name).symlink_to(ROOT / name)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "KUBECONFIG": str(cluster.kubeconfig),
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }
    instead = dict.fromkeys(DONE, "")
    try:
        for page in PAGES:
            done = walk([ROOT / "docs" / page], instead=instead, cwd=work, environment=environment, say=say)
            say(f"e2e: docs/{page}: {done} commands as it says")
    finally:
        for namespace in MADE:
            cluster.kubectl("delete", "svp", "--all", "-n", namespace, "--timeout=120s", timeout=130)
            cluster.delete_namespace(namespace)
