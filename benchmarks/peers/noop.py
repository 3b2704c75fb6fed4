"""A no-op in the smallest ASGI app that there is, as the ingress of an application on Ray Serve.

It reads the same JSON as everybody, computes nothing and writes the last of the values. `build` is what Serve's
configuration names.
"""

from __future__ import annotations

from typing import Any

from peers.asgi import json_app
from ray import serve
from ray.serve import Application


async def last(*values: Any) -> Any:
    return values[-1]


@serve.deployment(name="noop", max_ongoing_requests=1000)
@serve.ingress(lambda: json_app(last))
class Noop:
    pass


def build(args: dict[str, Any]) -> Application:
    """The application, the same for every graph."""
    return Noop.bind()
