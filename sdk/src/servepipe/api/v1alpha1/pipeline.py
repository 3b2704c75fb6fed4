"""The resource itself: `ServePipeline`, its spec and its metadata."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from servepipe.api.v1alpha1.base import (
    NAME_PATTERN,
    NODE_NAME_PATTERN,
    FreeForm,
    ImageName,
    Model,
    Name,
    NodeName,
    PositiveInt32,
    Version,
    keyed_by,
    rule,
    sorted_by_key,
    validated,
)
from servepipe.api.v1alpha1.graph import GraphSpec
from servepipe.api.v1alpha1.nodes import NodeSpec
from servepipe.api.v1alpha1.serving import Cluster, Ingress, Monitoring

__all__ = [
    "API_VERSION",
    "KIND",
    "MAX_NODES",
    "NAME_PATTERN",
    "RESERVED_NODE_NAMES",
    "ObjectMeta",
    "Reference",
    "ServePipeline",
    "Spec",
]

API_VERSION = "servepipe.dev/v1alpha1"
KIND = "ServePipeline"
#: The most nodes that a pipeline may have: a bound of the API, so that its CEL rules stay within their budget.
MAX_NODES = 128


#: Names of parts of every pipeline and of its pools.
RESERVED_NODE_NAMES = ("ingress", "input", "default")


class Reference(Model):
    """An object of the same namespace."""

    name: Name
    """Its name."""


class Spec(Model):
    """What should run."""

    model_config = validated(
        rule(
            "self.graph.steps.all(s, !has(s.node) || s.node in self.nodes)",
            "a step calls a node that spec.nodes does not have",
        )
    )

    ray_version: Version | None = None
    """Ray's version in all images. Default: the version that this release of servepipe pins."""
    image: ImageName | None = None
    """Default image of nodes and of the ingress."""
    image_pull_secrets: (
        Annotated[
            list[Reference],
            Field(max_length=16, json_schema_extra=keyed_by("name")),
        ]
        | None
    ) = None
    """Secrets with which images are pulled."""
    service_account_name: Name | None = None
    """Service account of the pods. Default: the namespace's default."""
    suspend: bool = False
    """True frees the pods and keeps everything else. Default false."""
    paused: bool = False
    """True makes the operator report and change nothing. Default false."""
    max_concurrent_upgrades: Annotated[int, Field(ge=1, le=MAX_NODES)] = 1
    """Nodes that are upgraded at once. Default 1."""
    progress_deadline_seconds: PositiveInt32 = 600
    """Seconds after which a candidate that is not healthy is given up. Default 600."""
    history_limit: Annotated[int, Field(ge=1, le=100)] = 10
    """Old revisions per node that are kept for going back. Default 10."""
    graph: GraphSpec
    """The compiled graph, written by `servepipe compile`."""
    nodes: Annotated[
        dict[NodeName, NodeSpec],
        Field(
            min_length=1,
            max_length=MAX_NODES,
            json_schema_extra={
                "x-kubernetes-validations": [
                    rule(
                        f"self.all(name, name.matches('{NODE_NAME_PATTERN}') && !name.contains('--'))",
                        "a node's name has at most 40 lower case letters, digits and single hyphens, a letter first",
                    ),
                    rule(
                        f"!self.exists(name, name in {list(RESERVED_NODE_NAMES)})",
                        f"reserved names: {', '.join(RESERVED_NODE_NAMES)}",
                    ),
                ]
            },
        ),
    ]
    """The models and functions of the graph by name."""
    ingress: Ingress | None = None
    """How callers reach the graph."""
    cluster: Cluster | None = None
    """The Ray cluster that the operator makes."""
    monitoring: Monitoring | None = None
    """Who collects metrics."""


class ObjectMeta(Model):
    """Kubernetes' metadata, as far as anybody here reads it."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=44)]
    namespace: Name | None = None
    labels: Annotated[dict[str, str], AfterValidator(sorted_by_key)] | None = None
    annotations: Annotated[dict[str, str], AfterValidator(sorted_by_key)] | None = None
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    generate_name: str | None = None
    self_link: str | None = None
    finalizers: list[str] | None = None
    owner_references: list[FreeForm] | None = None
    managed_fields: list[FreeForm] | None = None


class ServePipeline(Model):
    """A graph of models that runs on Ray Serve: each node scales and is upgraded on its own."""

    model_config = validated(
        rule(
            f"self.metadata.name.matches('{NAME_PATTERN}')",
            "metadata.name must have at most 44 lower case letters, digits and hyphens, a letter first: the names of "
            "the RayCluster and its Secret are made from it",
        )
    )

    api_version: Literal["servepipe.dev/v1alpha1"]
    kind: Literal["ServePipeline"]
    metadata: ObjectMeta
    spec: Spec
    """What should run."""
    status: FreeForm | None = None
    """What the operator saw last; kept as read, since an operator of another version may have written it."""

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.metadata.name
