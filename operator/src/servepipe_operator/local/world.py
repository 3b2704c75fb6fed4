"""Ports of the engine that the supervisor listens in on."""

from __future__ import annotations

from servepipe_operator.adapters.serve_api import RayServeApi
from servepipe_operator.engine.state import Application, Capacity, Event, Json
from servepipe_operator.local.view import View

__all__ = ["RememberingServe", "ViewEvents"]


class RememberingServe:
    """Serve's API, remembering what it last said about the applications."""

    def __init__(self, serve: RayServeApi, seen: dict[str, Application]) -> None:
        self._serve = serve
        self._seen = seen

    async def applications(self) -> dict[str, Application] | None:
        found = await self._serve.applications()
        self._seen.clear()
        self._seen.update(found or {})
        return found

    async def put(self, config: Json) -> None:
        await self._serve.put(config)

    async def capacity(self) -> Capacity | None:
        return await self._serve.capacity()


class ViewEvents:
    """The `Events` port: what happens is shown."""

    def __init__(self, view: View) -> None:
        self._view = view

    async def emit(self, event: Event) -> None:
        self._view.event(event)
