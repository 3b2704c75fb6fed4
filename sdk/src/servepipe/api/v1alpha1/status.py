"""``status``: what the operator saw and did. Nothing in it is needed for correctness; history is the memory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from servepipe.api.v1alpha1.base import Int32, Model, keyed_by

__all__ = [
    "CandidateStatus",
    "ClusterStatus",
    "Condition",
    "FailedRevision",
    "GraphStatus",
    "NodeStatus",
    "Status",
    "WatchedDeadline",
]

_Revision = Annotated[str, Field(max_length=63)]
_Time = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
_Message = Annotated[str, Field(max_length=32_768)]
_Reason = Annotated[str, Field(max_length=1024)]


class Condition(Model):
    """One aspect of the pipeline's state, as in every Kubernetes API."""

    type: Annotated[str, Field(max_length=316)]
    """Accepted, ClusterReady, NodesReady, Available, Ready; Reconciling and Stalled only while True."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: _Reason
    """Why, one word in CamelCase for programs."""
    message: _Message = ""
    """Why, for people."""
    last_transition_time: _Time
    """When status changed last."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The metadata.generation that it was computed from."""


class CandidateStatus(Model):
    """A revision that is about to take over."""

    revision: _Revision
    """Its hash."""
    weight: Annotated[int, Field(ge=0, le=100)] = 0
    """Percentage of requests that it answers."""
    step: Int32 = 0
    """Index of the canary step, or 0."""
    since: _Time | None = None
    """When it entered this step."""
    replicas: Int32 | None = None
    """Replicas that it should have."""
    ready_replicas: Int32 | None = None
    """Replicas that are healthy."""
    reason: _Reason | None = None
    """What it waits for, one word."""
    message: _Message | None = None
    """What it waits for, for people."""


class FailedRevision(Model):
    """A revision that was tried and given up."""

    revision: _Revision
    """Its hash."""
    reason: _Reason
    """Why, one word."""
    message: _Message = ""
    """Why, for people."""
    attempts: Int32 | None = None
    """How often it was tried."""
    at: _Time | None = None
    """When it failed last."""
    retry_at: _Time | None = None
    """When it is tried again; absent where the spec asks for another revision by now."""


class NodeStatus(Model):
    """One node as it is now."""

    revision: _Revision | None = None
    """Hash of the stable revision, which answers callers."""
    placement: Literal["Dedicated", "Inline"] | None = None
    """Where the node runs."""
    replicas: Int32 | None = None
    """Replicas that the stable revision should have."""
    ready_replicas: Int32 | None = None
    """Replicas of it that are healthy."""
    state: Annotated[str, Field(max_length=63)] | None = None
    """What Ray Serve says about it."""
    message: _Message | None = None
    """More about it, for people."""
    candidate: CandidateStatus | None = None
    """The revision that is about to take over."""
    failed_revision: FailedRevision | None = None
    """The revision that was tried last and given up."""


class GraphStatus(Model):
    """The graph that the ingress runs."""

    revision: _Revision | None = None
    """Its hash."""


class WatchedDeadline(Model):
    """How much of a deadline is used up; only time in which it was watched counts."""

    attempt: Int32 = 0
    """Which attempt it is, from 0."""
    watched_seconds: Int32 = 0
    """Seconds that count, until `at`."""
    at: _Time
    """When it was written."""


class ClusterStatus(Model):
    """A Ray cluster of this pipeline."""

    name: Annotated[str, Field(max_length=253)]
    """Name of the RayCluster."""
    role: Literal["Active", "Pending", "Draining"] | None = None
    """Active takes the requests, Pending is getting ready, Draining finishes its last ones."""
    message: _Message | None = None
    """More about it, for people."""


class Status(Model):
    """What the operator saw last."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The metadata.generation that this status was computed from."""
    conditions: (
        Annotated[
            list[Condition],
            Field(max_length=16, json_schema_extra=keyed_by("type")),
        ]
        | None
    ) = None
    """Accepted, ClusterReady, NodesReady, Available and Ready; Reconciling and Stalled only while True."""
    installation: Annotated[str, Field(max_length=63)] | None = None
    """Installation of the operator that runs the pipeline. The label servepipe.dev/installation overrides it."""
    url: Annotated[str, Field(max_length=2048)] | None = None
    """Where callers reach the pipeline."""
    nodes_ready: Annotated[str, Field(max_length=32)] | None = None
    """Nodes that are ready, of all that are not off: 3/4."""
    upgrading: Annotated[str, Field(max_length=1024)] | None = None
    """Nodes that are being upgraded, with the candidate's weight: m1 10%."""
    graph: GraphStatus | None = None
    """The graph that the ingress runs."""
    clusters: (
        Annotated[
            list[ClusterStatus],
            Field(max_length=8, json_schema_extra=keyed_by("name")),
        ]
        | None
    ) = None
    """Ray clusters of this pipeline."""
    deadlines: Annotated[dict[str, WatchedDeadline], Field(max_length=256)] | None = None
    """What is waited for with a deadline: revisions by name of their application, nodes, cluster."""
    nodes: Annotated[dict[str, NodeStatus], Field(max_length=256)] | None = None
    """Each node as it is now."""
