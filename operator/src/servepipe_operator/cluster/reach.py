"""The ways from outside of the cluster to a pipeline's pods: port-forward, else the API server's Service proxy.

Port-forward goes through the kubelet of the pod's node, and is what people have rights for (`get` and `create`
``pods/portforward``, and `list` pods to find it). The Service proxy (`get`, for calls `create` ``services/proxy``)
needs an API server that reaches the pods' addresses, which many do not and NetworkPolicies can forbid.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from servepipe_operator.adapters.dashboard import Place, base_url
from servepipe_operator.adapters.kube_access import Access
from servepipe_operator.adapters.kube_errors import Forbidden, KubeError, NotFound
from servepipe_operator.adapters.kube_resource import PODS, RAYCLUSTERS, SECRETS
from servepipe_operator.cluster.connection import ClusterError, Connection, NotNowError, in_words, message_of
from servepipe_operator.cluster.forward import Forward, forwarded
from servepipe_operator.engine.state import Json
from servepipe_operator.objects.cluster_view import head_selector, head_service, is_ready
from servepipe_operator.objects.names import token_secret_name
from servepipe_operator.objects.pods import DASHBOARD_PORT
from servepipe_operator.objects.services import TOKEN_KEY, ingress_labels, token_of
from servepipe_operator.ports import UnreachableError

__all__ = ["RayDashboard", "dashboard", "ingress_of", "ingress_selector", "no_forward", "proxied_instead", "to_pod"]

RIGHTS = "it takes the rights to list pods, and to get and create pods/portforward"
SERVICE_PORT = 8000
CONNECT_S = 30.0


def active_cluster(live: Mapping[str, Any]) -> str:
    """The RayCluster that answers, "" where there is none."""
    clusters = (live.get("status") or {}).get("clusters") or ()
    return next((str(one["name"]) for one in clusters if one.get("role") == "Active"), "")


def ingress_of(live: Mapping[str, Any]) -> Place:
    """The Service that callers use."""
    service = ((live["spec"].get("ingress") or {}).get("service") or {}).get("port", SERVICE_PORT)
    return Place(live["metadata"]["namespace"], live["metadata"]["name"], int(service))


def ingress_selector(live: Mapping[str, Any]) -> str:
    """Of the pods behind that Service."""
    chosen = ingress_labels(live["metadata"]["name"], active_cluster(live))
    return ",".join(f"{key}={value}" for key, value in chosen.items())


@dataclass(frozen=True, slots=True)
class Way:
    """A way that was found.

    Args:
        where: For people.
        fix: What they can do where it does not lead there after all.
        instead: Why it is not a port-forward, "" where it is one.
        failure: Asked for what aiohttp does not know about a connection that failed; "" where that is nothing.
    """

    where: str
    fix: str
    instead: str = ""
    failure: Callable[[], str] = str


class RayDashboard:
    """A pipeline's dashboard.

    Args:
        session: Without a limit of connections, since each stream of logs holds one.
        access: Whose credentials go with each request.
        url: Before the first path.
        token: Ray's.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        access: Access,
        url: str,
        token: str,
        way: Way = Way("Ray's dashboard", ""),
    ) -> None:
        self.way = way
        self._session, self._access, self._url, self._token = session, access, url, token

    @asynccontextmanager
    async def get(
        self, path: str, query: Mapping[str, str] | None = None, *, timeout_s: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """GET a path; ``timeout_s`` None is a stream.

        Raises:
            UnreachableError: The port-forward fails; also what aiohttp raises where there is no answer.
        """
        # Through the proxy Authorization is the API server's, and Ray's own header passes through.
        headers = {**await self._access.headers(), "X-Ray-Authorization": f"Bearer {self._token}"}
        try:
            async with self._session.get(
                self._url + path,
                params=query,
                headers=headers,
                ssl=self._access.ssl_context or True,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S),
            ) as response:
                yield response
        except aiohttp.ClientError as error:
            if failure := self.way.failure():
                raise UnreachableError(failure) from error
            raise


@asynccontextmanager
async def dashboard(connection: Connection, live: Json) -> AsyncIterator[RayDashboard]:
    """The dashboard of a pipeline's RayCluster.

    Raises:
        NotNowError: There is none at the moment.
        ClusterError: The API server refuses to say where it is, or its token.
    """
    cluster = await _cluster(connection, live)
    token = await _token(connection, live)
    async with AsyncExitStack() as stack:
        try:
            ray = await _forwarded(stack, connection, cluster, token)
        except KubeError as error:
            ray = await _proxied(stack, connection, cluster, token, no_forward(error))
        yield ray


async def _forwarded(stack: AsyncExitStack, connection: Connection, cluster: Json, token: str) -> RayDashboard:
    """By port-forward. Raises `KubeError` where there is none, `NotNowError` while the head is not ready."""
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    look = f"Look with `servepipe status`, or `kubectl -n {namespace} describe pod -l {head_selector(name)}`."
    absent = NotNowError(f"RayCluster {name!r} has no head that is ready", where=connection.place(namespace), fix=look)
    pod, forward, session = await to_pod(stack, connection, namespace, head_selector(name), DASHBOARD_PORT, absent)
    way = Way(f"port {DASHBOARD_PORT} of pod {pod} in namespace {namespace}", look, failure=lambda: forward.failure)
    return RayDashboard(session, Access(forward.url), forward.url, token, way)


async def to_pod(
    stack: AsyncExitStack, connection: Connection, namespace: str, selector: str, port: int, absent: NotNowError
) -> tuple[str, Forward, aiohttp.ClientSession]:
    """A port-forward to a pod that can be used: the pod's name, and a session over it, without a limit of time.

    Raises:
        KubeError: There is none.
        NotNowError: ``absent``, as no pod is ready.
    """
    pods = await connection.kube.list(PODS, namespace, selector)
    pod = next((str(pod["metadata"]["name"]) for pod in pods if is_ready(pod)), None)
    if pod is None:
        raise absent
    forward = await stack.enter_async_context(forwarded(connection.kube.access, namespace, pod, port))
    return pod, forward, await _session(stack, aiohttp.UnixConnector(str(forward.socket), limit=0))


def no_forward(error: KubeError) -> str:
    """Why there is no port-forward."""
    said = message_of(error).removeprefix("port-forward: ")
    # The API server does not always name the right that is missing.
    return f"{said.rstrip(': ')} ({RIGHTS})" if isinstance(error, Forbidden) else said


def proxied_instead(reason: str) -> str:
    """What people are told then."""
    return f"no port-forward, so through the API server's Service proxy: {reason}"


async def _proxied(
    stack: AsyncExitStack, connection: Connection, cluster: Json, token: str, instead: str
) -> RayDashboard:
    """Through the API server's Service proxy."""
    access = connection.kube.access
    head = Place(cluster["metadata"]["namespace"], head_service(cluster), DASHBOARD_PORT)
    session = await _session(stack, aiohttp.TCPConnector(limit=0))
    fix = f"This takes the right to get services/proxy, and an API server that reaches pods. No port-forward: {instead}"
    way = Way(f"Service {head.service} in namespace {head.namespace}", fix, instead)
    return RayDashboard(session, access, base_url("proxy", head, access), token, way)


async def _session(stack: AsyncExitStack, connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    return await stack.enter_async_context(
        aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=None)
        )
    )


async def _cluster(connection: Connection, live: Json) -> Json:
    """The RayCluster that answers."""
    name, namespace = active_cluster(live), live["metadata"]["namespace"]
    where = connection.place(namespace)
    if not name:
        raise NotNowError(
            f"{live['metadata']['name']} has no Ray cluster that runs", where=where, fix="Look with `servepipe status`."
        )
    with in_words(connection):
        try:
            return await connection.kube.get(RAYCLUSTERS, namespace, name)
        except NotFound as error:
            raise NotNowError(f"The RayCluster {name!r} is gone", where=where) from error


async def _token(connection: Connection, live: Json) -> str:
    metadata = live["metadata"]
    name = token_secret_name(metadata["name"])
    with in_words(connection):
        try:
            secret = await connection.kube.get(SECRETS, metadata["namespace"], name)
        except NotFound as error:
            raise ClusterError(
                f"The Secret {name!r} with Ray's token is not there",
                where=connection.place(metadata["namespace"]),
                fix="The operator makes it; look with `servepipe status`.",
            ) from error
    token = token_of(secret)
    if token is None:
        raise ClusterError(f"The Secret {name!r} has no {TOKEN_KEY!r} that can be read")
    return token
