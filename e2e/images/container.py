"""A container of an image as the kubelet would start it under Pod Security's `restricted`, but without a cluster.

The root file system is read-only, the user is a number, no capability is left and none can be got; /tmp is an empty
folder. Only the seccomp profile is missing, which is containerd's.
"""

import json
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAMESPACES = ("pid", "ipc", "uts", "mount", "network")
_CAPABILITIES = ("bounding", "effective", "inheritable", "permitted", "ambient")


@dataclass(frozen=True)
class Unpacked:
    """An image's files and configuration.

    Attributes:
        rootfs: The folder with its files.
        config: As the OCI's specification says.
    """

    rootfs: Path
    config: Mapping[str, Any]

    @property
    def command(self) -> list[str]:
        """What it starts by itself."""
        return [*(self.config.get("Entrypoint") or []), *(self.config.get("Cmd") or [])]

    @property
    def user(self) -> str:
        return str(self.config.get("User", ""))

    def run(
        self, *command: str, user: str | None = None, script: str = "", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end; its network is a loopback of its own.

        Args:
            user: `uid:gid`; None: the image's.
            script: For its standard input.
            timeout: Seconds. The container is killed after them, and TimeoutExpired raised.
        """
        name = f"servepipe-{uuid.uuid4().hex[:12]}"
        with tempfile.TemporaryDirectory(prefix="servepipe-container-") as folder:
            spec = specification(self, command, user or self.user)
            (Path(folder) / "config.json").write_text(json.dumps(spec))
            runc = ["runc", "--root", f"{folder}/state"]
            try:
                return subprocess.run(
                    [*runc, "run", "--bundle", folder, name],
                    input=script,
                    capture_output=True,
                    text=True,
                    timeout=timeout,
                )
            finally:
                subprocess.run([*runc, "delete", "--force", name], capture_output=True)


def specification(image: Unpacked, command: Sequence[str], user: str) -> dict[str, Any]:
    """The configuration of the container, as the OCI's specification of runtimes says."""
    uid, _, gid = user.partition(":")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": int(uid), "gid": int(gid or 0)},
            "args": list(command),
            "env": list(image.config.get("Env") or []),
            "cwd": image.config.get("WorkingDir") or "/",
            "noNewPrivileges": True,
            "capabilities": {kind: [] for kind in _CAPABILITIES},
        },
        "root": {"path": str(image.rootfs), "readonly": True},
        "hostname": "container",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=64k"),
            _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
            _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=512m"),
            _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            _mount("/tmp", "tmpfs", "nosuid", "nodev", "mode=1777"),
        ],
        "linux": {"namespaces": [{"type": kind} for kind in _NAMESPACES]},
    }


def _mount(path: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": path, "type": kind, "source": kind, "options": list(options)}
