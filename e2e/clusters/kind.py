"""A cluster of kind's, in Docker containers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bed.processes import wait_for

from clusters.cluster import Cluster

Say = Callable[[str], None]


class KindError(Exception):
    """kind or docker failed; the message is what they said."""


def create(name: str, kubeconfig: Path) -> list[str]:
    return ["kind", "create", "cluster", "--name", name, "--kubeconfig", str(kubeconfig), "--wait", "180s"]


def delete(name: str, kubeconfig: Path) -> list[str]:
    return ["kind", "delete", "cluster", "--name", name, "--kubeconfig", str(kubeconfig)]


def load(name: str, archive: Path) -> list[str]:
    return ["kind", "load", "image-archive", str(archive), "--name", name]


class Kind(Cluster):
    """A new one, called after the folder, which goes with the run."""

    mode = "kind"

    def __init__(self, name: str, binaries: Mapping[str, Path], folder: Path, say: Say) -> None:
        self._name, self._say = name, say
        kubeconfig = folder / "kubeconfig"
        say(f"kind: creating cluster {name}")
        try:
            _run(create(name, kubeconfig), 600)
        except BaseException:
            _run(delete(name, kubeconfig), 180)
            raise
        super().__init__(kubeconfig, binaries, folder)

    def load(self, archives: Sequence[Path]) -> None:
        for archive in archives:
            self._say(f"kind: loading {archive.stem}")
            _run(load(self._name, archive), 600)

    def restart_containerd(self) -> None:
        _run(["docker", "exec", f"{self._name}-control-plane", "systemctl", "restart", "containerd"], 120)

    @contextmanager
    def without_dns(self) -> Iterator[None]:
        dns = ("-n", "kube-system", "deployment/coredns")
        before = self.kubectl("get", *dns, "-o", "jsonpath={.spec.replicas}").stdout
        self.kubectl("scale", *dns, "--replicas=0")
        pods = ("-n", "kube-system", "pod", "-l", "k8s-app=kube-dns")
        try:
            wait_for("the pods of CoreDNS to be gone", lambda: self.find(*pods) == [], 60)
            yield
        finally:
            self.kubectl("scale", *dns, f"--replicas={before}")

    def down(self) -> None:
        _run(delete(self._name, self.kubeconfig), 180)


def _run(command: Sequence[str], timeout: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise KindError(f"`{' '.join(command)}` did not end within {timeout:g} s") from None
    if done.returncode != 0:
        raise KindError(f"`{' '.join(command)}` ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
