"""The images that tests need, built and brought to the cluster when the first test asks for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from images.build import build
from images.plan import REGISTRY, on_runtime, project_images, project_version

if TYPE_CHECKING:
    from clusters.cluster import Cluster

Say = Callable[[str], None]
HERE = Path(__file__).parent


class ImageSet:
    """References of images that are on every node of the cluster once they were asked for.

    On a cluster of the user's they have to be there already, or where its nodes pull them from.

    Args:
        second_shop: The sources of the shop's second version, see `resources.second_version`.
    """

    def __init__(self, cluster: Cluster, second_shop: Path, say: Say) -> None:
        self._cluster, self._say = cluster, say
        self._plans = project_images()
        for name, folder in (("shop", HERE / "shop"), ("shop_two", second_shop)):
            reference = f"{REGISTRY}/e2e-{name.replace('_', '-')}:{project_version()}"
            self._plans[name] = on_runtime(name, reference, folder, self._plans["runtime"])
        self._there: set[str] = set()

    def bring(self, *names: str) -> None:
        """See to these; one after the other would cost the builder its start each time.

        Raises:
            MachineError, KindError: They cannot be built here, or a step failed.
        """
        plans = [self._plans[name] for name in names if name not in self._there]
        if not plans:
            return
        begun = time.monotonic()
        if self._cluster.mode != "current":
            built = build(plans, "docker" if self._cluster.mode == "kind" else "buildah", say=self._say)
            done = time.monotonic()
            self._cluster.load([one.archive for one in built.values()])
            told = f"built in {done - begun:.0f} s, loaded in {time.monotonic() - done:.0f} s"
            self._say(f"e2e: images {', '.join(built)}: {told}")
        self._there.update(names)

    @property
    def operator(self) -> str:
        return self._reference("operator")

    @property
    def runtime(self) -> str:
        return self._reference("runtime")

    @property
    def diamond(self) -> str:
        return self._reference("diamond")

    @property
    def triage(self) -> str:
        return self._reference("document_triage")

    @property
    def shop(self) -> str:
        """The pipeline that tests disturb; see `resources.Shop`."""
        return self._reference("shop")

    @property
    def shop_two(self) -> str:
        return self._reference("shop_two")

    def _reference(self, name: str) -> str:
        self.bring(name)
        return self._plans[name].reference
