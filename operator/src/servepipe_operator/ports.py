"""How a shell lets the engine see and act: one Protocol for each thing outside.

Adapters implement them; `reconcile` uses them; tests replace them. Each method says what it raises, because telling
"it is not there" from "nobody answered" is what most of the engine's honesty rests on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from servepipe_operator.engine.state import Application, Capacity, Event, Json, Record, RoutingAck

__all__ = [
    "ConflictError",
    "Events",
    "History",
    "Ports",
    "Routing",
    "ServeApi",
    "ServeRejectedError",
    "StatusWriter",
    "UnreachableError",
]


class UnreachableError(Exception):
    """Nobody answered, or not usefully (connection refused, time-out, HTTP 5xx). Says nothing about the state."""


class ConflictError(UnreachableError):
    """Another record is there already: history was read late, or somebody else decides as well. Look again."""


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
class Ports:
    """All of them, for one pipeline."""

    serve: ServeApi
    routing: Routing
    history: History
    status: StatusWriter
    events: Events
