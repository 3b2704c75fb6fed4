"""Pipelines as resources for the cluster: what `servepipe compile` makes of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from callers import Callers
from client import Answer, Client
from image_set import ImageSet
from world import Object, World

ROOT = Path(__file__).parents[1]
SHOP = Path(__file__).with_name("shop")
#: What fits on a machine with two cores.
SMALL = Path(__file__).with_name("manifests") / "small.yaml"


def compiled(file: str | Path, image: str, *overlays: Path) -> str:
    """Args:
    file: The Python file that builds it, from the project's folder on, and maybe `:` and the name of the App.
    image: Which has its code.
    overlays: On top of `SMALL`.
    """
    options = [word for overlay in (SMALL, *overlays) for word in ("-f", str(overlay))]
    done = subprocess.run(
        [Path(sys.executable).with_name("servepipe"), "compile", ROOT / file, *options, "--image", image],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


#: What the pods of a node that has its own are promised.
SMALL_POD = {
    "spec": {
        "containers": [{"name": "ray-worker", "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}}}],
    }
}
Version = Literal["one", "two", "checked"]


def second_version(folder: Path) -> Path:
    """The sources of the shop with another word in the tagger's module, in ``folder``."""
    shutil.copytree(SHOP, folder, ignore=shutil.ignore_patterns("__pycache__"))
    module = folder / "tagging.py"
    changed = module.read_text().replace('WORD = "one"', 'WORD = "two"')
    assert changed != module.read_text()
    module.write_text(changed)
    return folder


class Shop:
    """The pipeline ``shop`` in a namespace.

    Its versions: ``one``; ``two``, with another word in the tagger's module, which is in another image; ``checked``,
    with another graph of the same models.

    Args:
        second: The folder with the sources of version two.
    """

    def __init__(self, world: World, images: ImageSet, second: Path) -> None:
        self.world, self._images, self._second = world, images, second
        self._client = Client(world.cluster, world.namespace, images.runtime)

    def image(self, version: Version) -> str:
        return self._images.shop_two if version == "two" else self._images.shop

    def compiled(self, version: Version, *overlays: Path) -> str:
        folder = self._second if version == "two" else SHOP
        app = "checked" if version == "checked" else "app"
        return compiled(f"{folder / 'shop.py'}:{app}", self.image(version), *overlays)

    def code(self, version: Version, node: str) -> str:
        """The digest of a node's code."""
        found: Object = yaml.safe_load(self.compiled(version))
        return str(found["spec"]["nodes"][node]["code"])

    def callers(self, order: Object, answers: Sequence[object] = (), **options: Any) -> Callers:
        """Args: as of `Callers`."""
        world = self.world
        return Callers(
            world.cluster,
            world.namespace,
            self._images.runtime,
            url="http://shop:8000/",
            body=[order],
            answers=answers,
            **options,
        )

    def ask(self, order: Object) -> Answer:
        """What one order is answered."""
        return self._client.ask("http://shop:8000/", [order])
