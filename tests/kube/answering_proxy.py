"""An API server that answers otherwise than the real one behind it: errors, and what was true a while ago.

It terminates TLS, with the API server's own certificate, and passes everything on that no rule is about.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web
from bed.control_plane import ControlPlane
from cutting_proxy import through
from in_thread import LoopThread

#: Of a connection, not of what is passed on.
HOP = frozenset(("connection", "keep-alive", "transfer-encoding", "content-length", "accept-encoding", "host"))


@dataclass(frozen=True)
class Asked:
    """A request: verb as RBAC has it, plural of the resource with its subresource ("" for discovery)."""

    verb: str
    resource: str


@dataclass
class Fault:
    """What happens to requests.

    Args:
        about: To which.
        code: The HTTP status that is answered.
        times: To how many of them; None: all.
        carried_out: The server does what it is asked for, and only its answer is replaced.
        retry_after: Seconds of the header Retry-After.
        met: To how many it has happened.
    """

    about: Callable[[Asked], bool]
    code: int
    times: int | None = None
    carried_out: bool = False
    retry_after: str = ""
    met: list[Asked] = field(default_factory=list)

    def applies(self, asked: Asked) -> bool:
        return (self.times is None or len(self.met) < self.times) and self.about(asked)


class AnsweringProxy:
    """Listens on a free port of 127.0.0.1."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._faults: list[Fault] = []
        self._hooks: list[tuple[Asked, Callable[[], None]]] = []
        self._old: dict[str, bytes] = {}  # the latest list of each resource, by path and query
        self._stale: frozenset[str] = frozenset()
        self.stale_answers = 0
        """Old lists and held-back changes that were answered so far."""
        self._thread = LoopThread("answering-proxy")
        self._fresh, self.url = self._thread.call(self._start())

    def kubeconfig(self, other: Path, folder: Path) -> Path:
        """As whom ``other`` logs in, through here."""
        return through(self.url, self._plane, other, folder / "answering-proxy.kubeconfig")

    def fault(self, fault: Fault) -> Fault:
        """From now on, before those that were there."""
        self._faults.insert(0, fault)
        return fault

    def at_next(self, asked: Asked, do: Callable[[], None]) -> None:
        """Call ``do`` once, when ``asked`` is asked for next and has not yet been passed on."""
        self._hooks.append((asked, do))

    def no_faults(self) -> None:
        """From now on."""
        self._faults.clear()
        self._hooks.clear()

    def grow_stale(self, *resources: str) -> None:
        """From now on lists of ``resources`` (plurals) are those of before, and changes come only with `refresh`."""
        self._stale = frozenset(resources)
        self._thread.call(self._set(False))

    def refresh(self) -> None:
        """What was held back is told, and lists are true."""
        self._stale = frozenset()
        self._thread.call(self._set(True))

    def stop(self) -> None:
        """The end of it."""
        self._thread.call(self._end())
        self._thread.stop()

    # -- in the thread

    async def _start(self) -> tuple[asyncio.Event, str]:
        fresh = asyncio.Event()
        fresh.set()
        certificate = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.load_cert_chain(self._plane.folder / "apiserver.crt", self._plane.folder / "apiserver.key")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context(cafile=str(self._plane.authority))),
            timeout=aiohttp.ClientTimeout(total=None),
            skip_auto_headers=("Accept-Encoding",),
        )
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=certificate)
        await site.start()
        return fresh, f"https://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _end(self) -> None:
        self._fresh.set()
        await self._runner.cleanup()
        await self._session.close()

    async def _set(self, fresh: bool) -> None:
        self._fresh.set() if fresh else self._fresh.clear()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = _asked(request)
        for hook in [hook for hook in self._hooks if hook[0] == asked]:
            self._hooks.remove(hook)
            hook[1]()
        fault = next((one for one in self._faults if one.applies(asked)), None)
        if fault is not None:
            fault.met.append(asked)
            if not fault.carried_out:
                return _refusal(fault)
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        url = self._plane.url + request.raw_path
        if asked.verb == "list" and asked.resource in self._stale and request.raw_path in self._old:
            self.stale_answers += 1
            return web.Response(body=self._old[request.raw_path], content_type="application/json")
        try:
            async with self._session.request(request.method, url, data=body or None, headers=headers) as answer:
                if asked.verb == "watch" and answer.status == 200:
                    return await self._watched(request, asked, answer)
                told = await answer.read()
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=str(error))
        if fault is not None:
            return _refusal(fault)
        if asked.verb == "list" and answer.status == 200:
            self._old[request.raw_path] = told
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
        return web.Response(status=answer.status, body=told, headers=kept)

    async def _watched(
        self, request: web.BaseRequest, asked: Asked, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        passed = web.StreamResponse(headers={"Content-Type": "application/json"})
        await passed.prepare(request)
        try:
            async for chunk in answer.content.iter_any():
                if asked.resource in self._stale:
                    self.stale_answers += 1
                    await self._fresh.wait()
                await passed.write(chunk)
        except (aiohttp.ClientError, OSError):
            # As the server broke off, so does this: nothing else may come after the begin of an answer.
            if request.transport is not None:
                request.transport.abort()
        return passed


def _asked(request: web.BaseRequest) -> Asked:
    parts = request.path.strip("/").split("/")
    rest = parts[3 if parts[0] == "apis" else 2 :]
    if len(rest) > 2 and rest[0] == "namespaces":
        rest = rest[2:]
    resource = "/".join(part for number, part in enumerate(rest[:3]) if number != 1)
    many = len(rest) == 1
    verbs = {
        "GET": "watch" if "watch" in request.query else "list" if many else "get",
        "POST": "create",
        "PUT": "update",
        "PATCH": "patch",
        "DELETE": "delete",
    }
    return Asked(verbs[request.method], resource)


def _refusal(fault: Fault) -> web.Response:
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": fault.code,
        "message": "as a test wants",
    }
    headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
    return web.json_response(status, status=fault.code, headers=headers)
