"""Builds images that are not there yet, and keeps them as archives by what they are made from."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bed.build import cache, locked
from machine import packages
from machine.layout import MachineError

from images import base, pip_settings
from images.plan import ROOT, Image, base_reference, key
from images.store import Store

Say = Callable[[str], None]

#: Archives of an image that are kept, the last used ones.
KEPT = 3
#: Bytes of buildah's storage; with more it begins anew.
STORAGE = 12 * 10**9


@dataclass(frozen=True)
class Built:
    """An image that is there.

    Attributes:
        name, reference: As in its `Image`.
        archive: An OCI archive that gives it this reference.
        digest: Of its configuration: the image id of a node.
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


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def build(
    images: Sequence[Image], environ: Mapping[str, str] = os.environ, say: Say = _print, root: Path = ROOT
) -> dict[str, Built]:
    """The images by name; builds what is missing: some minutes the first time, seconds where only sources changed.

    Raises MachineError where this machine cannot build them, or a step failed.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise MachineError("images are built as root on Linux, or by docker; use another mode")
    packages.install(packages.FOR_IMAGES, say)
    folder = cache(environ) / "images"
    work = Work(folder, base_reference(root), environ, say)
    with locked(folder, say, "images"):
        built = {image.name: work.archive(image) for image in images}
        work.prune()
    return built


def store(environ: Mapping[str, str] = os.environ) -> Store:
    """buildah's storage, in which built images are as well."""
    folder = cache(environ) / "images"
    return Store(folder / "storage", folder / "build.log")


class Work:
    """One run in the cache's folder."""

    def __init__(self, folder: Path, base_name: str, environ: Mapping[str, str], say: Say) -> None:
        self._folder, self._base_name, self._environ, self._say = folder, base_name, environ, say
        self._store = store(environ)
        self._looked_at: set[str] = set()

    def archive(self, image: Image) -> Built:
        folder = self._archives(image) / key(image, base.key())
        noted = folder / "built.json"
        if noted.exists():
            os.utime(noted)
            content = json.loads(noted.read_text())
            return Built(**{**content, "archive": Path(content["archive"])})
        self._in_store(image)
        begun = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{image.name}.tar"
        unfinished = folder / "unfinished.tar"
        unfinished.unlink(missing_ok=True)
        self._store.push(image.reference, unfinished)
        unfinished.rename(path)
        stored = self._store.find(image.reference)
        assert stored is not None
        size = self._store.size(image.reference)
        built = Built(image.name, image.reference, path, stored.id, size, path.stat().st_size)
        noted.write_text(json.dumps({**asdict(built), "archive": str(path)}))
        self._say(f"images: {image.name} packed in {time.monotonic() - begun:.0f} s: {built}")
        return built

    def prune(self) -> None:
        """Takes away archives that were not used for long, and a storage that grew too large."""
        for archives in (self._folder / "archives").iterdir():
            folders = [folder for folder in archives.iterdir() if folder.is_dir()]
            folders.sort(key=lambda folder: _used(folder), reverse=True)
            for folder in folders[KEPT:]:
                shutil.rmtree(folder)
        if self._looked_at and self._store.used() > STORAGE:
            self._say(f"images: buildah's storage has more than {STORAGE / 1e9:.0f} GB; it begins anew")
            self._store.remove()

    def _in_store(self, image: Image) -> None:
        """Builds it, and first what it is made from, where buildah does not have it as it is now."""
        if image.reference in self._looked_at:
            return
        if image.reference != self._base_name:
            self._in_store(image.parent or self._base())
        self._looked_at.add(image.reference)
        wanted = f"{image.reference} {key(image, base.key())}"
        noted = self._store.folder / "keys" / image.name
        if noted.exists() and noted.read_text() == wanted and self._store.find(image.reference):
            return
        begun = time.monotonic()
        with pip_settings.secrets(self._environ) as secrets:
            self._store.build(image, secrets, self._say)
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.write_text(wanted)
        self._say(f"images: {image.name} built in {time.monotonic() - begun:.0f} s")

    def _base(self) -> Image:
        return base.base(self._base_name, self._folder / "base", self._folder / "build.log", self._say)

    def _archives(self, image: Image) -> Path:
        return self._folder / "archives" / image.name


def _used(folder: Path) -> float:
    noted = folder / "built.json"
    return noted.stat().st_mtime if noted.exists() else 0.0
