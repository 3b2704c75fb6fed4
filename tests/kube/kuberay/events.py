"""Events as the newer recorder writes them: the same again is a count on the first one, whatever its text says."""

from __future__ import annotations

import datetime as dt
import logging
import secrets
from typing import Any

from kuberay.api import NO_ANSWER, Api, ApiError

Object = dict[str, Any]

log = logging.getLogger("kuberay.events")

CONTROLLER = "raycluster-controller"
KEPT = 5000


def timestamp() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def microtime() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Events:
    """Emits Events about RayClusters. What the API server refuses is logged and forgotten.

    Args:
        normal: Whether to emit those that are no warnings.
    """

    def __init__(self, api: Api, normal: bool) -> None:
        self._api, self._normal = api, normal
        self._told: dict[tuple[str, ...], tuple[str, int]] = {}

    async def emit(self, cluster: Object, kind: str, reason: str, action: str, note: str) -> None:
        if kind == "Normal" and not self._normal:
            return
        metadata = cluster["metadata"]
        # The object's version is part of what an Event is about: after any write to it, an Event is a new one.
        key = (metadata["uid"], metadata["resourceVersion"], kind, reason, action)
        path = f"/apis/events.k8s.io/v1/namespaces/{metadata['namespace']}/events"
        now = microtime()
        try:
            if key in self._told:
                name, count = self._told[key]
                self._told[key] = (name, count + 1)
                await self._api.patch(f"{path}/{name}", {"series": {"count": count + 1, "lastObservedTime": now}})
                return
            name = f"{metadata['name']}.{secrets.token_hex(8)}"
            if len(self._told) > KEPT:
                self._told.clear()
            self._told[key] = (name, 1)
            await self._api.create(path, _event(cluster, name, kind, reason, action, note, now))
        except (ApiError, *NO_ANSWER) as error:
            log.info("event %s about %s: %s", reason, metadata["name"], error)


def _event(cluster: Object, name: str, kind: str, reason: str, action: str, note: str, now: str) -> Object:
    metadata = cluster["metadata"]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": metadata["namespace"]},
        "eventTime": now,
        "type": kind,
        "reason": reason,
        "action": action,
        "note": note[:1024],
        "reportingController": CONTROLLER,
        "reportingInstance": f"{CONTROLLER}-stand-in",
        "regarding": {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
    }
