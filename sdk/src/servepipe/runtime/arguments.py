"""A node's constructor arguments from their wire form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from servepipe.errors import GraphError
from servepipe.graph.calls import NodeHandle
from servepipe.graph.expressions import parse_fields, parse_list
from servepipe.graph.ir import Const, DictOf, Expr, ListOf, NodeRef, TupleOf

__all__ = ["constructor_arguments"]


def constructor_arguments(
    node: Mapping[str, Any], handle: Callable[[str], NodeHandle]
) -> tuple[list[Any], dict[str, Any]]:
    """The positional and keyword arguments in a node's ``args`` and ``kwargs``; ``handle`` makes those to nodes."""
    positional = [_value(expr, handle) for expr in parse_list(node.get("args") or [], "args")]
    keywords = {key: _value(expr, handle) for key, expr in parse_fields(node.get("kwargs") or {}, "kwargs")}
    return positional, keywords


def _value(expr: Expr, handle: Callable[[str], NodeHandle]) -> Any:
    match expr:
        case Const(value):
            return value
        case NodeRef(node):
            return handle(node)
        case ListOf(items):
            return [_value(item, handle) for item in items]
        case TupleOf(items):
            return tuple(_value(item, handle) for item in items)
        case DictOf(items):
            return {key: _value(item, handle) for key, item in items}
    raise GraphError(f"a constructor cannot take a {type(expr).__name__}: it runs before any request")
