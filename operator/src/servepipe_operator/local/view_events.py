"""Events of the engine that the supervisor shows."""

from __future__ import annotations

from servepipe_operator.engine.state import Event
from servepipe_operator.view import View

__all__ = ["ViewEvents"]


class ViewEvents:
    """The `Events` port: what happens is shown."""

    def __init__(self, view: View) -> None:
        self._view = view

    async def emit(self, event: Event) -> None:
        """See `servepipe_operator.ports.Events.emit`."""
        self._view.event(event)
