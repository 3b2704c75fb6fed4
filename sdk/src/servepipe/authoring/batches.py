"""Options of a node that follow from its batched methods, where the author leaves them open.

Each item of a batch is a request of its replica, so a replica that takes five at once has batches of five at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from servepipe.authoring.options import Fields
from servepipe.graph.batching.marks import marks_of

__all__ = ["with_room"]

LEAST_ONGOING = 5
"""What a node has without batches."""

MOST_ONGOING = 100_000
"""What the resource takes."""


def with_room(target: Any, fields: Mapping[str, Any]) -> Fields:
    """``fields`` with ``maxOngoingRequests`` for one batch that runs and one that gathers, and autoscaling that aims at
    one full batch per replica; both only where they are not set, and ``target`` has batched methods.
    """
    found = dict(fields)
    sizes = [mark.settings.max_size for mark in marks_of(target)]
    if not sizes:
        return found
    size = max(sizes)
    found.setdefault("maxOngoingRequests", min(max(2 * size, LEAST_ONGOING), MOST_ONGOING))
    if "autoscaling" in found:
        found["autoscaling"] = {"targetOngoingRequests": min(size, MOST_ONGOING), **found["autoscaling"]}
    return found
