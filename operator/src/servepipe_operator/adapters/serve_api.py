"""Serve's REST API, version 2, as the engine's `ServeApi` port.

Everything goes through the dashboard's ``/api/serve/applications/``. The header is ``X-Ray-Authorization`` and not
``Authorization``, since proxies between an operator and a dashboard take the latter for themselves.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp

from servepipe_operator.adapters.answers import text_of
from servepipe_operator.adapters.guarded import GuardedBody
from servepipe_operator.adapters.timeouts import within
from servepipe_operator.engine.state import Application, Capacity, Json, Replica
from servepipe_operator.ports import ServeRejectedError, TokenRefusedError, UnreachableError

__all__ = ["RayServeApi", "parse_applications"]

PATH = "/api/serve/applications/"
# The first PUT starts Serve's controller and waits for it, 6 to 11 seconds on a slow machine.
PUT_TIMEOUT_S = 90.0
GET_TIMEOUT_S = 15.0
ERROR_CHARS = 4000
_OTHER_TOKEN = (
    "Ray's processes were started with another token than the pipeline's Secret holds now; put that one back, or "
    "delete the RayCluster: it is made again, and all its pods start with the token that there is"
)


def _always() -> None: ...


async def _unknown_capacity() -> Capacity | None:
    return None


class RayServeApi:
    """A client of one dashboard.

    Args:
        session: Whose connections are used; closed by its owner.
        url: The dashboard, like ``http://127.0.0.1:8265``.
        token: Ray's token, or "" where Ray runs without.
        capacity: How to ask for Ray's resources, which the REST API does not tell.
        allowed: Asked before a PUT leaves; raises where this process must not write (any more).
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        token: str = "",
        capacity: Callable[[], Awaitable[Capacity | None]] = _unknown_capacity,
        allowed: Callable[[], None] = _always,
    ) -> None:
        self._session = session
        self._url = url.rstrip("/") + PATH
        self._headers = {"X-Ray-Authorization": f"Bearer {token}"} if token else {}
        self._capacity = capacity
        self._allowed = allowed

    async def applications(self) -> dict[str, Application] | None:
        """See `servepipe_operator.ports.ServeApi.applications`."""
        return parse_applications(await self._request("GET", GET_TIMEOUT_S))

    async def put(self, config: Json) -> None:
        """See `servepipe_operator.ports.ServeApi.put`; raises what ``allowed`` raises too."""
        self._allowed()
        await self._request("PUT", PUT_TIMEOUT_S, GuardedBody(json.dumps(config).encode(), self._allowed))

    async def capacity(self) -> Capacity | None:
        """See `servepipe_operator.ports.ServeApi.capacity`."""
        return await self._capacity()

    async def _request(self, method: str, timeout_s: float, body: GuardedBody | None = None) -> Any:
        try:
            async with self._session.request(
                method,
                self._url,
                data=body,
                headers=self._headers,
                timeout=within(timeout_s),
                allow_redirects=False,  # a pod must not choose whom we ask
            ) as response:
                text = await text_of(response)
                status = response.status
        except (aiohttp.ClientError, OSError) as error:
            if body is not None:
                body.raise_refusal()
            raise UnreachableError(f"{method} {self._url}: {str(error) or type(error).__name__}") from error
        if method == "PUT" and status == 400:
            raise ServeRejectedError(_shorten(text))
        if status in (401, 403) and not _from_the_api_server(text):
            raise TokenRefusedError(f"{method} {self._url}: HTTP {status}: {_shorten(text)}: {_OTHER_TOKEN}")
        if status != 200:
            raise UnreachableError(f"{method} {self._url}: HTTP {status}: {_shorten(text)}")
        if method == "PUT":
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            raise UnreachableError(f"{method} {self._url}: the answer is not JSON: {_shorten(text)}") from error


def _from_the_api_server(text: str) -> bool:
    """It answers so on the way through its proxy, where it does not let us through."""
    try:
        body = json.loads(text)
    except ValueError:
        return False
    return isinstance(body, dict) and body.get("kind") == "Status"


def _shorten(text: str) -> str:
    """The end of a long message: a traceback's last lines say what happened."""
    text = text.strip()
    return text if len(text) <= ERROR_CHARS else "…" + text[-ERROR_CHARS:]


def parse_applications(payload: Any) -> dict[str, Application] | None:
    """The engine's view of ``ServeInstanceDetails``; None when Serve was never started.

    Raises:
        UnreachableError: The payload is not what Serve 2.60 answers.
    """
    try:
        applications: Mapping[str, Json] = payload["applications"]
        if not applications and not payload["controller_info"]:
            return None
        return {name: _application(name, details) for name, details in applications.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UnreachableError(f"Serve's answer has an unknown form: {type(error).__name__}: {error}") from error


def _application(name: str, details: Json) -> Application:
    deployments: list[Json] = list((details.get("deployments") or {}).values())
    # Ours have one deployment each; of a foreign application with several, the first that is not healthy speaks.
    speaker = next((d for d in deployments if d["status"] != "HEALTHY"), deployments[0] if deployments else {})
    return Application(
        name=name,
        status=details["status"],
        message=details.get("message") or "",
        config=details.get("deployed_app_config"),
        deployment_status=speaker.get("status", ""),
        deployment_message=speaker.get("message") or "",
        replicas=tuple(_replica(replica) for d in deployments for replica in d.get("replicas") or ()),
        target_replicas=sum(d.get("target_num_replicas") or 0 for d in deployments),
        deployed_at=details.get("last_deployed_time_s") or 0.0,
    )


def _replica(details: Json) -> Replica:
    return Replica(
        id=details["replica_id"],
        state=details["state"],
        pid=details.get("pid"),
        node_ip=details.get("node_ip") or "",
        started_at=details.get("start_time_s") or 0.0,
    )
