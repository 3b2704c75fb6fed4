"""The cluster of a choice, ready to be used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from bed.build import binaries, helm

from clusters.choice import Choice
from clusters.cluster import Cluster
from clusters.current import Current
from clusters.kind import Kind
from clusters.on_machine import OnMachine

Say = Callable[[str], None]


def open_cluster(choice: Choice, folder: Path, say: Say) -> Cluster:
    """Args:
    folder: Short, as sockets are in it; where the cluster's files go.

    Raises:
        MachineError, BuildError, KindError, CurrentError, DeadlineError: It did not come up; the message says why.
    """
    if choice.mode == "machine":
        return OnMachine(folder, say)
    folder.mkdir(parents=True, exist_ok=True)
    if choice.mode == "kind":
        return Kind(f"servepipe-{os.getpid()}", _clients(say), folder, say)
    return Current(Path(os.environ["KUBECONFIG"]).absolute(), _clients(say), folder)


def _clients(say: Say) -> Mapping[str, Path]:
    return {"kubectl": Path(binaries(say=say)["kubectl"]), "helm": helm(say=say)}
