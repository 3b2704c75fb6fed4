"""The cluster that the run makes on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bed.build import helm, with_node
from machine.cluster import MachineCluster, Say

from clusters.cluster import Cluster


class OnMachine(Cluster):
    """Attributes:
    machine: To disturb it.
    """

    mode = "machine"

    def __init__(self, folder: Path, say: Say) -> None:
        binaries = {"kubectl": Path(with_node(say=say)["kubectl"]), "helm": helm(say=say)}
        self.machine = MachineCluster.up(folder, say)  # last: whatever fails after it would leave the cluster
        super().__init__(self.machine.kubeconfig, binaries, folder)

    def load(self, archives: Sequence[Path]) -> None:
        for archive in archives:
            self.machine.load_image(archive)

    def restart_containerd(self) -> None:
        self.machine.restart_containerd()

    @contextmanager
    def without_dns(self) -> Iterator[None]:
        self.machine.stop_daemon("coredns")
        try:
            yield
        finally:
            self.machine.start_daemon("coredns")

    def down(self) -> None:
        self.machine.down()
