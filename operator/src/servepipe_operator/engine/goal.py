"""What an accepted spec asks for, in the engine's terms: identities with their revisions, and live settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from servepipe.api.removals import unmarked
from servepipe.api.v1alpha1 import (
    Autoscaling,
    GraphInput,
    GraphResponse,
    HealthCheck,
    Ingress,
    NodeSpec,
    Spec,
    Upgrade,
)
from servepipe_operator.engine.defaults import completed
from servepipe_operator.engine.history import Memory
from servepipe_operator.engine.names import INGRESS
from servepipe_operator.engine.revisions import (
    SCHEME,
    digest,
    held_nodes,
    name_of,
    node_identity,
    normalised_resources,
)
from servepipe_operator.engine.state import Environment, Json

__all__ = ["Goal", "IngressGoal", "Live", "NodeGoal", "Scale", "covers", "default_live", "read", "spec_name"]

_SPEC_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Scale:
    """Between how many replicas. ``low == high`` is a fixed number; 0 and 0 is off."""

    low: int
    high: int
    target_ongoing_requests: int = 2
    upscale_delay_s: int = 30
    downscale_delay_s: int = 600

    @property
    def off(self) -> bool:
        return self.high == 0


@dataclass(frozen=True, slots=True)
class Live:
    """What is applied in place, without a new revision.

    ``inline`` is where the node is to run; the class or function is the same in both places.
    """

    scale: Scale
    user_config: Json | None
    max_ongoing_requests: int
    max_queued_requests: int
    idempotent: bool
    access_log: bool
    drain_s: int
    health_period_s: int
    health_timeout_s: int
    deadline_s: int
    retry_token: str
    canary: bool
    in_place: bool
    inline: bool


@dataclass(frozen=True, slots=True)
class NodeGoal:
    """A node as the spec wants it. ``held`` are the nodes whose handles it gets."""

    name: str
    identity: Json
    revision: str
    held: frozenset[str]
    live: Live


@dataclass(frozen=True, slots=True)
class IngressGoal:
    """The ingress as the spec wants it. ``identity`` is complete once every Inline node runs in it."""

    identity: Json
    revision: str
    scale: Scale
    route: str
    request_timeout_s: int
    max_body_bytes: int
    max_ongoing_requests: int
    access_log: bool


@dataclass(frozen=True, slots=True)
class Goal:
    """Everything that one spec asks for.

    Args:
        spec_name: Of its record.
        accepted: The spec as its author wrote it; ``spec`` is the same as JSON.
        graph_revision: Hash of ``graph_data``: the graph, the names of the nodes, and who holds whom.
    """

    pipeline: str
    spec_name: str
    accepted: Spec
    spec: Json
    graph_revision: str
    graph_data: Json
    nodes: Mapping[str, NodeGoal]
    ingress: IngressGoal
    suspend: bool
    paused: bool
    max_concurrent_upgrades: int
    history_limit: int
    deadline_s: int


def read(pipeline: str, spec: Spec, memory: Memory, environment: Environment) -> Goal:
    """What ``spec`` asks for; revisions that history knows keep their names."""
    json = spec.to_json()
    name_of_spec = digest(json, _SPEC_DIGITS)
    full = completed(spec, memory.defaults.get(name_of_spec))
    identities = {
        name: node_identity(node, spec.image, environment.ignored_fields) for name, node in sorted(spec.nodes.items())
    }
    held = {name: held_nodes(identity) for name, identity in identities.items()}
    # A process of its own cannot call into the ingress's: what a Dedicated node holds has replicas too.
    reachable_inline = {name for name, node in full.nodes.items() if node.placement == "Inline"}
    while dragged := {
        other for name in identities if name not in reachable_inline for other in held[name] & reachable_inline
    }:
        reachable_inline -= dragged
    nodes = {
        name: NodeGoal(
            name=name,
            identity=identity,
            revision=name_of(identity, memory.of_node(name)),
            held=held[name],
            live=_live(full.nodes[name], full, environment, name in reachable_inline),
        )
        for name, identity in identities.items()
    }
    graph_data: Json = {
        "scheme": SCHEME,
        "graph": json["graph"],
        "nodes": sorted(nodes),
        "edges": {name: sorted(others) for name, others in held.items() if others},
    }
    return Goal(
        pipeline=pipeline,
        spec_name=name_of_spec,
        accepted=spec,
        spec=json,
        graph_revision=name_of(graph_data, memory.graphs),
        graph_data=graph_data,
        nodes=nodes,
        ingress=_ingress(full, nodes, memory, environment),
        suspend=spec.suspend,
        paused=spec.paused,
        max_concurrent_upgrades=full.max_concurrent_upgrades,
        history_limit=full.history_limit,
        deadline_s=full.progress_deadline_seconds,
    )


def spec_name(spec: Spec) -> str:
    """The name of a spec's record."""
    return digest(spec.to_json(), _SPEC_DIGITS)


def default_live() -> Live:
    """The live settings of a node about which nothing is known any more: the API's defaults."""
    return Live(
        scale=_scale(None, None),
        user_config=None,
        max_ongoing_requests=NodeSpec.model_fields["max_ongoing_requests"].default,
        max_queued_requests=NodeSpec.model_fields["max_queued_requests"].default,
        idempotent=NodeSpec.model_fields["idempotent"].default,
        access_log=NodeSpec.model_fields["access_log"].default,
        drain_s=NodeSpec.model_fields["drain_seconds"].default,
        health_period_s=HealthCheck().period_seconds,
        health_timeout_s=HealthCheck().timeout_seconds,
        deadline_s=Spec.model_fields["progress_deadline_seconds"].default,
        retry_token="",
        canary=False,
        in_place=False,
        inline=False,
    )


def covers(ingress: Json, node: Json) -> bool:
    """Whether a process with this ingress identity may hold an instance of this node's revision."""
    code = node.get("code")
    return (code is None or code in ingress["codes"]) and node.get("image") == ingress.get("image")


def _live(node: NodeSpec, spec: Spec, environment: Environment, inline: bool) -> Live:
    health = node.health_check or HealthCheck()
    upgrade = node.upgrade or Upgrade()
    scale = _scale(node.replicas, node.autoscaling)
    if environment.replicas_at_most is not None:
        cap = environment.replicas_at_most
        scale = replace(scale, low=min(scale.low, cap), high=min(scale.high, cap))
    return Live(
        scale=Scale(1, 1) if inline else scale,
        user_config=node.user_config,
        max_ongoing_requests=node.max_ongoing_requests,
        max_queued_requests=node.max_queued_requests,
        idempotent=node.idempotent,
        access_log=node.access_log,
        drain_s=node.drain_seconds,
        health_period_s=health.period_seconds,
        health_timeout_s=health.timeout_seconds,
        deadline_s=node.progress_deadline_seconds or spec.progress_deadline_seconds,
        retry_token=upgrade.retry_token or "",
        canary=upgrade.strategy == "Canary",
        in_place=upgrade.surge == "InPlace",
        inline=inline,
    )


def _scale(replicas: int | None, autoscaling: Autoscaling | None) -> Scale:
    if autoscaling is None:
        count = 1 if replicas is None else replicas
        return Scale(count, count)
    return Scale(
        autoscaling.min_replicas,
        autoscaling.max_replicas,
        autoscaling.target_ongoing_requests,
        autoscaling.upscale_delay_seconds,
        autoscaling.downscale_delay_seconds,
    )


def _ingress(spec: Spec, nodes: Mapping[str, NodeGoal], memory: Memory, environment: Environment) -> IngressGoal:
    ingress = spec.ingress or Ingress()
    before, after = spec.graph.input or GraphInput(), spec.graph.response or GraphResponse()
    codes = {node.identity.get("code") for node in nodes.values() if node.live.inline}
    codes |= {before.code, after.code}
    identity: Json = {"codes": sorted(digest for digest in codes if digest)}
    optional: dict[str, Any] = {
        "preprocessor": before.preprocessor,
        "postprocessor": after.postprocessor,
        "preprocessorCode": before.code,
        "postprocessorCode": after.code,
        "image": None if "image" in environment.ignored_fields else spec.image,
        "resources": normalised_resources(ingress.resources.to_json()) if ingress.resources else None,
        "template": None if "template" in environment.ignored_fields else unmarked(ingress.template),
    }
    identity |= {key: value for key, value in optional.items() if value}
    return IngressGoal(
        identity=identity,
        revision=name_of(identity, memory.of_node(INGRESS)),
        scale=_scale(ingress.replicas, ingress.autoscaling),
        route=ingress.route,
        request_timeout_s=ingress.request_timeout_seconds,
        max_body_bytes=ingress.max_body_bytes,
        max_ongoing_requests=ingress.max_ongoing_requests,
        access_log=ingress.access_log,
    )
