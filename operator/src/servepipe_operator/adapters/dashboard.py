"""Where one pipeline's Ray dashboard and ingress are reached, and the ports that speak to them.

Three ways: the head Service's DNS name, the head pod's IP (no cluster DNS here), or the API server's Service proxy (an
operator outside of the cluster). Through the proxy ``Authorization`` belongs to the API server, so Ray's token travels
in ``X-Ray-Authorization`` in all three.

Every pipeline has a session of its own: a dashboard that hangs holds its own few connections for as long as its own
time-outs, and no one else's.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args
from urllib.parse import unquote

import aiohttp

from servepipe_operator.adapters.answers import text_of
from servepipe_operator.adapters.kube_access import Access
from servepipe_operator.adapters.routing import IngressRouting
from servepipe_operator.adapters.serve_api import RayServeApi
from servepipe_operator.adapters.timeouts import within
from servepipe_operator.engine.state import Application, Capacity, Json, RoutingAck
from servepipe_operator.ports import UnreachableError

__all__ = ["DASHBOARD_WAYS", "Dashboard", "DashboardWay", "Dashboards", "Place", "base_url"]

DashboardWay: TypeAlias = Literal["service", "pod-ip", "proxy"]
DASHBOARD_WAYS: tuple[DashboardWay, ...] = get_args(DashboardWay)
CONNECTIONS = 4
VERSION_TIMEOUT_S = 10.0
#: A name that ends where it should: no dot, no slash, nothing that begins another part of a URL.
_SERVICE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Place:
    """A Service and the pod behind it.

    Args:
        port: The Service's port.
        pod_ip: Where it is known; needed by the way ``pod-ip``.
        pod_port: The pod's port; 0: the same.
    """

    namespace: str
    service: str
    port: int
    pod_ip: str = ""
    pod_port: int = 0


def base_url(way: DashboardWay, place: Place, access: Access, cluster_domain: str = "cluster.local") -> str:
    """The URL before the first path.

    Raises:
        UnreachableError: The pod has no IP yet, or what objects of the user's say is no address.
    """
    if not _SERVICE.fullmatch(place.service):
        raise UnreachableError(f"{place.service[:100]!r} is not the name of a Service")
    match way:
        case "service":
            return f"http://{place.service}.{place.namespace}.svc.{cluster_domain}:{place.port}"
        case "pod-ip":
            if not place.pod_ip:
                raise UnreachableError(f"the pod behind Service {place.namespace}/{place.service} has no IP yet")
            try:
                address = ipaddress.ip_address(place.pod_ip)
            except ValueError as error:
                raise UnreachableError(f"the pod behind Service {place.namespace}/{place.service}: {error}") from None
            if address.is_link_local or address.is_multicast or address.is_unspecified:
                raise UnreachableError(f"{address} is not the address of a pod")  # but a machine's own services may be
            host = f"[{address}]" if address.version == 6 else str(address)
            return f"http://{host}:{place.pod_port or place.port}"
        case "proxy":
            path = f"/api/v1/namespaces/{place.namespace}/services/{place.service}:{place.port}/proxy"
            return access.url + path


async def _unknown_capacity() -> Capacity | None:
    return None


class Dashboard:
    """One pipeline's `ServeApi` and `Routing`, in one of the three ways. `close` ends its connections.

    Args:
        way: See the module.
        access: Of the API server; only the way ``proxy`` sends its credentials.
        token: Ray's.
        allowed: Asked before each PUT; raises where this process must not write (any more).
        capacity: How to ask for Ray's resources.
    """

    def __init__(
        self,
        way: DashboardWay,
        access: Access,
        *,
        token: str = "",
        cluster_domain: str = "cluster.local",
        allowed: Callable[[], None] = lambda: None,
        capacity: Callable[[], Awaitable[Capacity | None]] = _unknown_capacity,
    ) -> None:
        self._way, self._access, self._token = way, access, token
        self._cluster_domain, self._allowed, self._capacity = cluster_domain, allowed, capacity
        self._session: aiohttp.ClientSession | None = None

    def serve(self, head: Place) -> LateServe:
        """The `ServeApi` of the head at ``head``."""
        return LateServe(self, head)

    def routing(self, ingress: Place, route: str = "/") -> LateRouting:
        """The `Routing` of the ingress at ``ingress`` under its route prefix."""
        return LateRouting(self, ingress, route)

    async def ray_version(self, head: Place) -> str:
        """What ``/api/ray/version`` answers. Raises `UnreachableError`."""
        session, url = await self.reach(head)
        url += "/api/ray/version"
        headers = {"X-Ray-Authorization": f"Bearer {self._token}"} if self._token else {}
        timeout = within(VERSION_TIMEOUT_S)
        try:
            async with session.get(url, headers=headers, timeout=timeout, allow_redirects=False) as response:
                text, status = await text_of(response), response.status
        except (aiohttp.ClientError, OSError) as error:
            raise UnreachableError(f"{url}: {str(error) or type(error).__name__}") from error
        try:
            version = json.loads(text)["ray_version"] if status == 200 else None
        except (ValueError, KeyError, TypeError):
            version = None
        if not isinstance(version, str):
            raise UnreachableError(f"{url}: HTTP {status}, without a version: {text[:200]}")
        return version

    async def client(self, head: Place) -> RayServeApi:
        """A client of the head. Raises `UnreachableError` while it has no address."""
        session, url = await self.reach(head)
        return RayServeApi(session, url, self._token, self._capacity, self._allowed)

    async def reach(self, place: Place) -> tuple[aiohttp.ClientSession, str]:
        """The session, with fresh credentials, and the URL of ``place``."""
        url = base_url(self._way, place, self._access, self._cluster_domain)
        if self._session is None:
            context = self._access.ssl_context if self._way == "proxy" else None
            connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=context or True)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        if self._way == "proxy":
            try:
                self._session.headers.update(await self._access.headers())
            except Exception as error:  # as in `Kube`
                raise UnreachableError(f"{url}: no credentials: {str(error) or type(error).__name__}") from error
        return self._session, url

    async def close(self) -> None:
        """End all connections; a later call opens new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None


class LateServe:
    """The `ServeApi` port; asks for the address before each call."""

    def __init__(self, dashboard: Dashboard, head: Place) -> None:
        self._dashboard, self._head = dashboard, head

    async def applications(self) -> dict[str, Application] | None:
        """See `servepipe_operator.ports.ServeApi.applications`."""
        return await (await self._dashboard.client(self._head)).applications()

    async def put(self, config: Json) -> None:
        """See `servepipe_operator.ports.ServeApi.put`; raises what ``allowed`` raises too."""
        await (await self._dashboard.client(self._head)).put(config)

    async def capacity(self) -> Capacity | None:
        """See `servepipe_operator.ports.ServeApi.capacity`."""
        return await (await self._dashboard.client(self._head)).capacity()


class LateRouting:
    """The `Routing` port; asks for the address before each call."""

    def __init__(self, dashboard: Dashboard, ingress: Place, route: str) -> None:
        self._dashboard, self._ingress, self._route = dashboard, ingress, route

    async def acks(self) -> tuple[RoutingAck, ...]:
        """See `servepipe_operator.ports.Routing.acks`."""
        return await (await self._client()).acks()

    async def ready(self) -> tuple[bool, tuple[str, ...]]:
        """See `servepipe_operator.ports.Routing.ready`."""
        return await (await self._client()).ready()

    async def _client(self) -> IngressRouting:
        session, url = await self._dashboard.reach(self._ingress)
        # Serve says the route, and users' code can say it for Serve: it must not lead out of the Service's proxy.
        segments = unquote(self._route).split("/")
        if segments[0] or {".", ".."} & {*segments} or {"?", "#", "\\"} & {*self._route}:
            raise UnreachableError(f"{self._route[:100]!r} is not a route below {url}")
        return IngressRouting(session, url + self._route)


class Dashboards:
    """One `Dashboard` per pipeline, kept between reconciles so that connections are used again.

    Args:
        make: A new one for a token of Ray.
    """

    def __init__(self, make: Callable[[str], Dashboard]) -> None:
        self._make = make
        self._kept: dict[str, tuple[str, Dashboard]] = {}

    async def of(self, uid: str, token: str) -> Dashboard:
        """That of the pipeline with ``uid``; a new one when the token changed."""
        token_before, dashboard = self._kept.get(uid, ("", None))
        if dashboard is None or token_before != token:
            await self.forget(uid)
            dashboard = self._make(token)
            self._kept[uid] = (token, dashboard)
        return dashboard

    async def forget(self, uid: str) -> None:
        """The pipeline is gone."""
        _, dashboard = self._kept.pop(uid, ("", None))
        if dashboard is not None:
            await dashboard.close()

    async def close(self) -> None:
        """Forget all."""
        for uid in list(self._kept):
            await self.forget(uid)
