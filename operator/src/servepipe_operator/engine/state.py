"""What the engine looks at and what it answers: plain frozen data.

A shell fills `Observed` from the world, the engine answers with a `Plan`, the shell carries it out. Nothing here does
anything; nothing here knows whether the world is a Kubernetes cluster or one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from servepipe.api.problem import Problem
from servepipe.graph.fields import Json
from servepipe_operator.engine.reasons import EventReason, Reason

if TYPE_CHECKING:
    from servepipe.api.v1alpha1 import Spec
    from servepipe_operator.engine.pools import Slot

__all__ = [
    "Application",
    "Capacity",
    "ClusterDefaults",
    "ClusterPlan",
    "ClusterProblem",
    "Environment",
    "Event",
    "Json",
    "Observed",
    "Plan",
    "Record",
    "RecordKind",
    "Replica",
    "RoutingAck",
]


@dataclass(frozen=True, slots=True)
class Replica:
    """One Serve replica: ``state`` is Serve's (STARTING, UPDATING, RUNNING, …), ``started_at`` in epoch seconds."""

    id: str
    state: str
    pid: int | None = None
    node_ip: str = ""
    started_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Application:
    """One Serve application as ``GET /api/serve/applications/`` shows it.

    ``config`` is the submitted configuration, verbatim (None for an application that was not deployed by a PUT).
    ``replicas`` is empty while an application builds and after a failed build, though the old replicas still serve.
    ``deployed_at`` is when the last PUT set it going (epoch seconds, 0 where unknown).
    """

    name: str
    status: str
    message: str = ""
    config: Json | None = None
    deployment_status: str = ""
    deployment_message: str = ""
    replicas: tuple[Replica, ...] = ()
    target_replicas: int = 0
    deployed_at: float = 0.0


@dataclass(frozen=True, slots=True)
class RoutingAck:
    """One ingress replica or holder: the routing table it uses, and its requests in flight by application.

    ``errors``: why an Inline instance could not be built, or a table or userConfig was refused, by
    ``<node>--<revision>`` or ``ingress``.
    """

    replica: str
    application: str
    table: str
    busy: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Ray's resources by name (``CPU``, ``GPU``, ``memory`` in bytes, custom ones): all there are, and what is free."""

    total: Mapping[str, float]
    available: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ClusterProblem:
    """Why the Ray cluster takes nothing now: a condition's reason and message.

    Args:
        stalled: It does not come by itself, somebody has to do something.
        blocking: Nothing is sent to Serve meanwhile.
        suspending: The cluster was told to give up its pods; they may not be gone yet.
    """

    reason: Reason
    message: str
    stalled: bool = False
    blocking: bool = True
    suspending: bool = False


@dataclass(frozen=True, slots=True)
class ClusterDefaults:
    """What a pipeline gets that names none of its own. ``image`` may hold ``{ray_version}``."""

    ray_version: str
    image: str


RecordKind: TypeAlias = Literal["node", "graph", "spec", "checkpoint"]


@dataclass(frozen=True, slots=True)
class Record:
    """One immutable piece of history. ``sequence`` orders checkpoints; other kinds are found by name."""

    kind: RecordKind
    name: str
    data: Json
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that the engine may know.

    Args:
        serve: Whether Serve's API answered, and whether Serve has been started.
        detail: Why it did not answer, for people.
        applications: By name.
        acks: What each ingress replica and holder answered, or None when nobody could be asked.
        ready: What ``/-/ready`` answered (None: not asked or no answer).
        not_ready: The nodes that ``/-/ready`` named.
        records: The whole history of this pipeline.
        status: The resource's status as last written, or {}. Never needed for correctness.
        capacity: Ray's resources, or None where nobody can tell.
        slots: The worker groups of the RayCluster in its order, () before there is one; None where there are no pools.
        cluster: Why the cluster takes nothing now; then nothing is sent to Serve.
        refused: What the shell found wrong with the spec as it stands.
    """

    serve: Literal["Unreachable", "NotStarted", "Running"]
    detail: str = ""
    applications: Mapping[str, Application] = field(default_factory=dict)
    acks: tuple[RoutingAck, ...] | None = None
    ready: bool | None = None
    not_ready: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    status: Json = field(default_factory=dict)
    capacity: Capacity | None = None
    slots: tuple[Slot, ...] | None = None
    cluster: ClusterProblem | None = None
    refused: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Environment:
    """What differs between one machine and a cluster.

    Args:
        code_paths: Folder of the sources with a given digest, by digest; empty where images hold the code.
        http: ``http_options`` of the first PUT (host and port); the rest is the engine's.
        grpc: ``grpc_options`` of the first PUT, or {} for none.
        installation: Name of the operator that runs the pipeline, for the status.
        url: Where callers reach the pipeline, for the status.
        ignored_fields: Fields of the resource that mean nothing here (images on one machine), each with what of it
            counts nevertheless, or "": a notice names them.
        gpus_ignored: GPUs asked for are left out of actors (``servepipe up --no-gpu``).
        replicas_at_most: Cap on the replicas of any one node, or None.
        cluster: Defaults of the RayCluster; None where the cluster is not the engine's business.
        steady_s: When to look again while nothing changes.
        changing_s: When to look again while something does.
    """

    code_paths: Mapping[str, str] = field(default_factory=dict)
    http: Json = field(default_factory=dict)
    grpc: Json = field(default_factory=dict)
    installation: str = ""
    url: str = ""
    ignored_fields: Mapping[str, str] = field(default_factory=dict)
    gpus_ignored: bool = False
    replicas_at_most: int | None = None
    cluster: ClusterDefaults | None = None
    steady_s: float = 10.0
    changing_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, told once: ``type`` is Normal or Warning, ``reason`` in CamelCase."""

    type: Literal["Normal", "Warning"]
    reason: EventReason
    message: str
    node: str = ""


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """The RayCluster that the pipeline is to have.

    Args:
        name: Of the RayCluster; another one of this pipeline is not needed any more.
        ray_version, image: Its version of Ray, and the image of pods for which none is named.
        spec: The accepted one.
        slots: Its worker groups. Those that are to be written have their wish.
        suspend: No pod is needed.
    """

    name: str
    ray_version: str
    image: str
    spec: Spec
    slots: tuple[Slot, ...]
    suspend: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What a shell has to do, in this order: records, cluster, PUT, status, events, prune.

    ``cluster`` None: no object is touched. ``serve_config`` None: no PUT.

    ``events`` tell what the records say, ``begun`` what the PUT does: nothing of it happened where Serve refused it.
    """

    records: tuple[Record, ...] = ()
    cluster: ClusterPlan | None = None
    serve_config: Json | None = None
    status: Json = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    begun: tuple[Event, ...] = ()
    prune: tuple[Record, ...] = ()
    look_again_after_s: float = 10.0
