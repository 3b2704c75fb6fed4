"""Graphs of Ray's own objects: ``@ray.remote`` classes and functions, bound with Ray's ``bind``.

    from servepipe.ray import ServeInputNode, build

The graph stays one of Ray's, which ``ray.get(dag.execute(...))`` runs; `build` compiles it to the same resource as the
light objects of `servepipe`.
"""

from servepipe.authoring.app import build
from servepipe.ray.input_node import ServeInputNode

__all__ = ["ServeInputNode", "build"]
