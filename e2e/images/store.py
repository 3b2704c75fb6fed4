"""buildah, with all that it keeps in one folder, for where there is no Docker engine and no registry.

Each command runs in mounts of its own: what buildah mounts goes with it, and the paths that it has fixed
(/run/containers and /var/lib/containers) lead into the folder.
"""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from machine.layout import MachineError

from images import base
from images.plan import Image, buildah_build

Say = Callable[[str], None]

#: Bytes of buildah's storage; with more it begins anew.
LIMIT = 12 * 10**9
#: Paths that are buildah's own, and the part of the folder that stands for each.
FIXED = {"/var/lib/containers": "lib", "/run/containers": "run"}
#: Binds them, then becomes the command: `sh -c SCRIPT sh FROM TO FROM TO -- COMMAND...`.
_SCRIPT = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit; shift 2; done; shift; exec "$@"'
_UNPACK = """
container=$(buildah from "oci-archive:$1") || exit
trap 'buildah rm "$container" >&2' EXIT
cp -a "$(buildah mount "$container")" "$2"
buildah inspect "$container"
"""


class Store:
    """An engine of `images.build`.

    Args:
        folder: Absolute.
        base_name: The image that Dockerfiles begin with, for which a stand-in is made.
    """

    def __init__(self, folder: Path, base_name: str) -> None:
        self._folder, self._base_name = folder, base_name
        self._storage, self._log = folder / "storage", folder / "build.log"

    def base(self, say: Say) -> Image | None:
        return base.base(self._base_name, self._folder / "base", self._log, say)

    def base_key(self) -> str:
        return base.key()

    def build(self, image: Image, secrets: Mapping[str, Path], say: Say) -> None:
        with self._prefix() as prefix, self._log.open("a") as log:
            process = subprocess.Popen(
                [*prefix, *buildah_build(image, secrets)],
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert process.stdout is not None
            begun = last = time.monotonic()
            said: list[str] = []
            with process:
                try:
                    for line in process.stdout:
                        said.append(line.rstrip())
                        log.write(line)
                        if time.monotonic() - last > 15:
                            last = time.monotonic()
                            step = next((text for text in reversed(said) if "STEP " in text), said[-1])
                            say(f"images: {image.name}: {last - begun:.0f} s, {step[:100]}")
                except BaseException:
                    process.terminate()
                    raise
        if process.returncode != 0:
            end = "\n".join(said[-30:])
            raise MachineError(
                f"`buildah build` of {image.name} ({image.context}) failed; all is in {self._log}:\n{end}"
            )

    def find(self, reference: str) -> str | None:
        done = self._run(["buildah", "inspect", "--type=image", reference], check=False)
        return str(json.loads(done.stdout)["FromImageID"]) if done.returncode == 0 else None

    def size(self, reference: str) -> int:
        done = self._run(["buildah", "images", "--json", reference])
        return bytes_of(json.loads(done.stdout)[0]["size"])

    def save(self, image: Image, path: Path) -> None:
        # zstd takes half of gzip's time, and is smaller.
        target = f"oci-archive:{path}:{image.reference}"
        self._run(["buildah", "push", "--quiet", "--compression-format=zstd", image.reference, target])

    def unpack(self, archive: Path, folder: Path) -> dict[str, Any]:
        """All files of the image in an archive, with their owners, into a folder that is made.

        Returns:
            Its configuration: environment, user, labels and so on, as the OCI's specification says.
        """
        done = self._run(["sh", "-c", _UNPACK, "sh", str(archive), str(folder)])
        config: dict[str, Any] = json.loads(done.stdout)["OCIv1"]["config"]
        return config

    def trim(self, say: Say) -> None:
        done = subprocess.run(["du", "--summarize", "--block-size=1", self._storage], capture_output=True, text=True)
        if int(done.stdout.split()[0]) > LIMIT:
            say(f"images: buildah's storage has more than {LIMIT / 1e9:.0f} GB; it begins anew")
            shutil.rmtree(self._storage)

    def _run(self, command: list[str], check: bool = True) -> subprocess.CompletedProcess[str]:
        with self._prefix() as prefix:
            done = subprocess.run(
                [*prefix, *command], env=self._environ(), stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
        if check and done.returncode != 0:
            raise MachineError(f"`{' '.join(command)}` failed:\n{(done.stdout + done.stderr)[-2000:]}")
        return done

    @contextlib.contextmanager
    def _prefix(self) -> Iterator[list[str]]:
        """What a command begins with, so that it runs in mounts of its own."""
        binds: list[str] = []
        made: list[Path] = []
        for name, part in FIXED.items():
            fixed, ours = Path(name), self._storage / part
            ours.mkdir(parents=True, exist_ok=True)
            if not fixed.exists():
                fixed.mkdir(parents=True, exist_ok=True)
                made.append(fixed)
            binds += [str(ours), str(fixed)]
        try:
            yield ["unshare", "--mount", "--propagation=private", "sh", "-c", _SCRIPT, "sh", *binds, "--"]
        finally:
            for fixed in made:
                with contextlib.suppress(OSError):  # somebody put something into it
                    fixed.rmdir()

    def _environ(self) -> dict[str, str]:
        """The caller's, but for where things lie and how layers are kept."""
        temporary = self._storage / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"
        ours = {"TMPDIR": str(temporary), "HOME": str(self._storage), "STORAGE_DRIVER": driver(), "PATH": path}
        return {**os.environ, **ours}


def driver(filesystems: str | None = None) -> str:
    """Layers by overlayfs where the kernel has it, else copied, which takes several times the space and time.

    Args:
        filesystems: As /proc/filesystems, which it is by default.
    """
    known = Path("/proc/filesystems").read_text() if filesystems is None else filesystems
    return "overlay" if "overlay" in known.split() else "vfs"


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def bytes_of(said: str) -> int:
    """Of a size as buildah writes it: `573 MB`."""
    number, unit = said.split()
    return round(float(number) * _UNITS[unit.upper()])
