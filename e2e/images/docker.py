"""The Docker engine of this machine; it pulls the base itself."""

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from machine.layout import MachineError

from images.plan import Image, docker_build, docker_save

Say = Callable[[str], None]


class Docker:
    """An engine of `images.build`; layers and images are the engine's to keep."""

    def base(self, say: Say) -> Image | None:
        return None

    def base_key(self) -> str:
        return "pulled"

    def build(self, image: Image, secrets: Mapping[str, Path], say: Say) -> None:
        say(f"images: docker builds {image.name}")
        _run(docker_build(image, secrets))

    def find(self, reference: str) -> str | None:
        done = subprocess.run(["docker", "image", "inspect", reference], capture_output=True, text=True)
        return str(json.loads(done.stdout)[0]["Id"]).removeprefix("sha256:") if done.returncode == 0 else None

    def size(self, reference: str) -> int:
        return int(json.loads(_run(["docker", "image", "inspect", reference]))[0]["Size"])

    def save(self, image: Image, path: Path) -> None:
        _run(docker_save(image, path))

    def trim(self, say: Say) -> None:
        """The engine has its own garbage collection."""


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise MachineError(f"`{' '.join(command)}` failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout
