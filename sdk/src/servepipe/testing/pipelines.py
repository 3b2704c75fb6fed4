"""What the test client needs to know of a pipeline, whatever form it is given in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servepipe.authoring.app import App, lowered_here, warn_unused
from servepipe.authoring.load import Pipeline, load
from servepipe.errors import ServePipeError
from servepipe.graph.calls import NodeDefinition
from servepipe.graph.ir import Graph
from servepipe.runtime.http import Hook

__all__ = ["TestedPipeline", "tested_pipeline"]

DEFAULT_TIMEOUT_S = 60
DEFAULT_MAX_BODY_BYTES = 104_857_600


@dataclass(frozen=True)
class TestedPipeline:
    """Args as in the resource; ``definitions`` are the nodes with their code."""

    __test__ = False  # pytest: this is no test

    name: str
    graph: Graph
    definitions: Mapping[str, NodeDefinition]
    preprocessor: Hook | None = None
    postprocessor: Hook | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES


def tested_pipeline(pipeline: Any) -> TestedPipeline:
    """Read an `App`, a loaded `Pipeline`, a path to a resource, a ``ServePipeline`` or the output of a graph.

    Raises:
        ServePipeError: It is none of these, or not valid.
    """
    if isinstance(pipeline, str | Path):
        pipeline = load(pipeline)
    elif _is_resource(pipeline):
        pipeline = Pipeline(pipeline, None)
    if isinstance(pipeline, App):
        ingress = pipeline.ingress.options
        return TestedPipeline(
            pipeline.name,
            pipeline.graph,
            pipeline.definitions,
            _hook(pipeline.preprocessor),
            _hook(pipeline.postprocessor),
            ingress.get("requestTimeoutSeconds", DEFAULT_TIMEOUT_S),
            ingress.get("maxBodyBytes", DEFAULT_MAX_BODY_BYTES),
        )
    if isinstance(pipeline, Pipeline):
        ingress_spec = pipeline.resource.spec.ingress
        return TestedPipeline(
            pipeline.name,
            pipeline.graph,
            pipeline.definitions,
            _hook(pipeline.preprocessor, pipeline.graph.preprocessor),
            _hook(pipeline.postprocessor, pipeline.graph.postprocessor),
            ingress_spec.request_timeout_seconds if ingress_spec else DEFAULT_TIMEOUT_S,
            ingress_spec.max_body_bytes if ingress_spec else DEFAULT_MAX_BODY_BYTES,
        )
    if not hasattr(pipeline, "execute"):
        raise ServePipeError(
            f"cannot test a {type(pipeline).__name__}",
            fix="Give what build() returned, the output of a graph, or the path of a ServePipeline file.",
        )
    lowered = lowered_here(pipeline)
    warn_unused(lowered)
    definitions = {name: node.definition(node.fields) for name, node in lowered.nodes.items()}
    return TestedPipeline("pipeline", lowered.graph, definitions, _hook(lowered.preprocessor))


def _is_resource(value: Any) -> bool:
    from servepipe.api.v1alpha1 import ServePipeline

    return isinstance(value, ServePipeline)


def _hook(function: Callable[[Any], Any] | None, import_path: str | None = None) -> Hook | None:
    if function is None:
        return None
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return Hook(import_path or f"{function.__module__}:{name}", function)
