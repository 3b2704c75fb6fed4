"""What the operator is measured on: a real API server, the stand-in for KubeRay with simulated Serve, and the operator.

Each is a process of its own, so that their CPU seconds can be told apart. The operator runs with its default settings
as a ServiceAccount, to which the API server's priority and fairness applies. Linux only: figures are read from /proc.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY / "tests" / "kube"), str(REPOSITORY / "tests" / "fakes")]

from bed.build import binaries  # noqa: E402
from bed.control_plane import ControlPlane, load_crd  # noqa: E402
from kuberay.control import KubeRay, in_process  # noqa: E402
from operator_process import QUICK, OperatorProcess  # noqa: E402

NAMESPACE = "shop"
EVERYTHING = [
    {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
    {"nonResourceURLs": ["*"], "verbs": ["*"]},
]
#: What tests set for their own pace is unset again: "" means the default.
SETTINGS = {name: "" for name in QUICK if "_HTTP_" not in name} | {"SERVEPIPE_DASHBOARD": "pod-ip"}
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Bed:
    """All processes, running. `folder` has their logs."""

    folder: Path
    plane: ControlPlane
    kuberay: KubeRay
    operator: OperatorProcess

    def cpu(self) -> Counter[str]:
        """CPU seconds so far by process, children included."""
        pids = {
            "operator": self.operator.pid,
            "API server": self.plane.api_server.pid,
            "etcd": self.plane.etcd.pid,
            "controller-manager": self.plane.controller_manager.pid,
            "stand-in": self.kuberay.pid or 0,
            "benchmark": os.getpid(),
        }
        return Counter({name: cpu_s(pid) for name, pid in pids.items()})

    def requests(self) -> Counter[str]:
        """The operator's requests to the API server so far, by verb and resource like ``create secrets``."""
        found: Counter[str] = Counter()
        for (name, *labels), value in self.operator.metrics().items():
            if name == "servepipe_kubernetes_requests_total":
                _, resource, verb = labels  # sorted by label: code, resource, verb
                found[f"{verb} {resource}"] += int(value)
        return found

    def looks(self) -> int:
        """How often the operator looked at a pipeline."""
        return sum(
            int(value) for key, value in self.operator.metrics().items() if key[0] == "servepipe_reconciles_total"
        )

    def puts(self) -> dict[str, int]:
        """Serve PUTs so far by RayCluster."""
        return self.kuberay.put_counts()


@contextmanager
def bed(folder: Path, settings: Mapping[str, str]) -> Iterator[Bed]:
    """A bed in ``folder``; ``settings`` are environment variables of the operator over its defaults."""
    plane = ControlPlane(folder, binaries(say=print))
    kuberay: KubeRay | None = None
    operator: OperatorProcess | None = None
    try:
        plane.start()
        raycluster = os.environ.get("KUBERAY_CRD") or REPOSITORY / "tests" / "kube" / "bed" / "raycluster-crd.yaml"
        crds = (*sorted((REPOSITORY / "crds").glob("*.yaml")), Path(raycluster))
        plane.install_crds([load_crd(path) for path in crds])
        for namespace in ("servepipe", NAMESPACE):
            plane.create_namespace(namespace)
        kubeconfig = plane.service_account("servepipe", "operator", EVERYTHING, cluster_wide=True)
        kuberay = in_process(plane.kubeconfig, folder)
        operator = OperatorProcess(folder, kubeconfig, "servepipe", env={**SETTINGS, **settings})
        operator.start()
        operator.wait_ready()
        yield Bed(folder, plane, kuberay, operator)
    finally:
        if operator is not None:
            operator.kill()
        if kuberay is not None:
            kuberay.stop()
        plane.stop()


def cpu_s(pid: int) -> float:
    """User and system time of a process and of its children that ended."""
    # The name of the program, in parentheses, may have spaces.
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in after_name[11:15]) / TICKS_PER_S


def peak_mb(pid: int) -> float:
    """The most memory that was resident, in MB (10^6 bytes)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None, f"/proc/{pid}/status has no VmHWM"
    return int(found[1]) * 1024 / 1e6
