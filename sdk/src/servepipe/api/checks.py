"""What is wrong with a resource beyond its schema, for compile, validate, apply and the operator: `problems`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from servepipe.api.document import MAX_BYTES, WARN_BYTES, size
from servepipe.api.problem import Problem
from servepipe.api.v1alpha1 import (
    INLINE_REFUSES,
    RESERVED_NODE_NAMES,
    Autoscaling,
    Ingress,
    NodeSpec,
    Resources,
    ServePipeline,
    Service,
    Spec,
    Upgrade,
    Workers,
)
from servepipe.errors import ServePipeError
from servepipe.graph import checks as graph_checks
from servepipe.graph.expressions import parse_fields, parse_list
from servepipe.graph.ir import Expr
from servepipe.graph.values import at_index, at_key
from servepipe.graph.wire import decode_value

__all__ = ["notices", "problems"]

#: Ports that Ray, Serve and KubeRay take in every pod.
_RAY_PORTS = {
    6379: "Ray's GCS",
    8000: "Serve's HTTP proxy",
    8080: "Ray's metrics",
    8265: "Ray's dashboard",
    10001: "Ray",
}
_RAY_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")
#: Of the custom resources by which replicas find their worker group.
_OUR_RESOURCES = "svp-"


def problems(resource: ServePipeline) -> list[Problem]:
    """Everything that is wrong, in the order of the resource; empty for a resource that can be run.

    Finds what CEL finds too (for resources that never meet an API server), and what it cannot see: references and
    cycles inside arguments, import paths, values.
    """
    spec = resource.spec
    found = list(_graph_problems(spec))
    for name, node in spec.nodes.items():
        found += _node_problems(name, node)
    if spec.ingress is not None:
        found += _ingress_problems(spec.ingress)
        found += _custom(spec.ingress.resources, "spec.ingress.resources")
    if spec.cluster is not None and spec.cluster.workers is not None:
        found += _bounds(spec.cluster.workers, "spec.cluster.workers")
        found += _custom(spec.cluster.workers.resources, "spec.cluster.workers.resources")
    if (length := size(resource)) > MAX_BYTES:
        what = f"the resource has {length // 1024} KiB; a cluster stores at most {MAX_BYTES // 1024} KiB"
        found.append(Problem("", what, "Move large constants into files that the nodes read."))
    return found


def notices(resource: ServePipeline) -> list[Problem]:
    """What works but is worth knowing before it surprises."""
    if (length := size(resource)) <= WARN_BYTES:
        return []
    return [
        Problem(
            "",
            f"the resource has {length // 1024} KiB; plain `kubectl apply` stops at 256 KiB",
            "Use `servepipe apply` or `kubectl apply --server-side`, or move large constants into files.",
        )
    ]


# --- The graph --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Arguments:
    """Constructor arguments as `servepipe.graph.checks` looks at them."""

    args: tuple[Expr, ...] = ()
    kwargs: tuple[tuple[str, Expr], ...] = ()


def _graph_problems(spec: Spec) -> Iterator[Problem]:
    nodes: dict[str, _Arguments] = {}
    for name, node in spec.nodes.items():
        base = at_key("spec.nodes", name)
        try:
            nodes[name] = _Arguments(parse_list(node.args, f"{base}.args"), parse_fields(node.kwargs, f"{base}.kwargs"))
        except ServePipeError as error:
            yield Problem.of(error)
            nodes[name] = _Arguments()
    try:
        graph = spec.graph.to_ir()
    except ServePipeError as error:
        yield Problem.of(error)
        return
    for problem in graph_checks.problems(graph, nodes):
        yield Problem(problem.path, problem.what, problem.fix)
    if graph.preprocessor is not None:
        yield from _import_path(graph.preprocessor, "spec.graph.input.preprocessor")
    if graph.postprocessor is not None:
        yield from _import_path(graph.postprocessor, "spec.graph.response.postprocessor")
    for index, step in enumerate(spec.graph.steps):
        path = at_index("spec.graph.steps", index)
        if step.method is not None and not step.method.isidentifier():
            yield Problem(f"{path}.method", f"{step.method!r} is not the name of a method")
        yield from _keywords(step.kwargs, f"{path}.kwargs")


def _import_path(text: str, path: str) -> Iterator[Problem]:
    module, _, name = text.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        yield Problem(path, f"{text!r} cannot be imported", 'Write "package.module:Class" or "module:function".')


def _keywords(kwargs: dict[str, Any], path: str) -> Iterator[Problem]:
    for key in kwargs:
        if not key.isidentifier():
            yield Problem(path, f"{key!r} is not the name of an argument")


# --- Nodes, ingress, cluster ------------------------------------------------------------------------------------------


def _node_problems(name: str, node: NodeSpec) -> Iterator[Problem]:
    path = at_key("spec.nodes", name)
    if name in RESERVED_NODE_NAMES:
        yield Problem(path, f"the name {name!r} is reserved", f"Reserved are {', '.join(RESERVED_NODE_NAMES)}.")
    yield from _import_path(node.import_, f"{path}.import")
    yield from _keywords(node.kwargs, f"{path}.kwargs")
    fields = node.to_json()
    if node.placement == "Inline":
        for field in INLINE_REFUSES:
            if field in fields:
                yield Problem(
                    f"{path}.{field}",
                    "a node with placement Inline runs in the ingress process and has none of its own",
                    "Remove it, or use placement: Dedicated.",
                )
    yield from _one_size(node, path)
    yield from _custom(node.resources, f"{path}.resources")
    if node.upgrade is not None:
        yield from _upgrade_problems(node.upgrade, f"{path}.upgrade")
    if node.user_config is not None:
        yield from _user_config(node.user_config, f"{path}.userConfig")
    if node.runtime_env is not None:
        yield from _nulls(node.runtime_env, f"{path}.runtimeEnv")
    for index, variable in enumerate(node.env or []):
        if variable.value is not None and variable.value_from is not None:
            yield Problem(f"{path}.env[{index}]", "value and valueFrom exclude each other")
    for field, items in (("env", node.env), ("volumes", node.volumes)):
        yield from _repeated([item.name for item in items or []], f"{path}.{field}")


def _ingress_problems(ingress: Ingress) -> Iterator[Problem]:
    yield from _one_size(ingress, "spec.ingress")
    route = ingress.route
    if route != "/" and route.endswith("/"):
        yield Problem("spec.ingress.route", f"{route!r} ends in a slash", f"Write {route.rstrip('/') or '/'!r}.")
    if route.startswith("/-"):
        yield Problem("spec.ingress.route", "paths below /- are the ingress's own", "Choose another path.")
    if {".", ".."} & {*unquote(route).split("/")}:
        yield Problem("spec.ingress.route", f"no client can ask for {route!r}: it would ask elsewhere")
    if ingress.grpc is not None:
        port = ingress.grpc.port
        if port in _RAY_PORTS:
            taken = f"port {port} belongs to {_RAY_PORTS[port]} in every pod"
            yield Problem("spec.ingress.grpc.port", taken, "Choose another port, like 9000.")
        if port == (ingress.service or Service()).port:
            yield Problem("spec.ingress.grpc.port", f"the Service has port {port} for HTTP already")


def _custom(resources: Resources | None, path: str) -> Iterator[Problem]:
    for name in resources.custom if resources else ():
        where = at_key(f"{path}.custom", name)
        if name in _RAY_RESOURCES:
            yield Problem(where, f"{name} is not a custom resource of Ray", "Use cpu, gpu or memory.")
        elif name.startswith(_OUR_RESOURCES):
            yield Problem(
                where, f"names that start with {_OUR_RESOURCES!r} are servepipe's own", "Choose another name."
            )


def _one_size(owner: NodeSpec | Ingress, path: str) -> Iterator[Problem]:
    if owner.autoscaling is None:
        return
    if owner.replicas is not None:
        yield Problem(f"{path}.replicas", "replicas and autoscaling exclude each other", "Remove one of them.")
    yield from _bounds(owner.autoscaling, f"{path}.autoscaling")


def _bounds(owner: Autoscaling | Workers, path: str) -> Iterator[Problem]:
    if owner.min_replicas > owner.max_replicas:
        yield Problem(
            f"{path}.minReplicas", f"minReplicas {owner.min_replicas} exceeds maxReplicas {owner.max_replicas}"
        )


def _upgrade_problems(upgrade: Upgrade, path: str) -> Iterator[Problem]:
    if upgrade.strategy == "BlueGreen":
        if upgrade.steps is not None:
            yield Problem(f"{path}.steps", "strategy BlueGreen has no steps", "Set strategy: Canary, or remove them.")
        return
    if upgrade.steps is None:
        yield Problem(path, "strategy Canary needs steps", "Write steps: [{weight: 10, holdSeconds: 60}].")
    weights = [step.weight for step in upgrade.steps or []]
    for index in range(1, len(weights)):
        if weights[index] <= weights[index - 1]:
            yield Problem(
                f"{path}.steps[{index}].weight",
                f"{weights[index]} does not exceed the step before, {weights[index - 1]}",
                "Weights rise from step to step.",
            )


def _user_config(value: dict[str, Any], path: str) -> Iterator[Problem]:
    try:
        decoded = decode_value(value, path)
    except ServePipeError as error:
        yield Problem.of(error)
        return
    if not isinstance(decoded, dict):
        yield Problem(path, f"expected an object, not a {type(decoded).__name__}")


def _nulls(value: Any, path: str) -> Iterator[Problem]:
    """Nulls in objects that are passed on as they are: `kubectl apply` would drop them silently."""
    stack = [(path, value)]
    while stack:
        here, current = stack.pop()
        if isinstance(current, list):
            stack.extend((at_index(here, index), item) for index, item in enumerate(current))
        elif isinstance(current, dict):
            for key, item in current.items():
                if item is None:
                    yield Problem(at_key(here, key), "a null does not survive `kubectl apply`", "Leave the field out.")
                stack.append((at_key(here, key), item))


def _repeated(names: list[str], path: str) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield Problem(f"{path}[{index}].name", f"the name {name!r} stands twice in the list")
        seen.add(name)
