"""``spec.nodes``: what runs, how many of it, and how it is replaced."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from servepipe.api.v1alpha1.base import (
    Digest,
    Folder,
    FreeForm,
    ImageName,
    ImportPath,
    Int32,
    JsonList,
    JsonObject,
    Model,
    PositiveInt32,
    Quantity,
    RawTemplate,
    keyed_by,
    rule,
    sorted_by_key,
    validated,
)

__all__ = [
    "IDENTITY_FIELDS",
    "INLINE_REFUSES",
    "Autoscaling",
    "EnvVar",
    "HealthCheck",
    "NodeSpec",
    "Resources",
    "Upgrade",
    "UpgradeStep",
    "Volume",
]

#: Fields whose change makes a new revision of a node, rolled out by `upgrade`; all others are applied in place.
IDENTITY_FIELDS = (
    "import",
    "code",
    "args",
    "kwargs",
    "blocking",
    "image",
    "runtimeEnv",
    "env",
    "volumes",
    "nodeSelector",
    "tolerations",
    "gpuResourceName",
    "resources",
    "template",
)

#: Fields that need replicas of their own, so that a node with `placement: Inline` cannot have them.
INLINE_REFUSES = (
    "image",
    "runtimeEnv",
    "env",
    "volumes",
    "nodeSelector",
    "tolerations",
    "gpuResourceName",
    "resources",
    "template",
    "replicas",
    "autoscaling",
)

_ONE_SIZE = rule("!(has(self.replicas) && has(self.autoscaling))", "replicas and autoscaling exclude each other")


class Resources(Model):
    """What one replica reserves."""

    cpu: Quantity | None = None
    """CPUs: "2" or 500m. Default 1."""
    memory: Quantity | None = None
    """Bytes: 512Mi, 16Gi. Default: not reserved."""
    gpu: Quantity | None = None
    """GPUs; a part of one ("0.5") shares it. Default: none."""
    custom: Annotated[dict[str, Quantity], Field(max_length=16), AfterValidator(sorted_by_key)] = Field(
        default_factory=dict
    )
    """Ray's custom resources by name."""


class Autoscaling(Model):
    """Between how many replicas Ray Serve scales, and by what."""

    model_config = validated(
        rule(
            "!has(self.minReplicas) || self.minReplicas <= self.maxReplicas",
            "minReplicas must not exceed maxReplicas",
        )
    )

    min_replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """At least so many replicas; 0 starts the first one on demand. Default 1."""
    max_replicas: Annotated[int, Field(ge=1, le=10_000)]
    """At most so many replicas."""
    target_ongoing_requests: PositiveInt32 = 2
    """Requests in flight per replica that scaling aims at. Default 2."""
    upscale_delay_seconds: Int32 = 30
    """How long more load must last before replicas are added. Default 30."""
    downscale_delay_seconds: Int32 = 600
    """How long less load must last before replicas are removed. Default 600."""


class HealthCheck(Model):
    """How often a replica is asked whether it is healthy."""

    period_seconds: PositiveInt32 = 10
    """Seconds between two checks. Default 10."""
    timeout_seconds: PositiveInt32 = 30
    """Seconds after which a check without an answer has failed. Default 30."""


class UpgradeStep(Model):
    """One step of a canary upgrade."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """Percentage of requests that the candidate answers in this step."""
    hold_seconds: Int32 = 60
    """How long the step lasts at least. Default 60."""


class Upgrade(Model):
    """How a new revision takes over from the one that serves."""

    model_config = validated(
        rule(
            "!has(self.steps) || (has(self.strategy) && self.strategy == 'Canary')",
            "steps belong to strategy Canary",
        ),
        rule("!has(self.strategy) || self.strategy != 'Canary' || has(self.steps)", "strategy Canary needs steps"),
    )

    strategy: Literal["BlueGreen", "Canary"] = "BlueGreen"
    """BlueGreen switches all requests at once when the candidate is healthy; Canary shifts them step by step.
    Default BlueGreen."""
    steps: Annotated[list[UpgradeStep], Field(min_length=1, max_length=20)] | None = None
    """The steps of a canary, with rising weights; after the last one all requests move."""
    surge: Literal["Full", "InPlace"] = "Full"
    """Full keeps every replica of the stable revision until the candidate is promoted; InPlace shrinks it meanwhile,
    for clusters without room for both. Default Full."""
    retry_token: Annotated[str, Field(max_length=63)] | None = None
    """Change it to try a failed revision again."""


class EnvVar(Model):
    """An environment variable of a node's replicas."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    """Name of the variable."""
    value: Annotated[str, Field(max_length=32_768)] | None = None
    """Its value."""
    value_from: FreeForm | None = None
    """Where its value comes from, as in a pod: secretKeyRef, configMapKeyRef, fieldRef, resourceFieldRef."""


class Volume(Model):
    """A volume and where a node's replicas see it."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    """Name of the volume."""
    mount_path: Folder
    """The folder in the container, an absolute path."""
    read_only: bool = False
    """Whether replicas may only read. Default false."""
    source: FreeForm
    """The volume's source as in a pod: {persistentVolumeClaim: {claimName: weights}}."""


_REFUSED = " || ".join(f"has(self.{field})" for field in INLINE_REFUSES)


class NodeSpec(Model):
    """A model or function of the graph."""

    model_config = validated(
        _ONE_SIZE,
        rule(
            f"!has(self.placement) || self.placement != 'Inline' || !({_REFUSED})",
            "a node with placement Inline runs in the ingress process: it cannot have an image, env, runtimeEnv, "
            "resources, replicas, autoscaling or fields of a pod",
        ),
    )

    import_: ImportPath = Field(alias="import")
    """The class or function, "module:name"."""
    code: Digest | None = None
    """Digest of the sources that compile saw; a replica whose sources differ does not start. Default: not checked."""
    args: Annotated[JsonList, Field(max_length=256)] = Field(default_factory=list)
    """Positional arguments of the constructor: constants and {$node: ...}, also inside lists and objects."""
    kwargs: JsonObject = Field(default_factory=dict)
    """Keyword arguments of the constructor by name."""
    blocking: bool | None = None
    """Whether methods may block. With true, sync ones run in threads and async ones on an event loop of their own; with
    false, all run on the event loop that their calls come from. Default: sync ones in threads, async ones there."""
    image: ImageName | None = None
    """Container image. Default: spec.image."""
    runtime_env: JsonObject | None = None
    """Ray's runtime environment (pip, working_dir, ...). No secrets: use env with valueFrom."""
    env: (
        Annotated[
            list[EnvVar],
            Field(max_length=128, json_schema_extra=keyed_by("name")),
        ]
        | None
    ) = None
    """Environment variables of the replicas."""
    volumes: (
        Annotated[
            list[Volume],
            Field(max_length=32, json_schema_extra=keyed_by("name")),
        ]
        | None
    ) = None
    """Volumes of the replicas' pods."""
    node_selector: Annotated[dict[str, str], Field(max_length=32), AfterValidator(sorted_by_key)] | None = None
    """Labels that a machine must have."""
    tolerations: Annotated[list[FreeForm], Field(max_length=32)] | None = None
    """Taints that the pods tolerate, as in a pod."""
    gpu_resource_name: Annotated[str, Field(max_length=253)] | None = None
    """The extended resource that resources.gpu asks for. Default nvidia.com/gpu."""
    resources: Resources | None = None
    """What one replica reserves. Default: one CPU."""
    template: RawTemplate | None = None
    """A raw pod template, merged into the pods of this node."""
    replicas: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """How many replicas; 0 turns the node off. Default 1, unless autoscaling is set."""
    autoscaling: Autoscaling | None = None
    """Lets Ray Serve choose the number of replicas. Excludes replicas."""
    user_config: JsonObject | None = None
    """What `reconfigure()` of the class receives, in place and without a restart."""
    max_ongoing_requests: Annotated[int, Field(ge=1, le=100_000)] = 5
    """Requests in flight per replica. Default 5; use 1 for code that is not thread-safe."""
    max_queued_requests: Annotated[int, Field(ge=-1, le=1_000_000)] = -1
    """Requests that may wait for a replica; more are refused with 503. Default -1: no bound."""
    idempotent: bool = True
    """Whether a call may be made again when its replica is lost and nobody knows how far it got. False: it fails with
    502. Default true."""
    access_log: bool = False
    """A line in the log of its replicas for every call, with its time and how it ended; errors are logged in any case.
    It costs up to a tenth of a millisecond of CPU. Inline nodes have none. Default false."""
    drain_seconds: Int32 = 30
    """How long a replica that is being removed may finish its requests. Default 30."""
    health_check: HealthCheck | None = None
    """How often a replica is asked whether it is healthy."""
    progress_deadline_seconds: PositiveInt32 | None = None
    """Seconds after which a candidate that is not healthy is given up. Default: spec.progressDeadlineSeconds."""
    upgrade: Upgrade | None = None
    """How a new revision takes over."""
    placement: Literal["Auto", "Dedicated", "Inline"] = "Auto"
    """Dedicated: replicas of its own. Inline: in the ingress process. Auto: Inline for plain functions without
    resources, image or env, else Dedicated. Default Auto."""

    def identity(self) -> dict[str, Any]:
        """The fields whose change makes a new revision, as JSON; only what was set."""
        json = self.to_json()
        return {field: json[field] for field in IDENTITY_FIELDS if field in json}
