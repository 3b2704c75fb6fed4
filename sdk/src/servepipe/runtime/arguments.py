"""A node's constructor arguments from their wire form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from servepipe.graph import containers
from servepipe.graph.calls import NodeHandle
from servepipe.graph.expressions import parse_fields, parse_list

__all__ = ["constructor_arguments"]


def constructor_arguments(
    node: Mapping[str, Any], handle: Callable[[str], NodeHandle]
) -> tuple[list[Any], dict[str, Any]]:
    """The positional and keyword arguments in a node's ``args`` and ``kwargs``; ``handle`` makes those to nodes."""
    positional = parse_list(node.get("args") or [], "args")
    keywords = parse_fields(node.get("kwargs") or {}, "kwargs")
    return containers.constructor_arguments(positional, keywords, handle)
