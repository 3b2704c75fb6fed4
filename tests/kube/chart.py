"""The operators of tests have the rights that the chart gives: its rbac.yaml, rendered by Helm itself.

Helm is built like the control plane's binaries, from a pinned Go module. A renderer of our own would have to be
believed in, and the template would have to be written for it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from bed.audit import Right, granted
from bed.build import version
from bed.control_plane import ControlPlane

Object = dict[str, Any]

CHART = Path(__file__).parents[2] / "charts" / "servepipe"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


@dataclass(frozen=True)
class Account:
    """An operator's service account.

    Args:
        kubeconfig: To log in with.
        user: As the audit log calls it.
        cluster_wide: Whether the chart was given no namespaces.
        granted: All that its roles allow, wherever.
    """

    kubeconfig: Path
    user: str
    cluster_wide: bool
    granted: frozenset[Right]


class Accounts:
    """Service accounts as the chart sets them up, one for each operator, so that the audit log tells them apart.

    Args:
        helm: The binary.
    """

    def __init__(self, plane: ControlPlane, helm: Path) -> None:
        self._plane, self._helm = plane, helm
        self._made: dict[tuple[str, str, tuple[str, ...], str], Account] = {}

    @property
    def all(self) -> tuple[Account, ...]:
        """Those that were made so far."""
        return tuple(self._made.values())

    def of(self, namespace: str, name: str, namespaces: Sequence[str] = (), installation: str = "servepipe") -> Account:
        """The account of the operator ``name`` in its ``namespace``; made where there is none.

        Args:
            namespaces: Those that it watches; empty means all.
        """
        key = (namespace, name, tuple(namespaces), installation)
        if key not in self._made:
            objects = self.render(namespace, name, namespaces, installation)
            self._plane.api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})
            for one in objects:
                where = one["metadata"].get("namespace")
                folder = f"{RBAC}/namespaces/{where}" if where else RBAC
                self._plane.api.create(f"{folder}/{one['kind'].lower()}s", one)
            self._made[key] = Account(
                self._plane.kubeconfig_for(namespace, name),
                f"system:serviceaccount:{namespace}:{name}",
                not namespaces,
                frozenset(granted(rule for one in objects for rule in one.get("rules", ()))),
            )
        return self._made[key]

    def render(
        self, namespace: str, name: str, namespaces: Sequence[str] = (), installation: str = "servepipe"
    ) -> list[Object]:
        """The objects of the chart's rbac.yaml."""
        values = {"fullnameOverride": name, "installation": installation, "watchNamespaces": list(namespaces)}
        command: list[str | Path] = [
            self._helm,
            "template",
            "servepipe",
            CHART,
            "--namespace",
            namespace,
            "--values",
            "-",
        ]
        command += ["--kube-version", version("kubernetes")]
        done = subprocess.run(
            [*command, "--show-only", "templates/rbac.yaml"],
            input=json.dumps(values),
            capture_output=True,
            text=True,
            timeout=60,
            env={"HOME": str(self._plane.folder), "PATH": "/usr/bin:/bin"},
        )
        assert done.returncode == 0, done.stderr
        return [one for one in yaml.safe_load_all(done.stdout) if one]
