"""Running a graph in the author's process."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from servepipe.authoring.loader import EndImport, importing
from servepipe.authoring.options import did_you_mean
from servepipe.authoring.places import here
from servepipe.errors import GraphError
from servepipe.graph.calls import NodeDefinition
from servepipe.graph.inprocess import Runner
from servepipe.graph.ir import Graph

__all__ = ["Execution", "prepare"]


class Execution:
    """A graph with its nodes in this process; built at the first call, used again by later ones.

    Args:
        graph: What to run.
        definitions: Its nodes.
        fakes: Nodes to replace, by name (``-`` may be written as ``_``): an object with the methods that are called, or
            for a function node a callable.

    Raises:
        GraphError: A fake for a node that the graph does not have.
    """

    def __init__(self, graph: Graph, definitions: Mapping[str, NodeDefinition], fakes: Mapping[str, Any]) -> None:
        named: dict[str, Any] = {}
        for given, fake in fakes.items():
            name = given if given in definitions else given.replace("_", "-")
            if name not in definitions:
                raise GraphError(
                    f"the graph has no node {given!r}", where=str(here()), fix=did_you_mean(name, definitions)
                )
            named[name] = fake
        self._runner = Runner(graph, definitions, named)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph and return its answer."""
        if importing():
            raise EndImport
        return self._runner.execute(args, kwargs)

    async def execute_async(self, *args: Any, **kwargs: Any) -> Any:
        """As `execute`, awaitable."""
        if importing():
            raise EndImport
        return await self._runner.execute_async(args, kwargs)

    def close(self) -> None:
        """Drop the nodes, after calling their ``close()``."""
        self._runner.reset()

    def __enter__(self) -> Execution:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def prepare(output: Any, fakes: Mapping[str, Any]) -> Execution:
    """Compile ``output`` with names from the caller's variables, ready to run.

    Raises:
        GraphError: The graph is not valid, or a fake is for a node that it does not have.
    """
    from servepipe.authoring.app import lowered_here, warn_unused

    lowered = lowered_here(output)
    warn_unused(lowered)
    definitions = {name: node.definition(node.fields) for name, node in lowered.nodes.items()}
    return Execution(lowered.graph, definitions, fakes)
