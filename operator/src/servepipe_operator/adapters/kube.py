"""The Kubernetes API on plain dict bodies: the few verbs that the operator needs.

Login is that of `kubernetes.aio` (see `kube_access`); the requests themselves go through aiohttp. The library's own
REST layer turns a JSON patch that is not a list into another kind of patch and has no place for Retry-After or a limit
on the rate, and its typed models refuse fields that they do not know, so that they could not read the answers of a
newer API server.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from servepipe_operator.adapters.guarded import GuardedBody
from servepipe_operator.adapters.kube_access import Access
from servepipe_operator.adapters.kube_errors import (
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    NotFound,
    TooManyRequests,
    Unavailable,
    error_from,
)
from servepipe_operator.adapters.kube_resource import Page, Resource
from servepipe_operator.adapters.kube_watch import follow
from servepipe_operator.adapters.limits import RateLimit
from servepipe_operator.engine.state import Json

__all__ = ["Kube", "Page", "Resource"]

FIELD_MANAGER = "servepipe"
PAGE = 500
# How often, and how many seconds in total, an overloaded server is asked again.
BUSY_ATTEMPTS = 4
BUSY_MOST_S = 30.0


OnRequest = Callable[[str, str, int, float], None]


def _unmeasured(verb: str, resource: str, code: int, seconds: float) -> None: ...


class Kube:
    """A client of one API server. Every method raises the errors of `kube_errors`.

    Args:
        session: Whose connections are used; closed by its owner.
        access: Where the server is; see `kube_access.login`.
        rate: Requests per second over all callers, and how many may come at once after a pause.
        at_once: How many requests may be under way. Few, since a server that is slow is made slower by more of them:
            it gives out the addresses of Services one after the other, and those that waited too long in vain.
        timeout_s: For one request, all in all.
        allowed: Asked before every write; raises where this process must not write (any more).
        on_request: Told the verb, the plural, the HTTP status (0: no answer) and the seconds of each request.
        manager: Under which name the API server notes who set a field.
        sleep: Replaced by tests.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        access: Access,
        *,
        rate: RateLimit | None = None,
        at_once: int = 16,
        timeout_s: float = 20.0,
        allowed: Callable[[], None] = lambda: None,
        on_request: OnRequest = _unmeasured,
        manager: str = FIELD_MANAGER,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._session = session
        self._access = access
        self._rate = rate or RateLimit(per_s=50.0, burst=100)
        self._slots = asyncio.Semaphore(at_once)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._allowed = allowed
        self._on_request = on_request
        self._manager = manager
        self._sleep = sleep

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """One object."""
        return await self._call("get", resource, resource.path(namespace, name))

    async def pages(
        self, resource: Resource, namespace: str = "", labels: str = "", fields: str = ""
    ) -> AsyncIterator[Page]:
        """Objects page by page. Raises `Gone` when the list grew too old in the middle."""
        token = ""
        while True:
            query = {"limit": str(PAGE), "labelSelector": labels, "fieldSelector": fields, "continue": token}
            body = await self._call("list", resource, resource.path(namespace), query=query)
            metadata = body.get("metadata") or {}
            yield Page(tuple(body.get("items") or ()), str(metadata.get("resourceVersion") or ""))
            token = metadata.get("continue") or ""
            if not token:
                return

    async def list(
        self, resource: Resource, namespace: str = "", labels: str = "", fields: str = ""
    ) -> tuple[Json, ...]:
        """All objects (``namespace`` "": of all namespaces) by selectors; begins anew once if too old."""
        for attempt in (1, 2):
            try:
                pages = self.pages(resource, namespace, labels, fields)
                return tuple([item async for page in pages for item in page.items])
            except Gone:
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def watch(
        self,
        resource: Resource,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        *,
        since: str,
        seconds: int = 300,
    ) -> AsyncIterator[AsyncIterator[Json]]:
        """What changes after the version ``since``; entered once the server agreed. See `kube_watch.changes`.

        Args:
            seconds: After which the server ends it, so that many watches spread over many servers again.
        """
        path = resource.path(namespace)
        query = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": since, "timeoutSeconds": str(seconds)}
        query |= {"labelSelector": labels, "fieldSelector": fields}
        await self._rate.wait()
        async with follow(
            self._session,
            f"watch {path}",
            self._access.url + path,
            {key: value for key, value in query.items() if value},
            await self._credentials(f"watch {path}"),
            self._access.ssl_context or True,
            lambda code, seconds: self._on_request("watch", resource.plural, code, seconds),
        ) as changes:
            yield changes

    async def create(self, resource: Resource, body: Json, *, dry_run: bool = False) -> Json:
        """A new object, or with ``dry_run`` only what the server would say to it."""
        query = {"fieldManager": self._manager, "dryRun": "All" if dry_run else ""}
        path = resource.path(_namespace(body))
        return await self._call("create", resource, path, "POST", query=query, body=body)

    async def create_or_get(self, resource: Resource, body: Json) -> Json | None:
        """None where ``body`` was made, else the object that has its name.

        Raises:
            Conflict: That one was there and went at once, as what a deleted pipeline leaves does: look again.
        """
        try:
            await self.create(resource, body)
        except AlreadyExists:
            namespace, name = _namespace(body), body["metadata"]["name"]
            try:
                return await self.get(resource, namespace, name)
            except NotFound as error:
                raise Conflict(f"{resource.kind} {namespace}/{name} was there and is gone") from error
        return None

    async def apply(self, resource: Resource, body: Json, *, force: bool = True, dry_run: bool = False) -> Json:
        """Server-side apply: create or change what ``body`` says and drop what we no longer say.

        Args:
            force: Take the fields that others hold with another value; without, they are a `Conflict` that names them.
            dry_run: Only answer with the object as it would become.
        """
        return await self._apply(resource, body, "", force=force, dry_run=dry_run)

    async def apply_status(self, resource: Resource, body: Json) -> Json:
        """Like `apply` for ``/status``; never creates the object."""
        return await self._apply(resource, body, "status")

    async def json_patch(self, resource: Resource, namespace: str, name: str, operations: Sequence[Json]) -> Json:
        """RFC 6902. A ``test`` that fails, or a path that is missing, raises `Conflict`: read again."""
        try:
            return await self._call(
                "patch",
                resource,
                resource.path(namespace, name),
                "PATCH",
                query={"fieldManager": self._manager},
                body=tuple(operations),
                content_type="application/json-patch+json",
            )
        except Invalid as error:
            # Both a patch that does not fit and a result that is not valid are 422; only the latter names fields.
            if error.code == 422 and not error.causes:
                raise Conflict(str(error), error.code, error.reason) from error
            raise

    async def update(self, resource: Resource, body: Json) -> Json:
        """Replace an object; with its resourceVersion in ``body``, only if it did not change meanwhile."""
        path = resource.path(_namespace(body), body["metadata"]["name"])
        return await self._call("update", resource, path, "PUT", query={"fieldManager": self._manager}, body=body)

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        resource_version: str = "",
        propagation: str = "Background",
    ) -> None:
        """Delete, only if uid and resourceVersion (where given) are still those."""
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        options: Json = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if wanted := {key: value for key, value in preconditions.items() if value}:
            options["preconditions"] = wanted
        await self._call("delete", resource, resource.path(namespace, name), "DELETE", body=options)

    async def discover(self, api_version: str) -> frozenset[str]:
        """The plurals that the server knows in ``api_version``; empty when the group is not there."""
        path = ("/apis/" if "/" in api_version else "/api/") + api_version
        what = Resource(api_version, "APIResourceList", "apiresources", namespaced=False)
        try:
            body = await self._call("get", what, path)
        except NotFound:
            return frozenset()
        return frozenset(str(entry["name"]) for entry in body.get("resources") or ())

    @property
    def access(self) -> Access:
        """What other sessions need to speak to the same server."""
        return self._access

    async def _apply(
        self, resource: Resource, body: Json, subresource: str, *, force: bool = True, dry_run: bool = False
    ) -> Json:
        return await self._call(
            "apply",
            resource,
            resource.path(_namespace(body), body["metadata"]["name"], subresource),
            "PATCH",
            query={
                "fieldManager": self._manager,
                "force": str(force).lower(),
                "dryRun": "All" if dry_run else "",
            },
            body=body,
            content_type="application/apply-patch+yaml",
        )

    async def _call(
        self,
        verb: str,
        resource: Resource,
        path: str,
        method: str = "GET",
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Json:
        """One request, again while the server says that it is too busy; other failures are the caller's to judge."""
        waited = 0.0
        for attempt in range(1, BUSY_ATTEMPTS + 1):
            try:
                return await self._once(verb, resource, path, method, query or {}, body, content_type)
            except TooManyRequests as error:
                waited += error.retry_after_s
                if attempt == BUSY_ATTEMPTS or waited > BUSY_MOST_S:
                    raise
                await self._sleep(error.retry_after_s)
        raise AssertionError("unreachable")

    async def _once(
        self, verb: str, resource: Resource, path: str, method: str, query: Mapping[str, str], body: Any, kind: str
    ) -> Json:
        await self._rate.wait()
        what = f"{verb} {path}"
        code = 0
        async with self._slots:
            headers = await self._credentials(what) | {"Accept": "application/json", "Content-Type": kind}
            guarded: GuardedBody | None = None
            if method != "GET":
                self._allowed()
                guarded = GuardedBody(json.dumps(body).encode(), self._allowed, kind)
            began = time.monotonic()
            try:
                async with self._session.request(
                    method,
                    self._access.url + path,
                    params={key: value for key, value in query.items() if value},
                    data=guarded,
                    headers=headers,
                    ssl=self._access.ssl_context or True,
                    timeout=self._timeout,
                ) as response:
                    code = response.status
                    text = await response.text()
                    answered = response.headers
            except (aiohttp.ClientError, OSError, UnicodeDecodeError) as error:
                if guarded is not None:
                    guarded.raise_refusal()
                raise Unavailable(f"{what}: {str(error) or type(error).__name__}") from error
            finally:
                self._on_request(verb, resource.plural, code, time.monotonic() - began)
        if code >= 400:
            raise error_from(what, code, text, answered)
        try:
            answer = json.loads(text) if text else {}
        except ValueError as error:
            raise Unavailable(f"{what}: the answer is not JSON: {text[:200]}", code) from error
        return answer if isinstance(answer, dict) else {}

    async def _credentials(self, what: str) -> dict[str, str]:
        try:
            return await self._access.headers()
        except Exception as error:  # a plug-in of the kubeconfig can raise anything
            raise Unavailable(f"{what}: no credentials: {str(error) or type(error).__name__}") from error


def _namespace(body: Json) -> str:
    return str(body["metadata"].get("namespace") or "")
