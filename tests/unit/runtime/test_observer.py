"""What an ingress replica makes of Serve's account of a node."""

from __future__ import annotations

import pytest
from ray.serve._private.common import ReplicaState
from ray.serve.schema import DeploymentStatus

from servepipe.runtime.observer import Replicas, _serves


@pytest.mark.parametrize(
    ("states", "serves"),
    [
        ({ReplicaState.RUNNING: 1}, True),
        ({ReplicaState.UPDATING: 1, ReplicaState.STARTING: 1}, True),
        ({ReplicaState.PENDING_MIGRATION: 1, ReplicaState.STARTING: 1}, True),
        ({ReplicaState.STARTING: 2}, False),
        ({ReplicaState.STOPPING: 1}, False),
        ({ReplicaState.RECOVERING: 1}, True),
        ({"RUNNING": 1}, True),
    ],
)
def test_replicas_that_take_requests(states: dict[ReplicaState, int], serves: bool) -> None:
    assert _serves(Replicas.of(DeploymentStatus.UPDATING, states)) is serves


@pytest.mark.parametrize("status", DeploymentStatus)
def test_at_zero_by_choice(status: DeploymentStatus) -> None:
    assert _serves(Replicas.of(status, {})) is (status is DeploymentStatus.HEALTHY)


def test_an_application_that_is_not_there() -> None:
    assert not _serves(None)
