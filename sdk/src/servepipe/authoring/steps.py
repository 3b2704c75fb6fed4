"""What a graph computes: calls of nodes, parts of their outputs, several outputs together.

Each of them can be executed in this process. Combinators are steps too; they have a module of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from servepipe.authoring.places import here
from servepipe.authoring.signatures import UnknownMethodError
from servepipe.authoring.values import Value, active_input, check_key, leaves
from servepipe.errors import GraphError
from servepipe.graph.ir import Path

if TYPE_CHECKING:
    from servepipe.authoring.execution import Execution
    from servepipe.authoring.nodes import ClassNode, RemoteFunction

__all__ = ["CallStep", "MultiOutputNode", "Output", "Step", "StepPart"]


class Output(Value):
    """A value that a graph can answer: a step, a part of one, or several together."""

    def __init__(self) -> None:
        super().__init__()
        self._execution_cache: Execution | None = None
        self._execution_lock = threading.Lock()  # the first calls may come from several threads at once

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph up to here in this process, without Ray, and return its answer.

        Each class node is built once for this object and used again by later calls.

        Args:
            args: The input, as ``ServeInputNode`` reads it.
            kwargs: Its keyword arguments.

        Raises:
            GraphError: The graph is not valid.
            Exception: What a node raised, with a note that names the step.
        """
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
        """The same graph with some nodes replaced: ``dag.with_fakes(m1=fake).execute(...)``.

        Args:
            fakes: For each node (``-`` in its name written as ``_``) an object with the methods that the graph calls,
                or for a function node another function.

        Raises:
            GraphError: The graph has no such node.
        """
        return self._lower_and_prepare(fakes)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise UnknownMethodError(
            f"{self._label()} has no attribute {name!r}", where=str(here()), fix=f'Take a key of it: ["{name}"].'
        )

    def _execution(self) -> Execution:
        with self._execution_lock:
            if self._execution_cache is None:
                self._execution_cache = self._lower_and_prepare({})
            return self._execution_cache

    def _lower_and_prepare(self, fakes: Mapping[str, Any]) -> Execution:
        from servepipe.authoring.execution import prepare

        return prepare(self, fakes)


class Step(Output):
    """Something that is computed once per request."""

    def __init__(self, operands: Sequence[Any], name: str | None = None) -> None:
        super().__init__()
        self._operands = tuple(operands)
        self._name = name
        owners = (leaf._owner for leaf in leaves(self._operands) if isinstance(leaf, Value))
        self._owner = next((owner for owner in (active_input(), *owners) if owner is not None), None)
        if self._owner is not None:
            self._owner._register(self)

    def __getitem__(self, key: int | str) -> StepPart:
        return StepPart(self, (check_key(key, self._label()),))

    def _stem(self) -> str:
        """The name of a step that no variable holds, before numbers are added."""
        raise NotImplementedError

    def _label(self) -> str:
        return f"the output of {self!r}"


class CallStep(Step):
    """A call of a method or function."""

    def __init__(
        self,
        node: ClassNode | RemoteFunction,
        method: str | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        name: str | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> None:
        super().__init__([list(args), dict(kwargs)], name)
        self._node = node
        # The object itself is called where no method is named, as the compiled graph says it.
        self._method = None if method == "__call__" else method
        self._args = args
        self._kwargs = kwargs
        self._timeout = timeout
        self._retries = retries

    def __repr__(self) -> str:
        target = getattr(self._node._target, "__qualname__", "function")
        return f"{target}.{self._method}" if self._method else str(target)


class StepPart(Output):
    """A part of what a step returned: ``out["k"]``, ``out[0]``."""

    def __init__(self, step: Step, path: Path) -> None:
        super().__init__()
        self._step = step
        self._owner = step._owner
        self._path = path

    def __getitem__(self, key: int | str) -> StepPart:
        return StepPart(self._step, (*self._path, check_key(key, self._label())))

    def _label(self) -> str:
        return self._step._label() + "".join(f"[{key!r}]" for key in self._path)

    def __repr__(self) -> str:
        return f"<{self._label()}>"


class MultiOutputNode(Output):
    """Several outputs of one graph: a list, tuple or dict of steps; the answer has the same form."""

    def __init__(self, outputs: list[Any] | tuple[Any, ...] | dict[str, Any]) -> None:
        super().__init__()
        if type(outputs) not in (list, tuple, dict):
            raise GraphError(f"expected a list, tuple or dict of outputs, not {outputs!r}", where=str(self._place))
        self._outputs = outputs

    def _label(self) -> str:
        return "a MultiOutputNode"

    def __getitem__(self, key: int | str) -> NoReturn:
        raise GraphError(
            "the parts of a MultiOutputNode are the steps that it was made of", where=str(here()), fix="Use these."
        )
