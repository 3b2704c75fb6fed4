"""Ports of the engine that the supervisor listens in on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import aiohttp

from servepipe_operator.adapters.routing import IngressRouting
from servepipe_operator.adapters.serve_api import RayServeApi
from servepipe_operator.engine.names import INGRESS
from servepipe_operator.engine.state import Application, Capacity, Event, Json, RoutingAck
from servepipe_operator.view import View

__all__ = ["FollowingRouting", "RememberingServe", "ViewEvents", "deployed_route"]


def deployed_route(applications: Mapping[str, Application], desired: str) -> str:
    """Where the ingress answers now: a route that was just asked for counts once Serve has it."""
    ingress = applications.get(INGRESS)
    config = ingress.config if ingress is not None else None
    return str((config or {}).get("route_prefix") or desired)


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


class FollowingRouting:
    """The `Routing` port on an ingress whose route may change; ``url`` says where it answers now."""

    def __init__(self, session: aiohttp.ClientSession, url: Callable[[], str]) -> None:
        self._session = session
        self._url = url

    async def acks(self) -> tuple[RoutingAck, ...]:
        return await IngressRouting(self._session, self._url()).acks()

    async def ready(self) -> tuple[bool, tuple[str, ...]]:
        return await IngressRouting(self._session, self._url()).ready()


class ViewEvents:
    """The `Events` port: what happens is shown."""

    def __init__(self, view: View) -> None:
        self._view = view

    async def emit(self, event: Event) -> None:
        self._view.event(event)
