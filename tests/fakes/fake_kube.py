"""A Kubernetes API server in this process: real resourceVersions, server-side apply, and faults on demand.

It knows no schemas. Managed fields are kept as the last applied body of each manager: what a manager no longer says is
removed. Lists are replaced as a whole, except ``conditions``, which are merged by ``type``.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from servepipe_operator.adapters.kube import Kube
from servepipe_operator.adapters.kube_access import Access

Json = dict[str, Any]
# Answers instead of the server, before (``return web.Response``) anything is stored; None lets the request through.
Fault = Callable[[str, str], "web.Response | None"]


def status(code: int, reason: str, message: str, headers: dict[str, str] | None = None, **details: Any) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message}
    return web.json_response(body | {"details": details}, status=code, headers=headers)


@dataclass
class FakeKube:
    """``objects`` by (collection path with namespace, name); ``requests`` in order as "METHOD path"."""

    objects: dict[tuple[str, str], Json] = field(default_factory=dict)
    applied: dict[tuple[str, str, str], Json] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lose_answers: Callable[[str, str], bool] = lambda method, path: False
    missing_kinds: set[str] = field(default_factory=set)
    terminating: set[str] = field(default_factory=set)
    version: int = 100
    oldest_version: int = 0

    @property
    def writes(self) -> list[str]:
        return [request for request in self.requests if not request.startswith("GET")]

    def fail_once(self, method: str, *answers: web.Response) -> None:
        """Answer the next requests of ``method`` with these instead."""
        left = list(answers)
        self.faults.append(lambda m, path: left.pop(0) if m == method and left else None)

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append(f"{request.method} {request.path}")
        for fault in self.faults:
            if (answer := fault(request.method, request.path)) is not None:
                return answer
        text = await request.text()
        answer = self.answer(request, json.loads(text) if text else None)
        if self.lose_answers(request.method, request.path):
            assert request.transport is not None
            request.transport.close()
        return answer

    def answer(self, request: web.Request, body: Any) -> web.Response:
        parts = request.path.strip("/").split("/")
        prefix, rest = (parts[:2], parts[2:]) if parts[0] == "api" else (parts[:3], parts[3:])
        namespace = rest[1] if rest[0] == "namespaces" and len(rest) > 2 else ""
        plural, name, sub = [*(rest[2:] if namespace else rest), "", ""][:3]
        if plural in self.missing_kinds:
            return web.Response(status=404, text="404 page not found\n")
        collection = "/".join([*prefix, *(["namespaces", namespace] if namespace else []), plural])
        key = (collection, name)
        match request.method:
            case "GET" if not name:
                return self._list(request, prefix, plural, namespace)
            case "GET":
                found = self.objects.get(key)
                return web.json_response(found) if found else self._missing(key)
            case "POST":
                return self._create(request, collection, namespace, body)
            case "PUT":
                if key not in self.objects:
                    return self._missing(key)
                wanted = body["metadata"].get("resourceVersion")
                if wanted and wanted != self.objects[key]["metadata"]["resourceVersion"]:
                    return status(409, "Conflict", "the object has been modified", name=name)
                return web.json_response(self._store(key, body))
            case "PATCH" if "apply-patch" in request.headers["Content-Type"]:
                return self._apply(request, key, sub, body)
            case "PATCH":
                return self._json_patch(key, body)
            case _:
                return self._delete(key, body or {})

    def _missing(self, key: tuple[str, str]) -> web.Response:
        return status(404, "NotFound", f'{key[0]} "{key[1]}" not found', name=key[1])

    def _store(self, key: tuple[str, str], body: Json) -> Json:
        old = self.objects.get(key)
        new = copy.deepcopy(body)
        meta = new.setdefault("metadata", {})
        kept = (old or {}).get("metadata", {})
        meta["uid"] = kept.get("uid") or str(uuid.uuid4())
        meta["resourceVersion"] = kept.get("resourceVersion", "")
        if old is None or new != old:
            self.version += 1
            meta["resourceVersion"] = str(self.version)
            self.objects[key] = new
        return self.objects[key]

    def _list(self, request: web.Request, prefix: list[str], plural: str, namespace: str) -> web.Response:
        wanted = [pair.split("=", 1) for pair in request.query.get("labelSelector", "").split(",") if pair]
        group = "/".join(prefix)
        items = [
            item
            for (collection, _), item in sorted(self.objects.items())
            if collection.startswith(group + "/") and collection.split("/")[-1] == plural
            if not namespace or f"/namespaces/{namespace}/" in f"{collection}/"
            if all(item["metadata"].get("labels", {}).get(name) == value for name, value in wanted)
        ]
        start, _, version = request.query.get("continue", "0").partition("@")
        if version and int(version) < self.oldest_version:
            return status(410, "Expired", "the provided continue parameter is too old")
        end = int(start) + int(request.query.get("limit", "500"))
        more = f"{end}@{self.version}" if end < len(items) else ""
        meta = {"resourceVersion": str(self.version), "continue": more}
        return web.json_response({"kind": "List", "metadata": meta, "items": items[int(start) : end]})

    def _create(self, request: web.Request, collection: str, namespace: str, body: Json) -> web.Response:
        if namespace in self.terminating:
            cause = {"reason": "NamespaceTerminating", "message": f"namespace {namespace} is being terminated"}
            return status(403, "Forbidden", "because it is being terminated", causes=[cause])
        meta = body["metadata"]
        name = meta.get("name") or meta["generateName"] + uuid.uuid4().hex[:5]
        if (collection, name) in self.objects:
            return status(409, "AlreadyExists", f'{collection} "{name}" already exists', name=name)
        body = body | {"metadata": meta | {"name": name}}
        if request.query.get("dryRun"):
            return web.json_response(body, status=201)
        return web.json_response(self._store((collection, name), body), status=201)

    def _apply(self, request: web.Request, key: tuple[str, str], sub: str, body: Json) -> web.Response:
        old = self.objects.get(key)
        if old is None and sub:
            return self._missing(key)
        meta = body["metadata"]
        kept = old["metadata"] if old else {}
        if old and meta.get("resourceVersion", kept["resourceVersion"]) != kept["resourceVersion"]:
            return status(409, "Conflict", "the object has been modified", name=key[1])
        if old and not sub and meta.get("uid", kept["uid"]) != kept["uid"]:
            return status(422, "Invalid", "metadata.uid: field is immutable", name=key[1])
        manager = (*key, request.query["fieldManager"] + "/" + sub)
        said = {k: v for k, v in body.items() if (k == "status") == bool(sub)}
        if "metadata" in said:
            said["metadata"] = {k: v for k, v in meta.items() if k != "resourceVersion"}
        merged = merge(copy.deepcopy(old or {}), self.applied.get(manager, {}), said)
        self.applied[manager] = copy.deepcopy(said)
        return web.json_response(self._store(key, merged), status=200 if old else 201)

    def _json_patch(self, key: tuple[str, str], operations: list[Json]) -> web.Response:
        if key not in self.objects:
            return self._missing(key)
        new = copy.deepcopy(self.objects[key])
        for operation in operations:
            *parents, last = [p.replace("~1", "/").replace("~0", "~") for p in operation["path"].split("/")[1:]]
            place: Any = new
            try:
                for part in parents:
                    place = place[int(part) if isinstance(place, list) else part]
                index: Any = int(last) if isinstance(place, list) and last != "-" else last
                match operation["op"]:
                    case "test" if place[index] != operation["value"]:
                        return status(422, "Invalid", "the server rejected our request: testing value failed")
                    case "remove":
                        del place[index]
                    case "add" if isinstance(place, list):
                        place.insert(len(place) if index == "-" else index, operation["value"])
                    case "add" | "replace":
                        place[index] = operation["value"]
            except (KeyError, IndexError):
                return status(422, "Invalid", f"path {operation['path']} is missing")
        return web.json_response(self._store(key, new))

    def _delete(self, key: tuple[str, str], options: Json) -> web.Response:
        if key not in self.objects:
            return self._missing(key)
        meta = self.objects[key]["metadata"]
        for name, value in options.get("preconditions", {}).items():
            if meta[name] != value:
                return status(409, "Conflict", f"Precondition failed: {name} in precondition: {value}", name=key[1])
        del self.objects[key]
        for manager in [m for m in self.applied if m[:2] == key]:
            del self.applied[manager]
        return web.json_response({"kind": "Status", "status": "Success"})


def merge(live: Any, before: Any, now: Any) -> Any:
    """``live`` with what the manager says now, and without what it said before and no longer says."""
    if not isinstance(now, dict) or not isinstance(live, dict):
        return now
    before = before if isinstance(before, dict) else {}
    for name in before.keys() - now.keys():
        live.pop(name, None)
    for name, value in now.items():
        if name == "conditions":
            kept = [c for c in live.get(name, []) if c["type"] not in {b["type"] for b in before.get(name, [])}]
            value = [c for c in kept if c["type"] not in {n["type"] for n in value}] + value
            live[name] = value
        else:
            live[name] = merge(live.get(name), before.get(name), value)
    return live


@asynccontextmanager
async def serving(fake: FakeKube, **options: Any) -> AsyncIterator[Kube]:
    """A client of ``fake`` behind real HTTP on a free loopback port; ``options`` are `Kube`'s."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.handle)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        yield Kube(session, Access(str(server.make_url("")).rstrip("/")), **options)
