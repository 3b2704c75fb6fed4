"""The cluster that the run makes on this machine."""

from __future__ import annotations

from collections.abc import Sequence
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

    def down(self) -> None:
        self.machine.down()
