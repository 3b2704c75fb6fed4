"""A pipeline as a configuration that Ray Serve runs by itself, without the operator.

The applications are the same as the operator's: one per node, and the ingress with the graph. What is missing is what
the operator does with them: a change is a new file, and Serve then replaces what changed without weights or a way back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servepipe.api import parse_quantity
from servepipe.api.v1alpha1 import (
    IDENTITY_FIELDS,
    Autoscaling,
    HealthCheck,
    Ingress,
    NodeSpec,
    Resources,
    ServePipeline,
    Spec,
)
from servepipe.graph.expressions import parse_fields, parse_list
from servepipe.graph.fields import Json
from servepipe.graph.ir import DictOf, ListOf, NodeRef, parts

__all__ = ["Exported", "export", "held_nodes", "quantity"]

_GRPC_SERVICER = "servepipe.runtime.grpc_service.add_servicer"
_PROXY_TIMEOUT_MARGIN_S = 10

_NOT_CARRIED_NODE = ("volumes", "nodeSelector", "tolerations", "gpuResourceName", "template", "upgrade")
_NOT_CARRIED_SPEC = ("suspend", "paused")


@dataclass(frozen=True)
class Exported:
    """``config`` is Serve's; ``left_out`` are the fields of the resource that Serve has no place for."""

    config: Json
    left_out: tuple[str, ...]


def export(pipeline: ServePipeline, working_dir: str | None = None) -> Exported:
    """Serve's configuration for a pipeline.

    Args:
        working_dir: URI that replicas take the user's modules from; None expects them on their path.
    """
    spec = pipeline.spec
    ingress = spec.ingress or Ingress()
    held = {name: held_nodes(node) for name, node in spec.nodes.items()}
    inline = _inline(spec.nodes, held)
    revisions = {name: _digest(_identity(node)) for name, node in spec.nodes.items()}
    runtime_env = {"working_dir": working_dir} if working_dir else None
    applications = [_ingress(pipeline, ingress, revisions, inline, runtime_env)]
    for name, node in spec.nodes.items():
        if name not in inline:
            applications.append(
                _node(pipeline.name, name, node, revisions, _holder_config(spec, held[name], revisions), runtime_env)
            )
    timeout_s = ingress.request_timeout_seconds + _PROXY_TIMEOUT_MARGIN_S
    config: Json = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 8000, "request_timeout_s": timeout_s},
    }
    if ingress.grpc is not None:
        config["grpc_options"] = {
            "port": ingress.grpc.port,
            "grpc_servicer_functions": [_GRPC_SERVICER],
            "request_timeout_s": timeout_s,
        }
    return Exported({**config, "applications": applications}, tuple(_left_out(pipeline)))


def held_nodes(node: NodeSpec) -> tuple[str, ...]:
    """The nodes whose handles a node's constructor gets, in the order in which they are written."""
    given = ListOf((ListOf(parse_list(node.args, "args")), DictOf(parse_fields(node.kwargs, "kwargs"))))
    return tuple(dict.fromkeys(part.node for part in parts(given) if isinstance(part, NodeRef)))


def quantity(text: str) -> int | float:
    """A Kubernetes quantity as a number; whole ones as an int."""
    number = parse_quantity(text)
    return int(number) if number == int(number) else float(number)


def _inline(nodes: Mapping[str, NodeSpec], held: Mapping[str, tuple[str, ...]]) -> set[str]:
    """The nodes that run in the ingress. What a node with replicas holds has replicas too: others cannot reach it."""
    inline = {name for name, node in nodes.items() if node.placement == "Inline"}
    while dragged := {other for name in nodes if name not in inline for other in held[name]} & inline:
        inline -= dragged
    return inline


def _ingress(
    pipeline: ServePipeline, ingress: Ingress, revisions: Mapping[str, str], inline: set[str], runtime_env: Json | None
) -> Json:
    graph = pipeline.spec.to_json()["graph"]
    codes = {node.code for name, node in pipeline.spec.nodes.items() if name in inline and node.code}
    table: Json = {
        "pipeline": pipeline.name,
        "graphRevision": _digest(graph),
        "graph": graph,
        "nodes": {name: _routes(node, revisions[name], name in inline) for name, node in pipeline.spec.nodes.items()},
        "requestTimeoutSeconds": ingress.request_timeout_seconds,
        "maxBodyBytes": ingress.max_body_bytes,
    }
    return {
        "name": "ingress",
        "route_prefix": ingress.route,
        "import_path": "servepipe.runtime.app:ingress",
        **({"runtime_env": runtime_env} if runtime_env else {}),
        "args": {
            "pipeline": pipeline.name,
            "codes": sorted(codes),
            "preprocessor": graph.get("input", {}).get("preprocessor"),
            "preprocessorCode": graph.get("input", {}).get("code"),
            "postprocessor": graph.get("response", {}).get("postprocessor"),
            "postprocessorCode": graph.get("response", {}).get("code"),
        },
        "deployments": [
            {
                "name": "ingress",
                **_size(ingress.replicas, ingress.autoscaling),
                "max_ongoing_requests": ingress.max_ongoing_requests,
                "user_config": {"table": _digest(table), **table},
                "graceful_shutdown_timeout_s": ingress.request_timeout_seconds,
                "logging_config": {"enable_access_log": ingress.access_log},
                "ray_actor_options": _actor_options(ingress.resources),
                "max_surge_percent": 100,
            }
        ],
    }


def _routes(node: NodeSpec, revision: str, inline: bool) -> Json:
    route: Json = {"revision": revision, "weight": 100}
    if inline:
        route["inline"] = {
            **_call(node),
            "userConfig": node.user_config,
            "maxOngoingRequests": node.max_ongoing_requests,
        }
    return {
        "routes": [route],
        **({"off": True} if node.replicas == 0 else {}),
        **({} if node.idempotent else {"idempotent": False}),
    }


def _call(node: NodeSpec) -> Json:
    return {
        "import": node.import_,
        "args": node.args,
        "kwargs": node.kwargs,
        "code": node.code,
        "blocking": node.blocking,
    }


def _node(
    pipeline: str,
    name: str,
    node: NodeSpec,
    revisions: Mapping[str, str],
    table: Json,
    runtime_env: Json | None,
) -> Json:
    health = node.health_check or HealthCheck()
    return {
        "name": f"{name}--{revisions[name]}",
        # Left out it would mean "/", which only the ingress may have.
        "route_prefix": None,
        "import_path": "servepipe.runtime.app:node",
        **({"runtime_env": runtime_env} if runtime_env else {}),
        "args": {"pipeline": pipeline, "node": name, "revision": revisions[name], **_call(node)},
        "deployments": [
            {
                "name": "node",
                **_size(node.replicas, node.autoscaling),
                "max_ongoing_requests": node.max_ongoing_requests,
                "max_queued_requests": node.max_queued_requests,
                "user_config": {
                    **table,
                    "userConfig": node.user_config,
                    "maxOngoingRequests": node.max_ongoing_requests,
                },
                "graceful_shutdown_timeout_s": node.drain_seconds,
                "health_check_period_s": health.period_seconds,
                "health_check_timeout_s": health.timeout_seconds,
                "logging_config": {"enable_access_log": node.access_log},
                "ray_actor_options": {**_actor_options(node.resources), **_runtime_env(node)},
                "max_surge_percent": 100,
            }
        ],
    }


def _holder_config(spec: Spec, held: tuple[str, ...], revisions: Mapping[str, str]) -> Json:
    """The part of a node's ``user_config`` that routes the handles it holds."""
    routes: Json = {"routes": {other: [{"revision": revisions[other], "weight": 100}] for other in held}}
    if once := [other for other in held if not spec.nodes[other].idempotent]:
        routes["notIdempotent"] = once
    return {"table": _digest(routes), **routes}


def _size(replicas: int | None, autoscaling: Autoscaling | None) -> Json:
    if autoscaling is not None:
        return {
            "autoscaling_config": {
                "min_replicas": autoscaling.min_replicas,
                "max_replicas": autoscaling.max_replicas,
                "target_ongoing_requests": autoscaling.target_ongoing_requests,
                "upscale_delay_s": autoscaling.upscale_delay_seconds,
                "downscale_delay_s": autoscaling.downscale_delay_seconds,
            }
        }
    if replicas == 0:
        # Serve knows no fixed number of 0; nobody calls this node, so none is started.
        return {"autoscaling_config": {"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1}}
    return {"num_replicas": replicas or 1}


def _actor_options(resources: Resources | None) -> Json:
    resources = resources or Resources()
    options: Json = {"num_cpus": quantity(resources.cpu or "1")}
    if resources.memory:
        options["memory"] = int(parse_quantity(resources.memory))
    if resources.gpu:
        options["num_gpus"] = quantity(resources.gpu)
    if resources.custom:
        options["resources"] = {name: quantity(amount) for name, amount in resources.custom.items()}
    return options


def _runtime_env(node: NodeSpec) -> Json:
    variables = {variable.name: variable.value or "" for variable in node.env or () if variable.value_from is None}
    own = dict(node.runtime_env or {})
    if variables:
        own["env_vars"] = {**own.get("env_vars", {}), **variables}
    return {"runtime_env": own} if own else {}


def _left_out(pipeline: ServePipeline) -> list[str]:
    spec = pipeline.spec.to_json()
    found = [f"spec.{field}" for field in _NOT_CARRIED_SPEC if spec.get(field)]
    for name, node in spec["nodes"].items():
        found += [f"spec.nodes.{name}.{field}" for field in _NOT_CARRIED_NODE if field in node]
        if node.get("image", spec.get("image")) != spec.get("image"):
            found.append(f"spec.nodes.{name}.image")
        found += [
            f"spec.nodes.{name}.env[{variable['name']}]" for variable in node.get("env", ()) if "valueFrom" in variable
        ]
    groups = {"spec.ingress": spec.get("ingress", {})}
    groups |= {f"spec.cluster.{name}": group for name, group in spec.get("cluster", {}).items()}
    return found + [f"{path}.template" for path, group in groups.items() if "template" in group]


def _identity(node: NodeSpec) -> Json:
    content = node.to_json()
    return {field: content[field] for field in IDENTITY_FIELDS if field in content}


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
