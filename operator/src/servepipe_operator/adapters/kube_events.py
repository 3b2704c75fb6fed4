"""What happened, as Events (events.k8s.io/v1) on the pipeline.

The engine tells of transitions only. What can repeat all the same, such as the first look of a new attempt, is told
once per process: for one object the latest message of each reason and node is remembered.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime

from servepipe_operator.adapters.kube import Kube, Resource
from servepipe_operator.adapters.kube_errors import KubeError
from servepipe_operator.adapters.owner import Owner
from servepipe_operator.engine.state import Event

__all__ = ["EVENTS", "KubeEvents", "ToldEvents"]

EVENTS = Resource("events.k8s.io/v1", "Event", "events")
CONTROLLER = "servepipe.dev/operator"
# The API server refuses longer notes.
NOTE_BYTES = 1024
TOLD_MOST = 10_000


class ToldEvents:
    """What this process already told, over all pipelines; the oldest is forgotten above ``most``."""

    def __init__(self, most: int = TOLD_MOST) -> None:
        self._most = most
        self._latest: OrderedDict[tuple[str, str, str], str] = OrderedDict()

    def is_new(self, uid: str, event: Event) -> bool:
        """Whether this is not the same as the latest of its reason and node."""
        return self._latest.get((uid, event.reason, event.node)) != f"{event.type} {event.message}"

    def remember(self, uid: str, event: Event) -> None:
        """It was told."""
        key = (uid, event.reason, event.node)
        self._latest[key] = f"{event.type} {event.message}"
        self._latest.move_to_end(key)
        while len(self._latest) > self._most:
            self._latest.popitem(last=False)


def _ignore(event: Event, error: KubeError) -> None: ...


class KubeEvents:
    """The `Events` port of one pipeline; an event that cannot be written is reported and lost, and holds up nothing.

    Args:
        told: Shared by all pipelines of the process.
        instance: The name of this operator's pod.
        on_lost: Called with the event and why it could not be written.
        now: Wall clock.
    """

    def __init__(
        self,
        kube: Kube,
        owner: Owner,
        told: ToldEvents,
        instance: str,
        on_lost: Callable[[Event, KubeError], None] = _ignore,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kube, self._owner, self._told, self._instance = kube, owner, told, instance
        self._on_lost, self._now = on_lost, now

    async def emit(self, event: Event) -> None:
        """See `servepipe_operator.ports.Events.emit`."""
        if not self._told.is_new(self._owner.uid, event):
            return
        at = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        digest = hashlib.sha256(f"{self._owner.uid} {at} {event}".encode(errors="replace")).hexdigest()[:16]
        note = f"{event.node}: {event.message}" if event.node else event.message
        body = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"namespace": self._owner.namespace, "name": f"{self._owner.name[:200].rstrip('-.')}.{digest}"},
            "eventTime": at,
            "type": event.type,
            "reason": event.reason[:128],
            "action": "Reconcile",
            "note": _shorten(note),
            "regarding": self._owner.object_reference(),
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance[:128],
        }
        try:
            await self._kube.create(EVENTS, body)
        except KubeError as error:
            self._on_lost(event, error)
        else:
            self._told.remember(self._owner.uid, event)


def _shorten(note: str) -> str:
    raw = note.encode(errors="replace")
    if len(raw) <= NOTE_BYTES:
        return raw.decode()
    return raw[: NOTE_BYTES - len("…".encode())].decode(errors="ignore") + "…"
