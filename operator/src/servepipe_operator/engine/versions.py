"""What is wrong with a version of Ray."""

from __future__ import annotations

import re

__all__ = ["OLDEST_RAY", "version_mismatch", "version_problem"]

#: The first one that asks for a token.
OLDEST_RAY = (2, 52)


def version_problem(ray_version: str) -> str | None:
    """Why ``spec.rayVersion`` cannot be accepted (``Accepted=False``), or None."""
    match = re.match(r"(\d+)\.(\d+)\.", ray_version)
    oldest = ".".join(map(str, OLDEST_RAY))
    if match is None:
        return f'{ray_version!r} is not a version such as "2.60.0"'
    if (int(match[1]), int(match[2])) < OLDEST_RAY:
        return f"Ray {ray_version} cannot protect its dashboard with a token; use {oldest} or later"
    return None


def version_mismatch(ray_version: str, answered: str) -> str | None:
    """Message of ``RayVersionMismatch``, or None.

    Args:
        answered: ``ray_version`` of ``GET /api/ray/version`` on the head.
    """
    if ray_version == answered:
        return None
    return (
        f"spec.rayVersion is {ray_version} but the head runs Ray {answered}: "
        "set spec.rayVersion to that of the images, or use images with that version"
    )
