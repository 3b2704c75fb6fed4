"""A resource read back: the same graph, run in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servepipe.authoring import code
from servepipe.authoring.loader import load_object, root_of
from servepipe.authoring.runnable import Runnable
from servepipe.errors import ServePipeError
from servepipe.graph.calls import NodeDefinition
from servepipe.graph.expressions import decode_value, parse_fields, parse_list
from servepipe.graph.ir import Graph

if TYPE_CHECKING:
    from servepipe.api.v1alpha1 import NodeSpec, ServePipeline

__all__ = ["Pipeline", "load"]


class Pipeline(Runnable):
    """A ``ServePipeline`` that can be executed, tested and deployed like the App that it was compiled from.

    Made by `load`.
    """

    def __init__(self, resource: ServePipeline, root: Path | None) -> None:
        super().__init__()
        self.resource = resource
        self._root = root

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self.resource.metadata.name

    @cached_property
    def graph(self) -> Graph:
        """The compiled graph."""
        return self.resource.spec.graph.to_ir()

    @cached_property
    def definitions(self) -> dict[str, NodeDefinition]:
        """The nodes with their classes and functions, imported at the first use.

        Raises:
            CodeMismatchError: The sources are not those that the resource was compiled from.
            ImportPathError: A class or function is not found.
        """
        return {name: self._definition(name, node) for name, node in self.resource.spec.nodes.items()}

    @cached_property
    def preprocessor(self) -> Callable[[Any], Any] | None:
        """What turns an HTTP request into the graph's single argument, imported at the first use."""
        return self._hook(self.graph.preprocessor)

    @cached_property
    def postprocessor(self) -> Callable[[Any], Any] | None:
        """What turns the output into the HTTP answer, imported at the first use."""
        return self._hook(self.graph.postprocessor)

    def to_dict(self) -> dict[str, Any]:
        """The resource."""
        content: dict[str, Any] = self.resource.to_json()
        return content

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The resource as YAML: the bytes that compile wrote. ``path`` is a file to write them to as well."""
        from servepipe import api

        text = api.write(self.resource)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8", newline="\n")
        return text

    def _deployable(self) -> tuple[ServePipeline, Path | None]:
        return self.resource, self._root

    def __repr__(self) -> str:
        return f"<pipeline {self.name}: {', '.join(self.resource.spec.nodes)}>"

    def _definition(self, name: str, node: NodeSpec) -> NodeDefinition:
        where = f"spec.nodes.{name}"
        if node.code is not None:
            code.verify(node.code, node.import_.partition(":")[0], self._root, node=name)
        try:
            target = load_object(node.import_, self._root)
        except ServePipeError as error:
            error.where = error.where or f"{where}.import"
            raise
        return NodeDefinition(
            name=name,
            target=target,
            args=parse_list(node.args, f"{where}.args"),
            kwargs=parse_fields(node.kwargs, f"{where}.kwargs"),
            max_ongoing_requests=node.max_ongoing_requests,
            blocking=node.blocking,
            user_config=_user_config(node.user_config, f"{where}.userConfig"),
        )

    def _hook(self, path: str | None) -> Callable[[Any], Any] | None:
        hook: Callable[[Any], Any] | None = None if path is None else load_object(path, self._root)
        return hook


def _user_config(value: Any, where: str) -> Mapping[str, Any] | None:
    decoded: Mapping[str, Any] | None = None if value is None else decode_value(value, where)
    return decoded


def load(file: str | Path, *, root: str | Path | None = None) -> Pipeline:
    """Read a ``ServePipeline`` file. Its code is imported when it is needed, not before.

    Args:
        file: What ``servepipe compile`` wrote.
        root: Folder that the nodes' modules are imported from. By default that of the file (of a package: the folder
            that the package is in), then ``sys.path`` as usual.

    Raises:
        ResourceError: The file cannot be read, or does not hold a valid ServePipeline.
    """
    from servepipe import api

    path = Path(file)
    resource = api.read(path)
    if found := api.problems(resource):
        raise api.InvalidResourceError(found)
    return Pipeline(resource, Path(root).absolute() if root is not None else root_of(path.absolute().parent))
