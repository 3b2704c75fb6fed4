"""The resource `ServePipeline`: models, YAML, checks, overlays.

Names are imported when they are used, so that code which never touches a resource does not load pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servepipe.api.checks import notices, problems
    from servepipe.api.document import load_yaml, read, validate, write
    from servepipe.api.overlay import merge
    from servepipe.api.problem import InvalidResourceError, Problem
    from servepipe.api.quantity import parse_quantity
    from servepipe.api.v1alpha1 import ServePipeline

__all__ = [
    "InvalidResourceError",
    "Problem",
    "ServePipeline",
    "load_yaml",
    "merge",
    "notices",
    "parse_quantity",
    "problems",
    "read",
    "validate",
    "write",
]

_HOMES = {
    "InvalidResourceError": "problem",
    "Problem": "problem",
    "ServePipeline": "v1alpha1",
    "load_yaml": "document",
    "merge": "overlay",
    "notices": "checks",
    "parse_quantity": "quantity",
    "problems": "checks",
    "read": "document",
    "validate": "document",
    "write": "document",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
