"""A Kubernetes API server in this process: real resourceVersions, server-side apply, and faults on demand.

It knows no schemas. Managed fields are kept as the last applied body of each manager: what a manager no longer says is
removed. Lists are replaced as a whole, except ``conditions``, which are merged by ``type``.
"""

from __future__ import annotations

import asyncio
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
PLURALS = {
    "ServePipeline": "servepipelines",
    "RayCluster": "rayclusters",
    "Service": "services",
    "Pod": "pods",
    "Event": "events",
}
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
    #: What discovery knows, as prefix and plural, less `missing_kinds`.
    served: tuple[str, ...] = (
        "apis/servepipe.dev/v1alpha1/servepipelines",
        "apis/ray.io/v1/rayclusters",
        "api/v1/pods",
    )
    missing_kinds: set[str] = field(default_factory=set)
    terminating: set[str] = field(default_factory=set)
    version: int = 100
    oldest_version: int = 0
    #: What watches are told: version, type, object's collection, object.
    changes: list[tuple[int, str, str, Json]] = field(default_factory=list)
    watches: int = 0
    _cuts: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

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
        if request.query.get("watch"):
            return await self._watch(request)
        text = await request.text()
        answer = self.answer(request, json.loads(text) if text else None)
        if self.lose_answers(request.method, request.path):
            assert request.transport is not None
            request.transport.close()
        return answer

    def put(self, body: Json) -> Json:
        """What `kubectl replace` would do, or create."""
        group = body["apiVersion"]
        path = [("apis" if "/" in group else "api"), group, "namespaces", body["metadata"]["namespace"]]
        return self._store(("/".join([*path, PLURALS[body["kind"]]]), body["metadata"]["name"]), body)

    def remove(self, body: Json, *, seen: bool = True) -> None:
        """The object goes; watches are not told unless ``seen``."""
        [key] = [key for key, one in self.objects.items() if one["metadata"]["uid"] == body["metadata"]["uid"]]
        self._gone(key) if seen else self.objects.pop(key)

    def cut_watches(self) -> None:
        """All watches that are open end."""
        self._cuts += 1
        self._wake()

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        if parts[-1] in self.missing_kinds:
            return web.Response(status=404, text="404 page not found\n")
        group = "/".join(parts[:2] if parts[0] == "api" else parts[:3]) + "/"
        inside = f"/namespaces/{parts[-2]}/" if "namespaces" in parts else "/"
        since, cuts = int(request.query["resourceVersion"]), self._cuts
        response = web.StreamResponse()
        await response.prepare(request)
        if since < self.oldest_version:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": f"too old resource version: {since}"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        self.watches += 1
        told = 0
        end = asyncio.get_running_loop().call_later(int(request.query["timeoutSeconds"]), self._wake)
        try:
            while self._cuts == cuts and end.when() > asyncio.get_running_loop().time():
                changed = self._changed
                for version, kind, collection, live in self.changes[told:]:
                    mine = collection.startswith(group) and collection.endswith("/" + parts[-1])
                    if version > since and mine and inside in collection + "/" and _selected(request, live):
                        await response.write(json.dumps({"type": kind, "object": live}).encode() + b"\n")
                told = len(self.changes)
                await changed.wait()
        finally:
            end.cancel()
            self.watches -= 1
        return response

    def _tell(self, kind: str, collection: str, live: Json) -> None:
        self.changes.append((self.version, kind, collection, copy.deepcopy(live)))
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def answer(self, request: web.Request, body: Any) -> web.Response:
        parts = request.path.strip("/").split("/")
        prefix, rest = (parts[:2], parts[2:]) if parts[0] == "api" else (parts[:3], parts[3:])
        if not rest:
            return self._discover("/".join(prefix))
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

    def _discover(self, group: str) -> web.Response:
        known = [one for one in self.served if one.startswith(group + "/")]
        names = [one.rpartition("/")[2] for one in known]
        found = [{"name": name} for name in names if name not in self.missing_kinds]
        if not found:
            return web.Response(status=404, text="404 page not found\n")
        return web.json_response({"kind": "APIResourceList", "resources": found})

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
            self._tell("ADDED" if old is None else "MODIFIED", key[0], new)
        return self.objects[key]

    def _gone(self, key: tuple[str, str]) -> None:
        live = self.objects.pop(key)
        self.version += 1
        self._tell("DELETED", key[0], {**live, "metadata": {**live["metadata"], "resourceVersion": str(self.version)}})

    def _list(self, request: web.Request, prefix: list[str], plural: str, namespace: str) -> web.Response:
        group = "/".join(prefix)
        items = [
            item
            for (collection, _), item in sorted(self.objects.items())
            if collection.startswith(group + "/") and collection.split("/")[-1] == plural
            if not namespace or f"/namespaces/{namespace}/" in f"{collection}/"
            if _selected(request, item)
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
        self._gone(key)
        for manager in [m for m in self.applied if m[:2] == key]:
            del self.applied[manager]
        return web.json_response({"kind": "Status", "status": "Success"})


def _selected(request: web.Request, live: Json) -> bool:
    """By ``labelSelector`` with ``name=value`` and ``name``; fields are not looked at."""
    labels = live["metadata"].get("labels", {})
    wanted = [pair.partition("=") for pair in request.query.get("labelSelector", "").split(",") if pair]
    return all(labels.get(name) == value if sign else name in labels for name, sign, value in wanted)


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
