"""What a cluster offers to tests, whichever it is."""

from __future__ import annotations

import json
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import Any

from bed.control_plane import run_kubectl
from bed.processes import wait_for

Object = dict[str, Any]


class Ability(StrEnum):
    """What tests may do to a cluster beside making namespaces; the value is the reason for which they are skipped."""

    CLUSTER_OBJECTS = "it makes objects that belong to no namespace"
    NODES = "it disturbs a node and its daemons"
    DNS = "it disturbs the cluster's DNS"


class Cluster(ABC):
    """Attributes:
    kubeconfig: Of its administrator (of the user, for `current`).
    binaries: kubectl and helm.
    folder: Where the run may write.
    environment: Of the programs that work with it.
    abilities: What tests may do to it.
    """

    mode: str
    abilities: frozenset[Ability] = frozenset(Ability)

    def __init__(self, kubeconfig: Path, binaries: Mapping[str, Path], folder: Path) -> None:
        self.kubeconfig, self.binaries, self.folder = kubeconfig, binaries, folder
        self.environment: Mapping[str, str] = {"HOME": str(folder), "PATH": "/usr/bin:/bin"}

    @abstractmethod
    def load(self, archives: Sequence[Path]) -> None:
        """Make the images of these archives known to every node."""

    @abstractmethod
    def down(self) -> None:
        """Take away all that the run made of it."""

    def restart_containerd(self) -> None:
        """On a node with pods; needs `Ability.NODES`. Returns when it works again."""
        raise NotImplementedError(f"containerd cannot be restarted on {self.mode}")

    def without_dns(self) -> AbstractContextManager[None]:
        """No name is answered in the block; needs `Ability.DNS`."""
        raise NotImplementedError(f"DNS cannot be stopped on {self.mode}")

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """`check` makes a failure an AssertionError with its output."""
        command = [str(self.binaries["kubectl"]), f"--kubeconfig={self.kubeconfig}", *arguments]
        return run_kubectl(command, self.folder, stdin=stdin, check=check, env=self.environment, timeout=timeout)

    def get(self, *arguments: str) -> Object:
        """`kubectl get … -o json`. Raises AssertionError where it is not there."""
        found: Object = json.loads(self.kubectl("get", *arguments, "-o", "json").stdout)
        return found

    def find(self, *arguments: str) -> list[Object]:
        """The items of a list; empty where there are none."""
        items: list[Object] = self.get(*arguments)["items"]
        return items

    def serves(self, resource: str) -> bool:
        """Whether there is a resource such as ``rayclusters.ray.io``. Also without the right to read CRDs."""
        group = f"--api-group={resource.partition('.')[2]}"
        return resource in self.kubectl("api-resources", group, "--output=name").stdout.split()

    def apply(self, *objects: Object) -> None:
        self.kubectl("apply", "-f", "-", stdin="\n---\n".join(json.dumps(one) for one in objects))

    def delete_namespace(self, name: str) -> None:
        """After the pods of Ray in it: Kubernetes, where it finds pods that may take 600 s, looks again after 300 s."""
        wait_for(f"no pod of Ray in {name}", lambda: not self.find("-n", name, "pod", "-l", "ray.io/cluster"), 120)
        self.kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=120s", timeout=130)

    def plugin(self, *arguments: str, timeout: float = 60.0) -> str:
        """What `kubectl servepipe` says, run as people do: kubectl finds it on PATH."""
        path = f"{Path(sys.executable).parent}:{self.environment['PATH']}"
        return self.run([str(self.binaries["kubectl"]), "servepipe", *arguments], timeout, {"PATH": path})

    def helm(self, *arguments: str, timeout: float = 300.0) -> str:
        """Helm's output. Raises AssertionError with it."""
        return self.run([str(self.binaries["helm"]), *arguments], timeout)

    def run(self, command: Sequence[str], timeout: float = 60.0, env: Mapping[str, str] | None = None) -> str:
        """The output of a program that works with this cluster. Raises AssertionError with it."""
        around = {**self.environment, "KUBECONFIG": str(self.kubeconfig), **(env or {})}
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=around)
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout
