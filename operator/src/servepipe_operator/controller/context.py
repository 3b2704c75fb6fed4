"""What the shell hands to whoever reconciles a pipeline, and what it wants of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import aiohttp

from servepipe_operator.adapters.kube import Kube
from servepipe_operator.adapters.kube_access import Access
from servepipe_operator.controller.metrics import Metrics
from servepipe_operator.controller.settings import Settings
from servepipe_operator.engine.state import Json

__all__ = ["Context", "Key", "Store", "Work"]


class Key(NamedTuple):
    """A pipeline."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Store(Protocol):
    """What the watches have seen: milliseconds old as a rule, minutes while a watch is cut off.

    Everything that is returned is the caller's own copy, without ``managedFields``.
    """

    def pipeline(self, key: Key) -> Json | None:
        """The pipeline; None where there is none, or where it names another installation."""

    def children(self, kind: str, key: Key) -> tuple[Json, ...]:
        """Objects labelled with the pipeline's name, also those of another owner, by name.

        Args:
            kind: One of `watching.CHILDREN`, like ``RayCluster``. ``Event``: the warnings about its RayClusters.
        """

    def missing(self) -> frozenset[str]:
        """The kinds that the API server does not know, like ``rayclusters.ray.io``."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a reconciler has.

    Args:
        kube: Limited in its rate, and writing only while `allowed`.
        access: Where the API server is, for ways that go through it.
        session: For requests to the API server. Dashboards have sessions of their own.
        allowed: Raises `LeaseLostError` where this process must not write (any more); asked before each PUT.
        store: See there.
        wake: Looks at a pipeline soon, because of something that only the reconciler sees.
    """

    settings: Settings
    kube: Kube
    access: Access
    session: aiohttp.ClientSession
    allowed: Callable[[], None]
    metrics: Metrics
    store: Store
    wake: Callable[[Key], None]


class Work(Protocol):
    """The reconcile of one pipeline."""

    async def __call__(self, key: Key) -> float | None:
        """Look at ``key`` and do what is due; the seconds until the next look, or None when it is gone.

        Never called for the same key twice at once. What it raises is logged and tried again with growing waits,
        except `LeaseLostError`, which ends the process. Cancelled when it takes longer than `Settings.look_s` or when
        the process ends.
        """
