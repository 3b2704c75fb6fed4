"""KubeRay's stand-in as a process beside a cluster with nodes, which runs the pods that it makes.

Only where KubeRay itself cannot be had: the package `kuberay` says what is otherwise, and that it is held to the same
contract. Ray, Serve and Ray's autoscaler are real.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import bed
from bed.processes import Process
from kuberay.control import KubeRay, in_process

Make = Callable[[str, list[str], Path], Process]


def crd() -> Path:
    """The file with RayCluster's CRD to install where there is none: KubeRay's own where KUBERAY_CRD names it."""
    named = os.environ.get("KUBERAY_CRD")
    return Path(named) if named else Path(bed.__file__).parent / "raycluster-crd.yaml"


class StandInProcess:
    """One stand-in, working from `start` to `stop`; it may be started again, as after a crash of KubeRay.

    Args:
        kubeconfig: Of an administrator: KubeRay hands rights on, so it must have them.
        folder: For its log.
        make: Of its name, command line and log, a process that is not yet started; `MachineCluster.make_process` lets
            the cluster's `down` end it, whatever became of this process.
    """

    def __init__(self, kubeconfig: Path, folder: Path, make: Make = Process) -> None:
        self.kubeconfig, self.folder, self._make = kubeconfig, folder, make
        self._running: KubeRay | None = None

    @property
    def log(self) -> Path:
        return self.folder / "kuberay.log"

    @property
    def pid(self) -> int:
        pid = self._controlled().pid
        assert pid is not None
        return pid

    def start(self) -> None:
        """Returns when it has seen all RayClusters and works. Raises RuntimeError with its log where it ended."""
        assert self._running is None, "it runs already"
        self._running = in_process(self.kubeconfig, self.folder, real_pods=True, make=self._make)

    def stop(self) -> None:
        """Ends it at once; what it made stays. Does nothing where it does not run."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    def pause(self) -> None:
        """Nothing is done any more; what happens meanwhile is seen at `resume`."""
        self._controlled().pause("controller")

    def resume(self) -> None:
        self._controlled().resume("controller")

    def tail(self, lines: int = 40) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def _controlled(self) -> KubeRay:
        assert self._running is not None, "it does not run"
        return self._running
