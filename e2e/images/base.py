"""A stand-in for `python:3.11-slim-bookworm`, from Debian's packages: for where no image can be pulled.

Like that image it is a small Debian with `python`, `python3` and `pip` in /usr/local/bin, and no compiler. Its Python
is Debian's own, so packages lie in dist-packages instead of site-packages.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from machine.layout import MachineError

from images.plan import Image

Say = Callable[[str], None]

SUITE = "bookworm"
PYTHON = "python3.11"
PACKAGES = ("ca-certificates", "netbase", "tzdata", "python3", "python3-venv")
#: What Debian's slim images lack as well; and that Python is Debian's, so that pip should not touch it.
TAKEN_OUT = (
    "dev",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/lib/apt/lists",
    "var/log",
    f"usr/lib/{PYTHON}/EXTERNALLY-MANAGED",
)
KEPT_EMPTY = ("dev", "var/cache/apt/archives/partial", "var/lib/apt/lists/partial", "var/log/apt")
DOCKERFILE = """\
FROM scratch
ADD rootfs.tar /
ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
CMD ["python3"]
"""


def key() -> str:
    """A hash of what it is made from: all of that stands here."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def base(reference: str, folder: Path, log: Path, say: Say) -> Image:
    """The stand-in under the name `reference`; its files are made in `folder` if they are not there yet.

    Raises MachineError, with what the tool said.
    """
    whole = folder / key()
    if not whole.exists():
        shutil.rmtree(folder, ignore_errors=True)
        unfinished = folder / "unfinished"
        unfinished.mkdir(parents=True)
        rootfs = unfinished / "rootfs"
        say(f"images: no registry here: {reference} by debootstrap, once; about a minute, most of it for its packages")
        _bootstrap(rootfs, log)
        _like_python_images(rootfs, log)
        with tarfile.open(unfinished / "rootfs.tar", "w") as tar:
            tar.add(rootfs, ".")
        shutil.rmtree(rootfs)
        (unfinished / "Dockerfile").write_text(DOCKERFILE)
        unfinished.rename(whole)
    return Image("base", reference, whole)


def _bootstrap(rootfs: Path, log: Path) -> None:
    include = f"--include={','.join(PACKAGES)}"
    run(["debootstrap", "--variant=minbase", include, SUITE, str(rootfs)], log)


def _like_python_images(rootfs: Path, log: Path) -> None:
    for name in TAKEN_OUT:
        path = rootfs / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in KEPT_EMPTY:
        (rootfs / name).mkdir(parents=True)
    for name in ("python", "python3"):
        (rootfs / "usr/local/bin" / name).symlink_to(f"/usr/bin/{PYTHON}")
    # Debian ships pip's wheel for new virtual environments; it installs itself.
    (wheel,) = (rootfs / "usr/share/python-wheels").glob("pip-*.whl")
    inside = f"/{wheel.relative_to(rootfs)}"
    run(["chroot", str(rootfs), "python", f"{inside}/pip", "--isolated", "install", "--no-index", inside], log)


def run(command: list[str], log: Path) -> None:
    """Raises MachineError where it fails, with the end of `log`, which gets its output."""
    environ = {
        "PATH": f"/usr/local/bin:{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
    }
    environ |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    with log.open("a") as output:
        done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    if done.returncode != 0:
        raise MachineError(f"`{' '.join(command)}` failed:\n{log.read_text()[-2000:]}")
