"""Write a graph of models in Python; run it on Ray Serve; upgrade each model on its own.

    from servepipe import ServeInputNode, build, remote

Names are imported when they are first used: reading this module must stay cheap for the replicas and tools that need
only a part of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"
#: The version of Ray that this release is made for: that of its images. `servepipe[runtime]` works with others too.
__ray_version__ = "2.60.0"

if TYPE_CHECKING:
    from servepipe.authoring.app import App as App
    from servepipe.authoring.app import build as build
    from servepipe.authoring.combinators import fallback as fallback
    from servepipe.authoring.combinators import first as first
    from servepipe.authoring.combinators import map as map
    from servepipe.authoring.combinators import split as split
    from servepipe.authoring.combinators import switch as switch
    from servepipe.authoring.load import Pipeline as Pipeline
    from servepipe.authoring.load import load as load
    from servepipe.authoring.lower import UnusedStepWarning as UnusedStepWarning
    from servepipe.authoring.naming import NamingWarning as NamingWarning
    from servepipe.authoring.nodes import remote as remote
    from servepipe.authoring.steps import MultiOutputNode as MultiOutputNode
    from servepipe.authoring.values import ServeInputNode as ServeInputNode
    from servepipe.errors import ServePipeError as ServePipeError
    from servepipe.graph.batching.marks import batch as batch
    from servepipe.graph.batching.marks import set_batch as set_batch
    from servepipe.graph.calls import NodeHandle as NodeHandle
    from servepipe.graph.inputs import InputData as InputData

_HOMES = {
    "App": "servepipe.authoring.app",
    "InputData": "servepipe.graph.inputs",
    "MultiOutputNode": "servepipe.authoring.steps",
    "NamingWarning": "servepipe.authoring.naming",
    "NodeHandle": "servepipe.graph.calls",
    "Pipeline": "servepipe.authoring.load",
    "ServeInputNode": "servepipe.authoring.values",
    "ServePipeError": "servepipe.errors",
    "UnusedStepWarning": "servepipe.authoring.lower",
    "batch": "servepipe.graph.batching.marks",
    "build": "servepipe.authoring.app",
    "fallback": "servepipe.authoring.combinators",
    "first": "servepipe.authoring.combinators",
    "load": "servepipe.authoring.load",
    "map": "servepipe.authoring.combinators",
    "remote": "servepipe.authoring.nodes",
    "set_batch": "servepipe.graph.batching.marks",
    "split": "servepipe.authoring.combinators",
    "switch": "servepipe.authoring.combinators",
}

__all__ = [
    "App",
    "InputData",
    "MultiOutputNode",
    "NamingWarning",
    "NodeHandle",
    "Pipeline",
    "ServeInputNode",
    "ServePipeError",
    "UnusedStepWarning",
    "batch",
    "build",
    "fallback",
    "first",
    "load",
    "map",
    "remote",
    "set_batch",
    "split",
    "switch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
