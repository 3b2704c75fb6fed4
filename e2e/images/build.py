"""Builds images that are not there yet, and keeps them as archives by what they are made from."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

from bed.build import cache, locked
from machine import packages
from machine.layout import MachineError

from images import pip_settings
from images.docker import Docker
from images.plan import ROOT, Image, base_reference, key
from images.store import Store

Say = Callable[[str], None]
Tool = Literal["buildah", "docker"]

#: Archives of an image that are kept, the last used ones.
KEPT = 3


@dataclass(frozen=True)
class Built:
    """An image that is there.

    Attributes:
        name, reference: As in its `Image`.
        archive: Gives it this reference; for `ctr images import` and `kind load image-archive`.
        digest: Of its configuration: the image id of a node, without the algorithm.
        size, packed: Bytes of all its files, and of the archive.
    """

    name: str
    reference: str
    archive: Path
    digest: str
    size: int
    packed: int

    def __str__(self) -> str:
        sizes = f"{self.size / 1e6:.0f} MB, {self.packed / 1e6:.0f} MB packed"
        return f"{self.reference} sha256:{self.digest[:12]} {sizes}: {self.archive}"


class Engine(Protocol):
    """What makes images and keeps them, and the layers that they have in common."""

    def base(self, say: Say) -> Image | None:
        """What has to be built below images without a parent, if it cannot be pulled."""

    def base_key(self) -> str:
        """A hash of what that is made from."""

    def build(self, image: Image, secrets: Mapping[str, Path], say: Say) -> None:
        """Steps that were done before with the same files are not done again. Raises MachineError."""

    def find(self, reference: str) -> str | None:
        """The digest of an image's configuration; None where it is not there."""

    def size(self, reference: str) -> int:
        """Bytes of all files of an image that is there."""

    def save(self, image: Image, path: Path) -> None:
        """Writes an archive. Raises MachineError."""

    def trim(self, say: Say) -> None:
        """Called after something was built: it may have grown too large."""


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def build(
    images: Sequence[Image],
    tool: Tool = "buildah",
    environ: Mapping[str, str] = os.environ,
    say: Say = _print,
    root: Path = ROOT,
) -> dict[str, Built]:
    """The images by name; builds what is missing: some minutes the first time, about one where only sources changed.

    Args:
        root: The project's folder, whose Dockerfile names the base.

    Raises MachineError where this machine cannot build them, or a step failed.
    """
    folder = cache(environ) / "images"
    engine: Engine = Docker() if tool == "docker" else buildah(environ, say, root)
    with locked(folder, say, "images"):
        work = _Work(folder / tool, engine, environ, say)
        built = {image.name: work.archive(image) for image in images}
        work.prune()
    return built


def buildah(environ: Mapping[str, str] = os.environ, say: Say = _print, root: Path = ROOT) -> Store:
    """buildah's storage of the cache. Raises MachineError where this machine cannot have it."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise MachineError("without Docker, images are built by root on Linux; use another mode")
    packages.install(packages.FOR_IMAGES, say)
    return Store(cache(environ) / "images", base_reference(root))


class _Work:
    """One run in the cache's folder of an engine."""

    def __init__(self, folder: Path, engine: Engine, environ: Mapping[str, str], say: Say) -> None:
        self._folder, self._engine, self._environ, self._say = folder, engine, environ, say
        self._looked_at: set[str] = set()

    def archive(self, image: Image) -> Built:
        folder = self._folder / "archives" / image.name / key(image, self._engine.base_key())
        noted = folder / "built.json"
        if noted.exists():
            os.utime(noted)  # by which the last used are known
            content = json.loads(noted.read_text())
            return Built(**{**content, "archive": Path(content["archive"])})
        self._make(image)
        begun = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        path, unfinished = folder / f"{image.name}.tar", folder / "unfinished.tar"
        unfinished.unlink(missing_ok=True)
        self._engine.save(image, unfinished)
        unfinished.rename(path)
        digest = self._engine.find(image.reference)
        assert digest is not None  # it was just saved
        size = self._engine.size(image.reference)
        built = Built(image.name, image.reference, path, digest, size, path.stat().st_size)
        noted.write_text(json.dumps({**asdict(built), "archive": str(path)}))
        self._say(f"images: {image.name} packed in {time.monotonic() - begun:.0f} s: {built}")
        return built

    def prune(self) -> None:
        """Takes away archives that were not used for long."""
        for archives in (self._folder / "archives").iterdir():
            for folder in sorted(archives.iterdir(), key=_used, reverse=True)[KEPT:]:
                shutil.rmtree(folder)
        if self._looked_at:
            self._engine.trim(self._say)

    def _make(self, image: Image) -> None:
        """Builds it, and first what it is made from, where the engine does not have it as it is now."""
        if image.reference in self._looked_at:
            return
        self._looked_at.add(image.reference)
        below = image.parent or self._engine.base(self._say)
        if below is not None and below.reference != image.reference:
            self._make(below)
        noted = self._folder / "keys" / image.name
        wanted = f"{image.reference} {key(image, self._engine.base_key())} "
        found = self._engine.find(image.reference)
        if found is not None and noted.exists() and noted.read_text() == wanted + found:
            return
        begun = time.monotonic()
        with pip_settings.secrets(self._environ) as secrets:
            self._engine.build(image, secrets, self._say)
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.write_text(f"{wanted}{self._engine.find(image.reference)}")
        self._say(f"images: {image.name} built in {time.monotonic() - begun:.0f} s")


def _used(folder: Path) -> float:
    noted = folder / "built.json"
    return noted.stat().st_mtime if noted.exists() else 0.0
