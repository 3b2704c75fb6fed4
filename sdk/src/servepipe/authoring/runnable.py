"""What a built App and a resource that was read back have in common: both can be executed and deployed."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servepipe.api.v1alpha1 import ServePipeline
    from servepipe.authoring.execution import Execution
    from servepipe.graph.calls import NodeDefinition
    from servepipe.graph.ir import Graph

__all__ = ["Runnable"]


class Runnable(ABC):
    """A pipeline in this process."""

    def __init__(self) -> None:
        self._execution_cache: Execution | None = None
        self._execution_lock = threading.Lock()  # the first calls may come from several threads at once
        self._backend: Any = None
        self._target: tuple[str, dict[str, Any]] | None = None

    @property
    @abstractmethod
    def graph(self) -> Graph:
        """The compiled graph."""

    @property
    @abstractmethod
    def definitions(self) -> Mapping[str, NodeDefinition]:
        """The nodes with the code behind them."""

    @abstractmethod
    def _deployable(self) -> tuple[ServePipeline, Path | None]:
        """The resource, and the folder that its modules are imported from."""

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph in this process, without Ray, and return its answer; see ``dag.execute``."""
        return self._execution().execute(*args, **kwargs)

    async def execute_async(self, *args: Any, **kwargs: Any) -> Any:
        """As `execute`, awaitable."""
        return await self._execution().execute_async(*args, **kwargs)

    def reset(self) -> None:
        """Drop the nodes that `execute` has built."""
        execution, self._execution_cache = self._execution_cache, None
        if execution is not None:
            execution.close()

    def with_fakes(self, **fakes: Any) -> Execution:
        """The graph with some nodes replaced; see ``dag.with_fakes``."""
        from servepipe.authoring.execution import Execution

        return Execution(self.graph, self.definitions, fakes)

    def deploy(self, backend: str = "local", **options: Any) -> Any:
        """Run the pipeline, and wait until it serves.

        Args:
            backend: ``local``: this machine's Ray, in a child process that ends with this one. ``kubernetes``: a
                cluster with the operator; what ``servepipe apply`` would do.
            options: For ``kubernetes``: ``namespace``, ``context``, ``kubeconfig``, ``take_ownership``, ``timeout_s``.

        Returns:
            A handle: ``handle.remote(1, 2, 3).result()``.

        Raises:
            ServePipeError: The pipeline is not valid, or the cluster refuses it.
            MissingExtraError: The package that can do this is not installed.
            RunError: The pipeline does not start.
        """
        from servepipe.authoring import backends
        from servepipe.authoring.loader import EndImport, importing

        if importing():
            raise EndImport
        resource, root = self._deployable()
        if self._backend is not None and self._target != (backend, options):
            self.shutdown()
        if self._backend is None:
            self._backend, self._target = backends.backend(backend, **options), (backend, options)
        return self._backend.deploy(resource, import_root=root)

    def shutdown(self) -> None:
        """Stop what `deploy` started on this machine; a pipeline in a cluster goes on. Without a deployment nothing
        happens."""
        if self._backend is not None:
            self._backend.shutdown()
            self._backend = None

    def _execution(self) -> Execution:
        with self._execution_lock:
            if self._execution_cache is None:
                self._execution_cache = self.with_fakes()
            return self._execution_cache
