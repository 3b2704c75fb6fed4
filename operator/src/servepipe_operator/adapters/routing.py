"""The ingress's own view, asked for through its HTTP port."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from servepipe_operator.adapters.answers import text_of
from servepipe_operator.adapters.timeouts import within
from servepipe_operator.engine.state import RoutingAck
from servepipe_operator.ports import UnreachableError

__all__ = ["IngressRouting"]

TIMEOUT_S = 10.0


class IngressRouting:
    """A client of one ingress.

    Args:
        session: Whose connections are used; closed by its owner.
        url: The pipeline's URL, with its route.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url.rstrip("/")

    async def acks(self) -> tuple[RoutingAck, ...]:
        """See `servepipe_operator.ports.Routing.acks`."""
        status, body = await self._get("/-/routing")
        if status != 200:
            raise UnreachableError(f"{self._url}/-/routing: HTTP {status}")
        try:
            return tuple(
                RoutingAck(
                    replica=ack["replica"],
                    application=ack["application"],
                    table=ack["table"],
                    busy={name: int(count) for name, count in ack["busy"].items()},
                    errors={name: str(error) for name, error in ack.get("errors", {}).items()},
                )
                for ack in body["replicas"]
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnreachableError(f"{self._url}/-/routing: unknown form: {error!r}") from error

    async def ready(self) -> tuple[bool, tuple[str, ...]]:
        """See `servepipe_operator.ports.Routing.ready`."""
        status, body = await self._get("/-/ready")
        if status not in (200, 503) or not isinstance(body, dict) or "ready" not in body:
            # Serve's proxy answers 404 or 503 itself while there is no ingress.
            raise UnreachableError(f"{self._url}/-/ready: HTTP {status}, not from the ingress")
        return status == 200, tuple(str(name) for name in body.get("notReady") or ())

    async def _get(self, path: str) -> tuple[int, Any]:
        try:
            # No redirects: a pod must not choose whom we ask.
            async with self._session.get(
                self._url + path, timeout=within(TIMEOUT_S), allow_redirects=False
            ) as response:
                text = await text_of(response)
                return response.status, json.loads(text) if response.content_type == "application/json" else text
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise UnreachableError(f"{self._url}{path}: {str(error) or type(error).__name__}") from error
