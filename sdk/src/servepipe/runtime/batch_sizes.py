"""The metric of how many items batches have, by node and method."""

from __future__ import annotations

from functools import cache

from ray.util import metrics

__all__ = ["count_batch"]

BOUNDARIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def count_batch(node: str, method: str, size: int) -> None:
    """A batch of ``size`` items of ``method`` begins."""
    _sizes().observe(size, tags={"node": node, "method": method})


@cache
def _sizes() -> metrics.Histogram:
    return metrics.Histogram(
        "servepipe_batch_size",
        description="Items per batch of a node's batched method.",
        boundaries=[*BOUNDARIES],
        tag_keys=("node", "method"),
    )
