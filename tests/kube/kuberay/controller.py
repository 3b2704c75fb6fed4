"""One reconcile of a RayCluster, in KubeRay's order: rights, token, Services, then pods, then the status."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from kuberay import names, objects, redis_cleanup, status, validation
from kuberay.api import Api, ApiError
from kuberay.events import Events, timestamp
from kuberay.pod_control import PodControl
from kuberay.status import FailureError
from kuberay.store import (
    RAYCLUSTERS,
    ROLE_BINDINGS,
    ROLES,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Kind,
    Store,
)

Object = dict[str, Any]

REQUEUE_S = 2.0
PATIENCE_S = 30.0

log = logging.getLogger("kuberay.controller")


class Controller:
    """Args:
    faster: Than KubeRay, which looks again 2 s after it wrote a status.
    events: Whether to emit Events that are no warnings.
    has_jobs: The cluster can run the Job that empties Redis; else it is taken for done.
    """

    def __init__(self, api: Api, store: Store, faster: float, events: bool, *, has_jobs: bool = False) -> None:
        self._api, self._store, self._requeue_s = api, store, REQUEUE_S / faster
        self._events = Events(api, events)
        self._pods = PodControl(api, store, self._events, PATIENCE_S / faster)
        self._has_jobs = has_jobs

    async def reconcile(self, namespace: str, name: str) -> float | None:
        """Returns after how many seconds to look again, if nothing happens before.

        Raises:
            ApiError, FailureError: To be tried again after a pause that grows.
        """
        cluster = self._store.get(RAYCLUSTERS, namespace, name)
        if cluster is None:
            self._pods.forget(namespace, name)
            return None
        if cluster["spec"].get("managedBy", validation.MANAGERS[0]) != validation.MANAGERS[0]:
            return None
        if not await self._valid(cluster):
            return None
        if await self._finalize(cluster):
            return self._requeue_s
        if "deletionTimestamp" in cluster["metadata"]:
            return None
        failure: Exception | None = None
        try:
            await self._children(cluster)
            await self._pods.reconcile(cluster)
        except (ApiError, FailureError) as error:
            failure = error
        written = await self._write_status(cluster, failure)
        if failure is not None:
            raise failure
        return self._requeue_s if written else None

    async def _valid(self, cluster: Object) -> bool:
        problem, reason, what = validation.problem_of_metadata(cluster), "InvalidRayClusterMetadata", "metadata"
        if problem is None:
            problem, reason, what = validation.problem_of_spec(cluster), "InvalidRayClusterSpec", "spec"
        if problem is None:
            problem, what = validation.problem_of_upgrade(cluster), "UpgradeStrategy"
        if problem is None:
            return True
        where = f"{cluster['metadata']['namespace']}/{cluster['metadata']['name']}"
        note = f"The RayCluster {what} is invalid {where}: {problem}"
        await self._events.emit(cluster, "Warning", reason, "Validate", note)
        return False

    async def _finalize(self, cluster: Object) -> bool:
        """Only with Redis there is something to clean up. True: look again later."""
        if not names.fault_tolerant(cluster):
            return False
        metadata = cluster["metadata"]
        finalizers = metadata.get("finalizers", [])
        if "deletionTimestamp" not in metadata:
            if names.REDIS_FINALIZER in finalizers:
                return False
            await self._patch(cluster, {"metadata": {"finalizers": [*finalizers, names.REDIS_FINALIZER]}})
            return True
        if names.REDIS_FINALIZER not in finalizers or await self._pods.delete_all(cluster, of_ray=True):
            return names.REDIS_FINALIZER in finalizers
        if self._has_jobs and not await self._emptied(cluster):
            return True
        left = [one for one in finalizers if one != names.REDIS_FINALIZER]
        await self._patch(cluster, {"metadata": {"finalizers": left}})
        return False

    async def _emptied(self, cluster: Object) -> bool:
        """Whether the Job that empties Redis has ended, well or not, or had its time."""
        wanted = redis_cleanup.job(cluster)
        path = f"/apis/batch/v1/namespaces/{cluster['metadata']['namespace']}/jobs"
        try:
            found = await self._api.get(f"{path}/{wanted['metadata']['name']}")
        except ApiError as error:
            if error.code != 404:
                raise
            await self._api.create(path, wanted)
            return False
        return redis_cleanup.ended(found)

    async def _patch(self, cluster: Object, patch: Object) -> None:
        metadata = cluster["metadata"]
        patch["metadata"]["resourceVersion"] = metadata["resourceVersion"]
        path = RAYCLUSTERS.path(metadata["namespace"], metadata["name"])
        self._store.put(RAYCLUSTERS, await self._api.patch(path, patch))

    async def _children(self, cluster: Object) -> None:
        """Creates what is missing and never changes what is there."""
        spec = cluster["spec"]
        if names.autoscaling(cluster):
            for kind, build, what in (
                (SERVICE_ACCOUNTS, objects.service_account, "service account"),
                (ROLES, objects.role, "role"),
                (ROLE_BINDINGS, objects.role_binding, "role binding"),
            ):
                await self._ensure(cluster, kind, build, what)
        if names.token_auth(cluster) and not spec["authOptions"].get("secretName"):
            await self._ensure(cluster, SECRETS, objects.token_secret, "")
        heads = self.head_services(cluster)
        if len(heads) > 1:
            raise FailureError("", f"{len(heads)} head service found")
        if not heads:
            await self._create(cluster, SERVICES, objects.head_service(cluster), "service")
        if any(names.hosts(group) > 1 for group in names.worker_groups(cluster)):
            await self._ensure(cluster, SERVICES, objects.headless_service, "service", names.HEADLESS_LABEL)
        if cluster["metadata"].get("annotations", {}).get(names.SERVE_SERVICE) == "true":
            try:
                await self._ensure(cluster, SERVICES, objects.serve_service, "", "ray.io/serve")
            except ValueError as error:
                raise FailureError("", str(error)) from error

    def head_services(self, cluster: Object) -> list[Object]:
        """Whatever has these three labels, whoever made it."""
        metadata = cluster["metadata"]
        wanted = names.head_selector(metadata["name"])
        keys = (names.NODE_TYPE, names.IDENTIFIER)
        return [
            service
            for service in self._store.of_cluster(SERVICES, metadata["namespace"], metadata["name"])
            if all(service["metadata"]["labels"].get(key) == wanted[key] for key in keys)
        ]

    async def _ensure(
        self, cluster: Object, kind: Kind, build: Callable[[Object], Object], what: str, unseen: str = ""
    ) -> None:
        """Create it unless it is there.

        Args:
            what: Word for the Event; "" for none.
            unseen: Label of objects without the label that the store follows.
        """
        wanted = build(cluster)
        metadata = wanted["metadata"]
        if self._store.get(kind, metadata["namespace"], metadata["name"]) is not None:
            return
        if unseen or names.service_account(cluster) != cluster["metadata"]["name"]:
            try:
                await self._api.get(kind.path(metadata["namespace"], metadata["name"]))
                return
            except ApiError as error:
                if error.code != 404:
                    raise
        await self._create(cluster, kind, wanted, what)

    async def _create(self, cluster: Object, kind: Kind, wanted: Object, what: str) -> None:
        namespace, name = wanted["metadata"]["namespace"], wanted["metadata"]["name"]
        title = "".join(word.title() for word in what.split())
        try:
            made = await self._api.create(kind.path(namespace), wanted)
        except ApiError as error:
            if error.reason == "AlreadyExists" and kind is not SERVICES:
                return
            if what:
                note = f"Failed creating {what} {namespace}/{name}, {error}"
                await self._events.emit(cluster, "Warning", f"FailedToCreate{title}", "Create", note)
            raise
        self._store.put(kind, made)
        if what:
            await self._events.emit(
                cluster, "Normal", f"Created{title}", "Create", f"Created {what} {namespace}/{name}"
            )

    async def _write_status(self, cluster: Object, failure: Exception | None) -> bool:
        """True if it was written."""
        metadata = cluster["metadata"]
        known = failure if isinstance(failure, FailureError) else failure and FailureError("", str(failure))
        pods = self._pods.of_cluster(cluster)
        try:
            new = status.calculate(cluster, pods, self.head_services(cluster), known or None, timestamp())
        except FailureError:
            if failure is None:
                raise
            return False
        if not status.differs(cluster.get("status") or {}, new):
            return False
        path = RAYCLUSTERS.path(metadata["namespace"], metadata["name"], "status")
        self._store.put(RAYCLUSTERS, await self._api.replace(path, {**cluster, "status": new}))
        return True
