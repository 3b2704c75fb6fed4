"""Lists, tuples and objects of expressions, rebuilt around the values of what stands in them.

A container is flattened once into parts, innermost first, which a stack puts together again: nesting costs no
recursion. Constant lists and dicts count as containers, since user code may change what it receives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from servepipe.errors import GraphError
from servepipe.graph.ir import Const, DictOf, Expr, ListOf, NodeRef, TupleOf

__all__ = ["constructor_arguments", "reader"]

S = TypeVar("S")


def reader(expr: Expr, leaf: Callable[[Expr], Callable[[S], Any]]) -> Callable[[S], Any]:
    """A function that gives the value of ``expr`` for a source of values.

    Args:
        expr: Any expression.
        leaf: Makes that function for an expression that is no container.
    """
    backwards: list[tuple[Callable[[S], Any] | None, Callable[[list[Any]], Any], int]] = []
    stack = [expr]
    while stack:
        current = stack.pop()
        children = _children(current)
        if children is None:
            backwards.append((leaf(current), list, 0))
        else:
            backwards.append((None, _builder(current), len(children)))
            stack.extend(children)
    parts = tuple(reversed(backwards))
    if len(parts) == 1 and _children(expr) is None:
        return leaf(expr)

    def read(source: S) -> Any:
        values: list[Any] = []
        for leaf_reader, build, size in parts:
            if leaf_reader is not None:
                values.append(leaf_reader(source))
            else:
                start = len(values) - size
                inside = values[start:]
                del values[start:]
                values.append(build(inside))
        return values[0]

    return read


def constructor_arguments(
    args: Sequence[Expr], kwargs: Sequence[tuple[str, Expr]], handle: Callable[[str], Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The values of a node's constructor arguments; ``handle`` makes the handle to a node.

    Raises:
        GraphError: An argument depends on a request.
    """

    def leaf(expr: Expr) -> Callable[[Callable[[str], Any]], Any]:
        match expr:
            case Const(value):
                return lambda _: value
            case NodeRef(node):
                return lambda make: make(node)
        raise GraphError(f"a constructor cannot take a {type(expr).__name__}: it runs before any request")

    return [reader(arg, leaf)(handle) for arg in args], {key: reader(arg, leaf)(handle) for key, arg in kwargs}


def _children(expr: Expr) -> Sequence[Expr] | None:
    """The expressions inside a container; None for what is not one."""
    match expr:
        case ListOf(items) | TupleOf(items):
            return items
        case DictOf(items):
            return [value for _, value in items]
        case Const(list() | tuple() as values):
            return [Const(value) for value in values]
        case Const(dict() as mapping):
            return [Const(value) for value in mapping.values()]
        case _:
            return None


def _builder(expr: Expr) -> Callable[[list[Any]], Any]:
    match expr:
        case ListOf() | Const(list()):
            return list
        case DictOf(items):
            keys: Sequence[Any] = [key for key, _ in items]
        case Const(dict() as mapping):
            keys = list(mapping)
        case _:
            return tuple
    return lambda values: dict(zip(keys, values, strict=True))
