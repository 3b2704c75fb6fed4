"""From a built App to the ``ServePipeline`` resource."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from servepipe.authoring.batches import with_room
from servepipe.authoring.code import code_digest
from servepipe.authoring.loader import import_root, importable, module_name
from servepipe.authoring.lower import LoweredNode
from servepipe.errors import GraphError, GraphTooLargeError, ImportPathError
from servepipe.graph.batching.marks import mark_of
from servepipe.graph.checks import MAX_NODES, MAX_STEPS
from servepipe.graph.wire import dump_expr, dump_graph, encode_value

if TYPE_CHECKING:
    from servepipe.api.v1alpha1 import ServePipeline
    from servepipe.authoring.app import App

__all__ = ["import_root_of", "to_resource", "to_text", "to_validated"]


def to_resource(app: App) -> dict[str, Any]:
    """The resource as JSON; what the author set, plus each node's import path, code digest and room for its batches.

    Raises:
        GraphError: A step that nothing needs, more nodes or steps than the resource holds, an argument that has no
            wire form.
        ImportPathError: A class or function that another process could not import.
        ResourceError: An option has a value that the resource does not take.
    """
    return to_validated(app).to_json()


def to_validated(app: App) -> ServePipeline:
    """As `to_resource`, as the model."""
    from servepipe.api import validate

    return validate(_resource(app))


def to_text(app: App) -> str:
    """The canonical YAML."""
    from servepipe.api import write

    return write(to_validated(app))


def import_root_of(app: App) -> Path | None:
    """The folder from which other processes import the project's modules.

    None where all code is in installed packages.

    Raises:
        ImportPathError: A node has no file.
        GraphError: The modules lie below several folders.
    """
    roots: dict[Path, str] = {}
    for node in app._lowered.nodes.values():
        _, module = importable(node.target)
        root = import_root(module)
        if root is not None and code_digest(module_name(module), root) is not None:
            roots.setdefault(root, node.name)
    if len(roots) > 1:
        listed = ", ".join(f"{root} (node {name!r})" for root, name in roots.items())
        raise GraphError(
            f"the pipeline's modules are imported from several folders: {listed}",
            where=str(app._place),
            fix="Put them below one folder, or install one of them as a package.",
        )
    return next(iter(roots), None)


def _resource(app: App) -> dict[str, Any]:
    lowered = app._lowered
    if lowered.unused:
        raise GraphError(
            f"the output does not need {', '.join(lowered.unused)}",
            where=str(app._place),
            fix="Use what they return, or remove them: replicas share no state, so calling a step only for its effect "
            "does nothing for the others.",
        )
    for count, most, word in ((len(lowered.graph.steps), MAX_STEPS, "steps"), (len(lowered.nodes), MAX_NODES, "nodes")):
        if count > most:
            raise GraphTooLargeError(
                f"the graph has {count} {word}, and a ServePipeline holds at most {most}",
                where=str(app._place),
                fix="Split it into several pipelines, or move some steps into one node.",
            )
    preprocessor, preprocessor_code = _hook(lowered.preprocessor, "the preprocessor")
    postprocessor, postprocessor_code = _hook(app.postprocessor, "the postprocessor")
    graph = dataclasses.replace(
        lowered.graph,
        preprocessor=preprocessor,
        preprocessor_code=preprocessor_code,
        postprocessor=postprocessor,
        postprocessor_code=postprocessor_code,
    )
    spec: dict[str, Any] = {
        "graph": dump_graph(graph),
        "nodes": {name: _node(node, app.nodes[name].options) for name, node in lowered.nodes.items()},
    }
    if app._ray_version is not None:
        spec["rayVersion"] = app._ray_version
    if app.ingress.options:
        spec["ingress"] = app.ingress.options
    return {
        "apiVersion": "servepipe.dev/v1alpha1",
        "kind": "ServePipeline",
        "metadata": {"name": app.name},
        "spec": spec,
    }


def _node(node: LoweredNode, options: dict[str, Any]) -> dict[str, Any]:
    path, module = _importable(node.target, f"node {node.name!r}", node.where)
    fields: dict[str, Any] = {"import": path}
    digest = _digest(module)
    if digest is not None:
        fields["code"] = digest
    if node.args:
        fields["args"] = [dump_expr(arg, node.where) for arg in node.args]
    if node.kwargs:
        fields["kwargs"] = {key: dump_expr(value, node.where) for key, value in node.kwargs}
    fields |= with_room(node.target, options)
    if _belongs_in_ingress(node, fields):
        fields["placement"] = "Inline"
    if "userConfig" in options:
        fields["userConfig"] = encode_value(options["userConfig"], f"{node.where} user_config")
    return fields


def _belongs_in_ingress(node: LoweredNode, fields: Mapping[str, Any]) -> bool:
    """Whether ``placement: Auto`` means the ingress's own process: a plain function that asks for nothing else.

    One that is batched asks for calls that meet, and each process of the ingress has only a part of them.
    """
    from servepipe.api.v1alpha1 import INLINE_REFUSES

    is_auto = fields.get("placement", "Auto") == "Auto"
    is_plain = not inspect.isclass(node.target) and mark_of(node.target) is None
    return is_auto and is_plain and not any(field in fields for field in INLINE_REFUSES)


def _hook(target: Callable[..., Any] | None, what: str) -> tuple[str | None, str | None]:
    """Import path and digest of a pre- or postprocessor."""
    if target is None:
        return None, None
    path, module = _importable(target, what)
    return path, _digest(module)


def _digest(module: ModuleType) -> str | None:
    root = import_root(module)
    return code_digest(module_name(module), root) if root is not None else None


def _importable(target: Callable[..., Any], what: str, where: str = "") -> tuple[str, ModuleType]:
    try:
        return importable(target)
    except ImportPathError as error:
        raise ImportPathError(f"{what}: {error.what}", where=where or error.where, fix=error.fix) from None
