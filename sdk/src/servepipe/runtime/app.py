"""The builders that Serve's configuration names as import paths.

They run in a process of Serve's own and import no user code: what a node runs is found out in its replica, so that a
broken model fails its own start and nothing else.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application

from servepipe.runtime.ingress import Ingress
from servepipe.runtime.replica import NodeReplica
from servepipe.runtime.serve_caller import DEPLOYMENT
from servepipe.runtime.versions import built_with

__all__ = ["ingress", "node"]


def node(args: dict[str, Any]) -> Application:
    """One revision of one node; ``args`` as in "What runs in Ray" of the architecture page."""
    return serve.deployment(NodeReplica, name=DEPLOYMENT).bind(built_with(args))


def ingress(args: dict[str, Any]) -> Application:
    """The ingress; ``args`` as in "What runs in Ray" of the architecture page."""
    return serve.deployment(serve.ingress()(Ingress), name="ingress").bind(built_with(args))
