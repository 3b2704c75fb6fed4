"""What comes from Debian: installed when it is missing, and only when a cluster on this machine was asked for."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from machine.configs import CNI_PLUGINS
from machine.layout import MachineError

Say = Callable[[str], None]

#: A program or file of each package. Who builds images installs `FOR_IMAGES` too.
NEEDED: Mapping[str, str] = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": f"{CNI_PLUGINS}/bridge",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "iproute2": "ip",
}
#: Who wants NetworkPolicies enforced installs these too.
FOR_POLICIES: Mapping[str, str] = {"ipset": "ipset"}
FOR_IMAGES: Mapping[str, str] = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "debian-archive-keyring": "/usr/share/keyrings/debian-archive-keyring.gpg",
}


def missing(needed: Mapping[str, str]) -> list[str]:
    """The packages whose program is neither on PATH nor where daemons are."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [
        package
        for package, proof in needed.items()
        if not (Path(proof).exists() if proof.startswith("/") else shutil.which(proof, path=path))
    ]


def install(needed: Mapping[str, str], say: Say) -> None:
    """Raises MachineError, with what apt said."""
    packages = missing(needed)
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise MachineError(f"{', '.join(packages)} missing and no apt-get here; install them, or use another mode")
    say(f"machine: apt-get install {' '.join(packages)}")
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", "--quiet", *command],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise MachineError(f"`apt-get {' '.join(command)}` failed:\n{(done.stdout + done.stderr)[-2000:]}")
    still = missing(needed)
    if still:
        raise MachineError(f"apt-get installed {', '.join(packages)}, but not what is needed of {', '.join(still)}")
