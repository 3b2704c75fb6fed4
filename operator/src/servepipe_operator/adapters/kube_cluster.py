"""The Kubernetes objects of one pipeline: the RayCluster, and what stands around it.

The RayCluster is created once and then changed by JSON patch; everything else is applied. Whatever has a child's name
and is not ours is left alone and told.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from servepipe.api.problem import Problem
from servepipe.api.v1alpha1 import ServePipeline
from servepipe_operator.adapters.dry_runs import refusals
from servepipe_operator.adapters.kube import Kube
from servepipe_operator.adapters.kube_errors import (
    AlreadyExists,
    Conflict,
    KubeError,
    NotFound,
    Unavailable,
)
from servepipe_operator.adapters.kube_resource import NETWORK_POLICIES, PDBS, RAYCLUSTERS, SERVICES, Resource
from servepipe_operator.adapters.ray_token import Kept, NoTokenError, RayToken
from servepipe_operator.adapters.refusals import problem_of
from servepipe_operator.engine.cluster import wanted_cluster
from servepipe_operator.engine.names import cluster_name
from servepipe_operator.engine.state import ClusterDefaults, ClusterPlan, ClusterProblem, Json
from servepipe_operator.engine.versions import version_mismatch
from servepipe_operator.objects.children import children, says
from servepipe_operator.objects.cluster_view import KUBERAY_MISSING, ClusterView, view
from servepipe_operator.objects.names import Owner, claim, ownership, token_secret_name
from servepipe_operator.objects.patch import label_patch, patch
from servepipe_operator.objects.raycluster import raycluster
from servepipe_operator.ports import ClusterState, UnreachableError

__all__ = ["KubeCluster", "Seen"]

_APPLIED = {one.kind: one for one in (SERVICES, NETWORK_POLICIES, PDBS)}


class Seen(Protocol):
    """What watches have seen of this pipeline; it may be a moment old."""

    def children(self, kind: str) -> Sequence[Json]:
        """Objects with the pipeline's label, also those of another owner. ``Event``: warnings about RayClusters."""
        ...

    def missing(self) -> frozenset[str]:
        """Kinds that the API server does not serve, as CRDs are named."""
        ...


class KubeCluster:
    """The `Cluster` port of one pipeline.

    Args:
        owner: The pipeline.
        seen: What watches know.
        kept: Between looks.
        ray_version: Asks the head; raises `UnreachableError`.
        operator_peers: From where the operator reaches the pods, for their NetworkPolicies.
    """

    def __init__(
        self,
        kube: Kube,
        owner: Owner,
        seen: Seen,
        defaults: ClusterDefaults,
        kept: Kept,
        ray_version: Callable[[ClusterView], Awaitable[str]],
        operator_peers: Sequence[Json] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube, self._owner, self._seen, self._defaults = kube, owner, seen, defaults
        self._kept, self._ray_version, self._peers, self._clock = kept, ray_version, operator_peers, clock
        self._token = RayToken(kube, owner, kept, clock)
        self.view = ClusterView(None, None, absent=True)

    async def look(self, kept: Json | None) -> ClusterState:
        """See `servepipe_operator.ports.Cluster.look`."""
        if kept is None:
            self.view = ClusterView(None, ClusterProblem("Creating", "nothing was created yet"), absent=True)
        else:
            self.view = view(
                self._owner,
                cluster_name(self._owner.name, self._owner.uid, kept["revision"]),
                self._seen.children("RayCluster"),
                self._seen.children("Pod"),
                self._seen.children("Event"),
                self._seen.missing(),
            )
        found = self.view
        problem = found.problem
        if kept is not None and found.live is not None and not found.absent:
            try:
                if not self._kept.token:
                    await self._token.read()
            except NoTokenError as error:
                problem = problem or error.problem
            problem = problem or await self._other_version(kept["rayVersion"])
        return ClusterState(problem, found.slots, found.absent, found.up)

    async def _other_version(self, wanted: str) -> ClusterProblem | None:
        """Asked once of each head: actors of one version of Ray cannot speak to another."""
        uid = self.view.head_uid
        if uid not in self._kept.versions:
            with contextlib.suppress(UnreachableError):  # then Serve will not answer either
                self._kept.versions = {uid: await self._ray_version(self.view)}
        told = version_mismatch(wanted, self._kept.versions.get(uid, wanted))
        return ClusterProblem("RayVersionMismatch", told, stalled=True) if told else None

    async def refusals(self, pipeline: ServePipeline) -> tuple[Problem, ...]:
        """See `servepipe_operator.ports.Cluster.refusals`."""
        image = wanted_cluster(pipeline.spec, None, self._defaults)["image"]
        return await refusals(self._kube, self._owner, pipeline.spec, image)

    async def apply(self, plan: ClusterPlan) -> tuple[ClusterProblem, ...]:
        """See `servepipe_operator.ports.Cluster.apply`."""
        problems: list[ClusterProblem] = []
        secret = await self._checked(self._secret(plan), problems, blocking=True)
        wanted = children(self._owner, plan.name, plan.spec, self._peers)
        # The policies first: pods that start are closed from the beginning. Those that run are not stopped for it.
        starts = not plan.suspend and not self._runs(plan.name)
        open_ = False
        for body in wanted:
            policy = body["kind"] == NETWORK_POLICIES.kind
            made = await self._checked(self._child(body), problems, blocking=policy and starts)
            if policy and not made:
                open_ = True
                problems[-1] = _without_policy(problems[-1], body, starts)
        if secret and not (open_ and starts):
            await self._checked(self._raycluster(plan), problems, blocking=True)
        names = {(body["kind"], body["metadata"]["name"]) for body in wanted} | {("RayCluster", plan.name)}
        if not any(problem.blocking for problem in problems):
            await self._checked(self._remove_others(names), problems, blocking=False)
        return tuple(problems)

    async def _checked(
        self, work: Awaitable[ClusterProblem | None], problems: list[ClusterProblem], *, blocking: bool
    ) -> bool:
        try:
            problem = await work
        except (Unavailable, Conflict):
            raise
        except KubeError as error:
            problem = problem_of(error, blocking)
        except NoTokenError as error:
            problem = error.problem
        if problem is not None:
            problems.append(replace(problem, blocking=blocking))
        return problem is None

    # -- the RayCluster

    async def _secret(self, plan: ClusterPlan) -> ClusterProblem | None:
        live, spec = self.view.live, plan.spec.cluster
        there = live if live is not None and live["metadata"]["name"] == plan.name else None
        outlives = spec is not None and spec.gcs_fault_tolerance is not None
        return await self._token.ensure(there, outlives=outlives, well=self.view.problem is None)

    def _runs(self, name: str) -> bool:
        """Whether it has pods, or is about to."""
        live = self.view.live
        return live is not None and live["metadata"]["name"] == name and not live["spec"].get("suspend")

    async def _raycluster(self, plan: ClusterPlan) -> ClusterProblem | None:
        live = self.view.live
        if live is None or live["metadata"]["name"] != plan.name:
            if self.view.problem is not None and self.view.problem.reason not in ("Creating", "KubeRayMissing"):
                return self.view.problem
            return await self._create(plan)
        operations = patch(live, self._owner, plan.slots, plan.image, plan.suspend, self.view.pods or {})
        if operations:
            name = live["metadata"]["name"]
            await self._kube.json_patch(RAYCLUSTERS, self._owner.namespace, name, operations)
        return None

    async def _create(self, plan: ClusterPlan) -> ClusterProblem | None:
        secret = token_secret_name(self._owner.name)
        body = raycluster(
            self._owner, plan.name, plan.spec, plan.ray_version, plan.image, secret, plan.slots, plan.suspend
        )
        try:
            there = await self._made(RAYCLUSTERS, body)
        except NotFound as error:
            if not error.kind_missing:
                raise
            return KUBERAY_MISSING
        if there is None:
            return None
        if problem := claim("RayCluster", there, self._owner):
            return problem
        # Ours and not seen: the watch is a moment behind, or somebody changed the label that it is found by.
        if operations := label_patch(there, self._owner):
            await self._kube.json_patch(RAYCLUSTERS, self._owner.namespace, plan.name, operations)
        return None

    async def _made(self, resource: Resource, body: Json) -> Json | None:
        """None where ``body`` was made, else the object that has its name.

        Raises:
            Conflict: That one was there and went at once, as what a deleted pipeline leaves does: look again.
        """
        name = body["metadata"]["name"]
        try:
            await self._kube.create(resource, body)
        except AlreadyExists:
            try:
                return await self._kube.get(resource, self._owner.namespace, name)
            except NotFound as error:
                raise Conflict(f"{resource.kind} {self._owner.namespace}/{name} was there and is gone") from error
        return None

    # -- the others

    async def _child(self, body: Json) -> ClusterProblem | None:
        kind, name = body["kind"], body["metadata"]["name"]
        resource = _APPLIED[kind]
        live = next((one for one in self._seen.children(kind) if one["metadata"]["name"] == name), None)
        if live is None:
            try:
                live = await self._kube.get(resource, self._owner.namespace, name)
            except NotFound:
                await self._kube.apply(resource, body)
                return None
        if problem := claim(kind, live, self._owner):
            return problem
        if not says(live, body):
            # With the version that was seen: what somebody else put in its place meanwhile is not ours to change.
            versioned = {**body["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}
            await self._kube.apply(resource, {**body, "metadata": versioned})
        return None

    async def _remove_others(self, names: set[tuple[str, str]]) -> None:
        """What we made for a spec or a cluster of before."""
        for resource in (*_APPLIED.values(), RAYCLUSTERS):
            for live in self._seen.children(resource.kind):
                metadata = live["metadata"]
                if (resource.kind, metadata["name"]) in names or metadata.get("deletionTimestamp"):
                    continue
                if ownership(live, self._owner) != "ours":
                    continue
                with contextlib.suppress(NotFound):
                    await self._kube.delete(resource, self._owner.namespace, metadata["name"], uid=metadata["uid"])


def _without_policy(problem: ClusterProblem, policy: Json, starts: bool) -> ClusterProblem:
    """What went wrong with a NetworkPolicy, and what that means: who reaches Ray's dashboard runs code there."""
    which = f"NetworkPolicy {policy['metadata']['namespace']}/{policy['metadata']['name']}"
    means = "no pod is started without it" if starts else "what runs goes on, and may be open to other pods"
    return replace(problem, message=f"{which} is not as wanted ({means}): {problem.message}")
