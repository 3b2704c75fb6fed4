"""The control server of a run: HTTP on loopback, for other terminals of the same user.

Whoever knows the token (the user who can read ``run.json``) may change the pipeline. Requests that a browser sends on
behalf of a web page are refused, whatever they carry.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from aiohttp import web

from servepipe.errors import ServePipeError
from servepipe_operator.engine.state import Json

__all__ = ["ControlServer", "Controlled"]

MAX_BODY = 8 << 20
STOP_TIMEOUT_S = 2.0


class Controlled(Protocol):
    """What the server lets others do; every method may raise `ServePipeError`."""

    def snapshot(self) -> Json: ...

    async def apply(self, document: str, folder: str) -> Json:
        """Apply a resource whose modules are looked for in ``folder``."""
        ...

    async def scale(self, node: str, replicas: int) -> Json: ...

    def logs(self, node: str, follow: bool, previous: bool) -> AsyncIterator[str]: ...

    def stop(self) -> None: ...


class ControlServer:
    """Serves ``controlled`` on a free port of loopback."""

    def __init__(self, controlled: Controlled, token: str) -> None:
        self._controlled = controlled
        self._token = token
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Start to listen; returns the URL."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        app.router.add_get("/v1/status", self._status)
        app.router.add_put("/v1/resource", self._resource)
        app.router.add_post("/v1/scale", self._scale)
        app.router.add_get("/v1/logs/{node}", self._logs)
        app.router.add_post("/v1/down", self._down)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_TIMEOUT_S)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if "Origin" in request.headers or not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return _refuse(403, ServePipeError("This needs the token of the run", fix="It is in the run's run.json."))
        try:
            return await handler(request)
        except ServePipeError as error:
            return _refuse(422, error)

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._controlled.snapshot())

    async def _resource(self, request: web.Request) -> web.Response:
        folder = request.query.get("folder", "")
        return web.json_response(await self._controlled.apply(await request.text(), folder))

    async def _scale(self, request: web.Request) -> web.Response:
        body = await _json(request)
        node, replicas = body.get("node"), body.get("replicas")
        if not isinstance(node, str) or type(replicas) is not int:
            raise ServePipeError('The body must be {"node": name, "replicas": whole number}')
        return web.json_response(await self._controlled.scale(node, replicas))

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        follow, previous = (request.query.get(name) == "1" for name in ("follow", "previous"))
        lines = self._controlled.logs(request.match_info["node"], follow, previous)
        first = await anext(lines, None)  # an unknown node must be refused before the answer begins
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await response.prepare(request)
        if first is not None:
            await response.write(f"{first}\n".encode())
        async for line in lines:
            await response.write(f"{line}\n".encode())
        await response.write_eof()
        return response

    async def _down(self, request: web.Request) -> web.Response:
        self._controlled.stop()
        return web.json_response({"stopping": True}, status=202)


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise ServePipeError(f"The body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ServePipeError("The body must be a JSON object")
    return body


def _refuse(status: int, error: ServePipeError) -> web.Response:
    body = {"error": {"what": error.what, "where": error.where, "fix": error.fix}}
    return web.json_response(body, status=status)
