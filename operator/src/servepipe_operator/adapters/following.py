"""Ports that follow what Serve has: the ingress answers where it was deployed, not where it is wished."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from servepipe_operator.engine.names import INGRESS
from servepipe_operator.engine.state import Application, Capacity, Json, RoutingAck
from servepipe_operator.ports import Routing, ServeApi

__all__ = ["FollowingRouting", "RememberingServe", "deployed_route"]


def deployed_route(applications: Mapping[str, Application], desired: str) -> str:
    """Where the ingress answers now: a route that was just asked for counts once Serve has it."""
    ingress = applications.get(INGRESS)
    config = ingress.config if ingress is not None else None
    return str((config or {}).get("route_prefix") or desired)


class RememberingServe:
    """Serve's API, remembering what it last said about the applications."""

    def __init__(self, serve: ServeApi, seen: dict[str, Application]) -> None:
        self._serve = serve
        self._seen = seen

    async def applications(self) -> dict[str, Application] | None:
        """See `servepipe_operator.ports.ServeApi.applications`."""
        found = await self._serve.applications()
        self._seen.clear()
        self._seen.update(found or {})
        return found

    async def put(self, config: Json) -> None:
        """See `servepipe_operator.ports.ServeApi.put`."""
        await self._serve.put(config)

    async def capacity(self) -> Capacity | None:
        """See `servepipe_operator.ports.ServeApi.capacity`."""
        return await self._serve.capacity()


class FollowingRouting:
    """The `Routing` port on an ingress whose place may change; ``now`` is asked before each call."""

    def __init__(self, now: Callable[[], Routing]) -> None:
        self._now = now

    async def acks(self) -> tuple[RoutingAck, ...]:
        """See `servepipe_operator.ports.Routing.acks`."""
        return await self._now().acks()

    async def ready(self) -> tuple[bool, tuple[str, ...]]:
        """See `servepipe_operator.ports.Routing.ready`."""
        return await self._now().ready()
