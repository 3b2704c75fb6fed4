"""The chart as Helm renders it, and Helm as a person runs it against the API server of the tests."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from bed.build import version
from chart import CHART

Object = dict[str, Any]

#: All that has to do with Prometheus and Grafana.
MONITORING = {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}}


@dataclass(frozen=True)
class Helm:
    """Helm and the chart.

    Args:
        binary: Helm.
        home: Where it keeps its files.
        kubeconfig: Of the cluster; without one it can only render.
        chart: The chart's folder.
    """

    binary: Path
    home: Path
    kubeconfig: Path | None = None
    chart: Path = CHART

    def run(self, *arguments: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
        """One command, with ``values`` for the chart."""
        command = [str(self.binary), *arguments]
        if self.kubeconfig is not None:
            command += ["--kubeconfig", str(self.kubeconfig)]
        if values is not None:
            command += ["--values", "-"]
        return subprocess.run(
            command,
            input=None if values is None else json.dumps(values),
            capture_output=True,
            text=True,
            timeout=120,
            env={"HOME": str(self.home), "PATH": "/usr/bin:/bin"},
        )

    def template(
        self, values: Object | None = None, release: str = "servepipe", namespace: str = "ops", *more: str
    ) -> subprocess.CompletedProcess[str]:
        """`helm template`."""
        return self.run(
            "template",
            release,
            str(self.chart),
            "--namespace",
            namespace,
            "--kube-version",
            version("kubernetes"),
            *more,
            values=values or {},
        )

    def objects(self, values: Object | None = None, release: str = "servepipe", namespace: str = "ops") -> list[Object]:
        """All that is rendered, hooks too."""
        done = self.template(values, release, namespace)
        assert done.returncode == 0, done.stderr
        return [one for one in yaml.safe_load_all(done.stdout) if one]

    def refusal(self, values: Object) -> str:
        """What Helm has against the values."""
        done = self.template(values)
        assert done.returncode != 0, f"{values} was taken"
        return done.stderr


def one(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The one object of this kind (and name)."""
    found = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}: {[o['metadata']['name'] for o in found]}"
    return found[0]


def kinds(objects: list[Object]) -> list[str]:
    """The kinds of all objects, sorted."""
    return sorted(o["kind"] for o in objects)
