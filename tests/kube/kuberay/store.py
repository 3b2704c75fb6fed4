"""What the API server has, kept by one watch per kind, with our own writes in it at once.

A controller that acts on a stale view makes a pod twice. KubeRay waits until its cache has seen its own writes; here
the answer to a write goes into the store, and what was deleted stays out of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kuberay import names
from kuberay.api import NO_ANSWER, Api, ApiError, Object

log = logging.getLogger("kuberay.store")

Key = tuple[str, str]
"""Namespace and name; or namespace and RayCluster."""
Changed = Callable[[str, Object | None, Object | None], None]
"""Called with the kind, what was known, and what is (None: gone)."""


@dataclass(frozen=True)
class Kind:
    plural: str
    group: str = ""
    selector: str = names.CLUSTER
    """Only objects with this label."""

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        parts = [f"/apis/{self.group}" if self.group else "/api/v1"]
        parts += ["namespaces", namespace] if namespace else []
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


RAYCLUSTERS = Kind("rayclusters", "ray.io/v1", selector="")
PODS = Kind("pods")
SERVICES = Kind("services")
SECRETS = Kind("secrets")
SERVICE_ACCOUNTS = Kind("serviceaccounts")
ROLES = Kind("roles", "rbac.authorization.k8s.io/v1")
ROLE_BINDINGS = Kind("rolebindings", "rbac.authorization.k8s.io/v1")
NAMESPACES = Kind("namespaces", selector="")
KINDS = (NAMESPACES, RAYCLUSTERS, PODS, SERVICES, SECRETS, SERVICE_ACCOUNTS, ROLES, ROLE_BINDINGS)


@dataclass
class _Table:
    objects: dict[Key, Object] = field(default_factory=dict)
    by_cluster: dict[Key, dict[str, Object]] = field(default_factory=lambda: defaultdict(dict))


class Store:
    """Args:
    api: Used by `run`, and for nothing else.
    changed: See `Changed`.
    """

    def __init__(self, api: Api, changed: Changed) -> None:
        self._api, self._changed = api, changed
        self._tables = {kind.plural: _Table() for kind in KINDS}
        self._gone: set[str] = set()
        self._synced = {kind.plural: asyncio.Event() for kind in KINDS}

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return self._tables[kind.plural].objects.get((namespace, name))

    def of_cluster(self, kind: Kind, namespace: str, cluster: str) -> list[Object]:
        """By the label ``ray.io/cluster``, oldest first."""
        found = self._tables[kind.plural].by_cluster.get((namespace, cluster), {})
        return sorted(found.values(), key=lambda o: (o["metadata"]["creationTimestamp"], o["metadata"]["name"]))

    def all(self, kind: Kind) -> list[Object]:
        return list(self._tables[kind.plural].objects.values())

    def put(self, kind: Kind, obj: Object) -> None:
        """The answer to a write of ours."""
        self._take(kind, obj)

    def drop(self, kind: Kind, obj: Object) -> None:
        """The API server said that it is gone, or going without a wait."""
        self._gone.add(obj["metadata"]["uid"])
        self._remove(kind, obj)

    async def synced(self) -> None:
        await asyncio.gather(*(event.wait() for event in self._synced.values()))

    async def run(self, kind: Kind) -> None:
        """Follow one kind, for ever; when the API server goes away, try again."""
        version = ""
        while True:
            try:
                if not version:
                    version = await self._list(kind)
                    self._synced[kind.plural].set()
                async for event in self._api.watch(kind.path(), version, kind.selector):
                    obj = event["object"]
                    version = obj["metadata"]["resourceVersion"]
                    if event["type"] == "DELETED":
                        # The answer to a write of before can come later than this.
                        self._gone.add(obj["metadata"]["uid"])
                        before = self._remove(kind, obj)
                        self._changed(kind.plural, before or obj, None)
                    elif event["type"] != "BOOKMARK":
                        self._take(kind, obj)
            except ApiError as error:
                if error.code == 410:
                    version = ""
                    continue
                log.warning("%s: %s", kind.plural, error)
                await asyncio.sleep(0.5)
            except NO_ANSWER as error:
                log.info("%s: %s", kind.plural, error)
                await asyncio.sleep(0.3)

    async def _list(self, kind: Kind) -> str:
        query = {"labelSelector": kind.selector} if kind.selector else {}
        listed = await self._api.request("GET", kind.path(), **query)
        present: Iterable[Object] = listed["items"]
        uids = {obj["metadata"]["uid"] for obj in present}
        for before in self.all(kind):
            if before["metadata"]["uid"] not in uids:
                self._gone.add(before["metadata"]["uid"])
                self._remove(kind, before)
                self._changed(kind.plural, before, None)
        for obj in present:
            self._take(kind, obj)
        version: str = listed["metadata"]["resourceVersion"]
        return version

    def _take(self, kind: Kind, obj: Object) -> None:
        if obj["metadata"]["uid"] in self._gone:
            return
        before = self.get(kind, *_key(obj))
        if before is not None and _version(before) >= _version(obj):
            return
        self._apply(kind, obj)
        self._changed(kind.plural, before, obj)

    def _apply(self, kind: Kind, obj: Object) -> None:
        before = self.get(kind, *_key(obj))
        if before is not None:
            self._remove(kind, before)
        obj["metadata"].pop("managedFields", None)
        table = self._tables[kind.plural]
        table.objects[_key(obj)] = obj
        if cluster := _cluster(obj):
            table.by_cluster[cluster][obj["metadata"]["name"]] = obj

    def _remove(self, kind: Kind, obj: Object) -> Object | None:
        table = self._tables[kind.plural]
        found = table.objects.get(_key(obj))
        if found is None or found["metadata"]["uid"] != obj["metadata"]["uid"]:
            return None
        del table.objects[_key(obj)]
        cluster = _cluster(found)
        if cluster and cluster in table.by_cluster:
            table.by_cluster[cluster].pop(found["metadata"]["name"], None)
            if not table.by_cluster[cluster]:
                del table.by_cluster[cluster]
        return found


def _key(obj: Object) -> Key:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _cluster(obj: Object) -> Key | None:
    cluster = obj["metadata"].get("labels", {}).get(names.CLUSTER)
    return (obj["metadata"].get("namespace", ""), cluster) if cluster else None


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])
