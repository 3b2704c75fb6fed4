"""Which images there are, what goes into them, and the commands that make them. Nothing here runs anything."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: All that `.dockerignore` lets through, and the two files that say what is done with it.
PROJECT = (
    ".dockerignore",
    "Dockerfile",
    "LICENSE",
    "README.md",
    "operator/src",
    "pyproject.toml",
    "requirements.lock",
    "scripts/select_lock.py",
    "sdk/src",
)
REGISTRY = "docker.io/servepipe"


@dataclass(frozen=True)
class Image:
    """An image to be built.

    Attributes:
        name: Short, in messages and file names.
        reference: Its whole name with registry and tag; Kubernetes takes `servepipe/x:1` for `docker.io/servepipe/x:1`.
        context: The folder with its Dockerfile.
        inputs: What of the folder goes into it: files, and folders with all that is in them.
        target: The stage of the Dockerfile; None: the last.
        arguments: Of the Dockerfile.
        parent: The image that it is made from, where that is one of ours.
    """

    name: str
    reference: str
    context: Path
    inputs: Sequence[str] = (".",)
    target: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    parent: "Image | None" = None


def project_images(root: Path = ROOT) -> dict[str, Image]:
    """`operator` and `runtime`, with the names that the chart and the operator take by default, and the examples'."""
    version = project_version(root)
    labels = {"VERSION": version}
    operator = Image("operator", f"{REGISTRY}/operator:{version}", root, PROJECT, "operator", labels)
    tag = f"{version}-ray{locked_version('ray', root)}"
    runtime = Image("runtime", f"{REGISTRY}/runtime:{tag}", root, PROJECT, "runtime", labels)
    examples = [on_runtime(name, root / "examples" / name, runtime, version) for name in ("diamond", "document_triage")]
    return {image.name: image for image in (operator, runtime, *examples)}


def on_runtime(name: str, folder: Path, runtime: Image, tag: str) -> Image:
    """The image of a folder with models, whose Dockerfile begins with `ARG RUNTIME` and `FROM ${RUNTIME}`.

    Args:
        name: As a part of its reference, too, where `_` becomes `-`.
    """
    reference = f"{REGISTRY}/example-{name.replace('_', '-')}:{tag}"
    return Image(name, reference, folder, arguments={"RUNTIME": runtime.reference}, parent=runtime)


def base_reference(root: Path = ROOT) -> str:
    """The image that the Dockerfile of the project begins with."""
    return _found(r"^ARG BASE=(\S+)$", root / "Dockerfile")


def project_version(root: Path = ROOT) -> str:
    return _found(r'^__version__ = "([^"]+)"$', root / "sdk/src/servepipe/__init__.py")


def locked_version(package: str, root: Path = ROOT) -> str:
    return _found(rf"^{re.escape(package)}==(\S+)", root / "requirements.lock")


def _found(pattern: str, path: Path) -> str:
    found = re.search(pattern, path.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{path} has no line like {pattern}")
    return found[1]


# -- what they are made from


def files(image: Image) -> Iterator[Path]:
    """All files that go into it, in a fixed order; without bytecode, as in the .dockerignore."""
    for name in image.inputs:
        path = image.context / name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in found if not file.is_dir() and "__pycache__" not in file.parts)


def key(image: Image, base: str) -> str:
    """A hash of all that decides what the image is.

    Args:
        base: The same of the base image.
    """
    digest = hashlib.sha256()
    above = key(image.parent, base) if image.parent else base
    digest.update(repr((above, image.reference, image.target, sorted(image.arguments.items()))).encode())
    for path in files(image):
        name, mode = path.relative_to(image.context).as_posix(), path.stat().st_mode & 0o777
        digest.update(f"{name}\0{mode}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


# -- the commands


def build_arguments(image: Image, secrets: Mapping[str, Path]) -> list[str]:
    """What follows `docker build` and `buildah build`.

    Args:
        secrets: Files that only steps see which ask for them, by id.
    """
    return [
        f"--file={image.context / 'Dockerfile'}",
        *([f"--target={image.target}"] if image.target else []),
        *(f"--build-arg={name}={value}" for name, value in sorted(image.arguments.items())),
        *(f"--secret=id={name},src={path}" for name, path in sorted(secrets.items())),
        f"--tag={image.reference}",
        str(image.context),
    ]


def docker_build(image: Image, secrets: Mapping[str, Path]) -> list[str]:
    return ["docker", "build", *build_arguments(image, secrets)]


def kind_load(images: Sequence[Image], cluster: str) -> list[str]:
    """Takes them from the Docker engine to the nodes of a kind cluster, layers that they share once."""
    return ["kind", "load", "docker-image", f"--name={cluster}", *(image.reference for image in images)]


def buildah_build(image: Image, secrets: Mapping[str, Path]) -> list[str]:
    """Steps run in a chroot, on the host's network: that needs no network of containers, and no rights in a sandbox."""
    options = ["--isolation=chroot", "--network=host", "--layers", "--pull-never", "--format=oci"]
    return ["buildah", "build", *options, *build_arguments(image, secrets)]
