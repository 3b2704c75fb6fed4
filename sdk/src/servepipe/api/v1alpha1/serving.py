"""``spec.ingress`` and ``spec.cluster``: how callers reach the graph, and where it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from servepipe.api.v1alpha1.base import (
    FreeForm,
    ImageName,
    Int32,
    Model,
    PositiveInt32,
    RawTemplate,
    Route,
    rule,
    validated,
)
from servepipe.api.v1alpha1.nodes import Autoscaling, Resources

__all__ = ["Cluster", "Grpc", "Head", "Ingress", "Monitoring", "Service", "Workers"]


class Service(Model):
    """The Kubernetes Service that callers use."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Kind of Service. Default ClusterIP."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 8000
    """Port of the Service. Default 8000."""


class Grpc(Model):
    """gRPC beside HTTP; {} turns it on."""

    port: Annotated[int, Field(ge=1, le=65_535)] = 9000
    """Port of gRPC. Default 9000."""


class Ingress(Model):
    """The application that takes requests, runs the graph and answers."""

    model_config = validated(
        rule("!(has(self.replicas) && has(self.autoscaling))", "replicas and autoscaling exclude each other")
    )

    replicas: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """How many replicas. Default 1, unless autoscaling is set."""
    autoscaling: Autoscaling | None = None
    """Lets Ray Serve choose the number of replicas. Excludes replicas."""
    resources: Resources | None = None
    """What one replica reserves. Default: one CPU."""
    route: Route = "/"
    """Path under which the graph answers. Default /."""
    service: Service | None = None
    """The Kubernetes Service that callers use."""
    request_timeout_seconds: PositiveInt32 = 60
    """Seconds after which a request is answered with 504. Default 60."""
    max_body_bytes: Annotated[int, Field(ge=1, le=2**31 - 1)] = 104_857_600
    """Larger request bodies are answered with 413. Default 104857600 (100 MiB)."""
    max_ongoing_requests: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Requests in flight per replica. Default 1000."""
    access_log: bool = False
    """A line in the log of its replicas for every request, with its time and status; errors are logged in any case.
    It costs up to a fifth of a millisecond of CPU. Default false."""
    grpc: Grpc | None = None
    """Present: the graph answers gRPC too."""
    from_: Annotated[list[FreeForm], Field(max_length=64)] | None = Field(default=None, alias="from")
    """Who may call the graph, as the peers of a NetworkPolicy: podSelector, namespaceSelector or ipBlock.
    Default: every pod of the same namespace."""
    template: RawTemplate | None = None
    """A raw pod template, merged into the pods of the ingress."""


class Workers(Model):
    """The machines of the default pool."""

    model_config = validated(
        rule(
            "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            "minReplicas must not exceed maxReplicas",
        )
    )

    min_replicas: Int32 = 0
    """At least so many pods. Default 0."""
    max_replicas: Annotated[int, Field(ge=1, le=10_000)] = 10
    """At most so many pods. Default 10."""
    resources: Resources | None = None
    """Size of one pod. Default: 4 CPUs and 16Gi."""
    template: RawTemplate | None = None
    """A raw pod template, merged into the worker pods."""


class Head(Model):
    """Ray's head, which runs no user code."""

    image: ImageName | None = None
    """Container image. Default: the project's runtime image for spec.rayVersion."""
    resources: Resources | None = None
    """Size of the pod. Default: 2 CPUs and 8Gi."""
    template: RawTemplate | None = None
    """A raw pod template, merged into the head pod."""


class Cluster(Model):
    """The Ray cluster that the operator makes."""

    workers: Workers | None = None
    """The machines of the default pool."""
    head: Head | None = None
    """Ray's head."""
    gcs_fault_tolerance: FreeForm | None = None
    """Lets Ray's state outlive the head: passed on as the RayCluster's gcsFaultToleranceOptions."""


class Monitoring(Model):
    """Who collects metrics."""

    from_: Annotated[list[FreeForm], Field(max_length=64)] | None = Field(default=None, alias="from")
    """Who may read the metrics of the Ray pods, as the peers of a NetworkPolicy. Default: the operator only."""
