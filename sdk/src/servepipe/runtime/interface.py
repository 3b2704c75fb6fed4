"""What a graph asks of its callers and which step gives the answer: what the HTTP layer needs to know of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from servepipe.errors import BadRequestError
from servepipe.graph.inputs import read_input, written
from servepipe.graph.ir import DictOf, Expr, Graph, InputRef, ListOf, Path, StepRef, TupleOf, operands, parts

__all__ = ["Interface"]


@dataclass(frozen=True, slots=True)
class Interface:
    """Args:
    reads: The distinct paths at which the graph reads its input, in the order of the graph; ``()`` is all of it.
    output: The graph's output expression.
    """

    reads: tuple[Path, ...]
    output: Expr
    by_index: bool = field(init=False)
    """Whether some step reads ``dag_input[0]``, by number."""
    by_keyword: bool = field(init=False)
    """Whether some step reads ``dag_input["k"]`` or ``dag_input.k``, by name."""

    def __post_init__(self) -> None:
        firsts = [path[0] for path in self.reads if path]
        object.__setattr__(self, "by_index", any(isinstance(key, int) for key in firsts))
        object.__setattr__(self, "by_keyword", any(not isinstance(key, int) for key in firsts))

    @classmethod
    def of(cls, graph: Graph) -> Interface:
        tops = [*(top for step in graph.steps for top in operands(step)), graph.output]
        reads = dict.fromkeys(part.path for top in tops for part in parts(top) if isinstance(part, InputRef))
        return cls(tuple(reads), graph.output)

    def missing(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
        """The inputs that the graph reads somewhere and that these arguments do not have, as people write them."""
        return tuple(written(path) for path in self.reads if not _has(path, args, kwargs))

    def answering_step(self, path: Sequence[int | str] = ()) -> str:
        """The step that gave the part of the answer at ``path``; empty where no single step did."""
        expr = self.output
        keys = list(path)
        while not isinstance(expr, StepRef):
            if not keys:
                return ""
            key = keys.pop(0)
            match expr:
                case ListOf(items) | TupleOf(items) if isinstance(key, int) and key < len(items):
                    expr = items[key]
                case DictOf(items) if key in dict(items):
                    expr = dict(items)[str(key)]
                case _:
                    return ""
        return expr.step


def _has(path: Path, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    try:
        read_input(path, args, kwargs)
    except BadRequestError:
        return False
    return True
