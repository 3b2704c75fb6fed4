"""How a shell lets the engine see and act: one Protocol for each thing outside.

Adapters implement them; `reconcile` uses them; tests replace them. Each method says what it raises, because telling
"it is not there" from "nobody answered" is what most of the engine's honesty rests on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from servepipe.api.problem import Problem
from servepipe.api.v1alpha1 import ServePipeline
from servepipe_operator.engine.pools import Slot
from servepipe_operator.engine.state import (
    Application,
    Capacity,
    ClusterPlan,
    ClusterProblem,
    Event,
    Json,
    Record,
    RoutingAck,
)

__all__ = [
    "Cluster",
    "ClusterState",
    "ConflictError",
    "Events",
    "History",
    "Ports",
    "Routing",
    "ServeApi",
    "ServeRejectedError",
    "StatusWriter",
    "TokenRefusedError",
    "UnreachableError",
]


class UnreachableError(Exception):
    """Nobody answered, or not usefully (connection refused, time-out, HTTP 5xx). Says nothing about the state."""


class ConflictError(UnreachableError):
    """Another record is there already: history was read late, or somebody else decides as well. Look again."""


class TokenRefusedError(UnreachableError):
    """Ray's processes were started with another token: somebody has to do something. The message says what."""


class ServeRejectedError(Exception):
    """Serve refused a configuration (HTTP 400); the message is Serve's."""


class ServeApi(Protocol):
    """Serve's REST API, version 2."""

    async def applications(self) -> dict[str, Application] | None:
        """All applications by name; None when Serve was never started. Raises `UnreachableError`."""
        ...

    async def put(self, config: Json) -> None:
        """Replace the whole configuration. Raises `UnreachableError` or `ServeRejectedError`."""
        ...

    async def capacity(self) -> Capacity | None:
        """Ray's resources, or None when this adapter cannot tell. Raises `UnreachableError`."""
        ...


class Routing(Protocol):
    """The ingress's own view, through its HTTP port."""

    async def acks(self) -> tuple[RoutingAck, ...]:
        """``/-/routing``: every ingress replica and holder. Raises `UnreachableError`."""
        ...

    async def ready(self) -> tuple[bool, tuple[str, ...]]:
        """``/-/ready``: whether callers are answered, and the nodes that are not ready. Raises `UnreachableError`."""
        ...


class History(Protocol):
    """Immutable records of one pipeline."""

    async def list(self) -> tuple[Record, ...]: ...

    async def write(self, record: Record) -> None:
        """Durable when it returns; writing a record that exists (same kind, name, sequence) does nothing.

        Raises:
            ConflictError: The record that exists says something else. Whoever goes on regardless sends Serve what the
                next look knows nothing of.
        """
        ...

    async def delete(self, record: Record) -> None:
        """Deleting one that is gone does nothing."""
        ...


class StatusWriter(Protocol):
    """The resource's status: a report, never needed for correctness."""

    async def read(self) -> Json:
        """As last written; {} when it was never written or is lost."""
        ...

    async def write(self, status: Json) -> None: ...


class Events(Protocol):
    async def emit(self, event: Event) -> None: ...


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The Kubernetes side of a pipeline.

    Args:
        problem: Why the RayCluster takes nothing now, or None.
        slots: Its worker groups in their order.
        absent: No Ray of this pipeline can be running.
        up: The head is said to be ready: if it does not answer all the same, nobody knows what runs.
    """

    problem: ClusterProblem | None
    slots: tuple[Slot, ...] = ()
    absent: bool = False
    up: bool = True


class Cluster(Protocol):
    """The objects of one pipeline beside its history."""

    async def look(self, kept: Json | None) -> ClusterState:
        """What there is of the cluster that `Checkpoint.cluster` names; None: none was decided on yet."""
        ...

    async def refusals(self, pipeline: ServePipeline) -> tuple[Problem, ...]:
        """What the API server has against the pods of a spec that is not accepted yet."""
        ...

    async def apply(self, plan: ClusterPlan) -> tuple[ClusterProblem, ...]:
        """Make it so, as far as it goes; what does not go is answered.

        Raises:
            UnreachableError: The API server does not answer, or something changed meanwhile: look again.
        """
        ...


@dataclass(frozen=True, slots=True)
class Ports:
    """All of them, for one pipeline. ``cluster`` is None on one machine."""

    serve: ServeApi
    routing: Routing
    history: History
    status: StatusWriter
    events: Events
    cluster: Cluster | None = None
