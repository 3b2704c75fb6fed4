"""buildah with all that it keeps in one folder.

Each command runs in mounts of its own: what buildah mounts goes with it, and the paths that it has fixed
(/run/containers and /var/lib/containers) lead into the folder.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine.layout import MachineError

from images.plan import Image, buildah_build

Say = Callable[[str], None]

#: Paths that are buildah's own, and the part of the folder that stands for each.
FIXED = {"/var/lib/containers": "lib", "/run/containers": "run"}
#: Binds them, then becomes the command: `sh -c SCRIPT sh FROM TO FROM TO -- COMMAND...`.
_SCRIPT = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit; shift 2; done; shift; exec "$@"'


@dataclass(frozen=True)
class Stored:
    """An image that is there.

    Attributes:
        id: The digest of its configuration, without the algorithm.
        config: Its environment, user, labels and so on, as the OCI's specification says.
    """

    id: str
    config: dict[str, Any]


class Store:
    """The storage in a folder.

    Attributes:
        folder: Absolute.
        log: Gets what buildah says.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log

    def build(self, image: Image, secrets: Mapping[str, Path], say: Say) -> None:
        """Builds an image; steps that were done before with the same files are not done again.

        Raises MachineError, with the end of what was said.
        """
        command = self._command(buildah_build(image, secrets))
        begun = last = time.monotonic()
        said: list[str] = []
        with (
            subprocess.Popen(
                command,
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process,
            self.log.open("a") as log,
        ):
            assert process.stdout is not None
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
            raise MachineError(f"`buildah build` of {image.name} ({image.context}) failed; {self.log} has all:\n{end}")

    def find(self, reference: str) -> Stored | None:
        done = self._run(["buildah", "inspect", "--type=image", reference], check=False)
        if done.returncode != 0:
            return None
        found = json.loads(done.stdout)
        return Stored(found["FromImageID"], found["OCIv1"]["config"])

    def size(self, reference: str) -> int:
        """Bytes of all its files."""
        done = self._run(["buildah", "images", "--json", reference])
        return _bytes(json.loads(done.stdout)[0]["size"])

    def push(self, reference: str, path: Path) -> None:
        """Writes an OCI archive; zstd packs in half of gzip's time, and smaller."""
        self._run(
            ["buildah", "push", "--quiet", "--compression-format=zstd", reference, f"oci-archive:{path}:{reference}"]
        )

    def unpack(self, archive: Path, folder: Path) -> None:
        """All files of the image in an OCI archive, with their owners, into a folder that is made."""
        script = """
            container=$(buildah from "oci-archive:$1") || exit
            trap 'buildah rm "$container"' EXIT
            cp -a "$(buildah mount "$container")" "$2"
        """
        self._run(["sh", "-c", script, "sh", str(archive), str(folder)])

    def used(self) -> int:
        """Bytes on the disk."""
        done = subprocess.run(["du", "--summarize", "--block-size=1", self.folder], capture_output=True, text=True)
        return int(done.stdout.split()[0])

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, command: list[str], check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self._command(command), env=self._environ(), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if check and done.returncode != 0:
            raise MachineError(f"`{' '.join(command)}` failed:\n{(done.stdout + done.stderr)[-2000:]}")
        return done

    def _command(self, command: list[str]) -> list[str]:
        binds: list[str] = []
        for fixed, part in FIXED.items():
            (self.folder / part).mkdir(parents=True, exist_ok=True)
            Path(fixed).mkdir(parents=True, exist_ok=True)
            binds += [str(self.folder / part), fixed]
        return ["unshare", "--mount", "--propagation=private", "sh", "-c", _SCRIPT, "sh", *binds, "--", *command]

    def _environ(self) -> dict[str, str]:
        """The host's, but for where things lie: buildah takes neither storage nor registries of its user's choice."""
        temporary = self.folder / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        ours = {"TMPDIR": str(temporary), "HOME": str(self.folder), "STORAGE_DRIVER": driver()}
        return {**os.environ, **ours, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"}


def driver(filesystems: str | None = None) -> str:
    """Layers by overlayfs where the kernel has it, else copied, which takes several times the space and time.

    Args:
        filesystems: As /proc/filesystems, which it is by default.
    """
    known = Path("/proc/filesystems").read_text() if filesystems is None else filesystems
    return "overlay" if "overlay" in known.split() else "vfs"


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def _bytes(said: str) -> int:
    number, unit = said.split()
    return round(float(number) * _UNITS[unit.upper()])
