"""Ports of one pipeline that find out where to ask when they are asked: addresses come and go between two looks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from servepipe_operator.adapters.dashboard import Dashboard, Place
from servepipe_operator.engine.state import Application, Capacity, Json, RoutingAck
from servepipe_operator.objects.cluster_view import ClusterView, head_service
from servepipe_operator.objects.pods import DASHBOARD_PORT
from servepipe_operator.ports import UnreachableError

__all__ = ["LateRouting", "LateServe", "head_place", "http_port", "ray_version"]

_AskedFor = Callable[[], Awaitable[Dashboard]]


def http_port(services: Sequence[Json], wished: int) -> int:
    """Where the Service answers now: a port that was just asked for counts once the Service has it."""
    ports = [port for one in services for port in one["spec"].get("ports") or ()]
    return next((port["port"] for port in ports if port.get("name") == "http"), wished)


def head_place(namespace: str, view: ClusterView) -> Place:
    """The head's Service; its pod where it is known."""
    if view.live is None:
        raise UnreachableError("there is no RayCluster yet")
    return Place(namespace, head_service(view.live), DASHBOARD_PORT, view.head_ip)


async def ray_version(dashboard: _AskedFor, namespace: str, view: ClusterView) -> str:
    """What the head answers. Raises `UnreachableError`."""
    return await (await dashboard()).ray_version(head_place(namespace, view))


class LateServe:
    """The `ServeApi` of the head as it is when asked."""

    def __init__(self, dashboard: _AskedFor, head: Callable[[], Place]) -> None:
        self._dashboard, self._head = dashboard, head

    async def applications(self) -> dict[str, Application] | None:
        """See `servepipe_operator.ports.ServeApi.applications`."""
        return await (await self._dashboard()).serve(self._head()).applications()

    async def put(self, config: Json) -> None:
        """See `servepipe_operator.ports.ServeApi.put`."""
        await (await self._dashboard()).serve(self._head()).put(config)

    async def capacity(self) -> Capacity | None:
        """See `servepipe_operator.ports.ServeApi.capacity`."""
        return await (await self._dashboard()).serve(self._head()).capacity()


class LateRouting:
    """The `Routing` of the ingress. Without a Service of ours callers are not answered, whoever else answers there."""

    def __init__(self, dashboard: _AskedFor, place: Place, route: str, reached: bool) -> None:
        self._dashboard, self._place, self._route, self._reached = dashboard, place, route, reached

    async def acks(self) -> tuple[RoutingAck, ...]:
        """See `servepipe_operator.ports.Routing.acks`."""
        if not self._reached:
            raise UnreachableError(f"Service {self._place.namespace}/{self._place.service} is not there")
        return await (await self._dashboard()).routing(self._place, self._route).acks()

    async def ready(self) -> tuple[bool, tuple[str, ...]]:
        """See `servepipe_operator.ports.Routing.ready`."""
        if not self._reached:
            return False, ()
        return await (await self._dashboard()).routing(self._place, self._route).ready()
