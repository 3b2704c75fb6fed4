"""Between how many replicas an application may run now; mostly, but not always, what the spec says."""

from __future__ import annotations

from dataclasses import replace

from servepipe_operator.engine.goal import Live
from servepipe_operator.engine.serve_config import bounds
from servepipe_operator.engine.state import Application, Json

__all__ = ["candidate_bounds", "stable_bounds", "wanted"]


def candidate_bounds(live: Live, candidate: Application | None, stable: Application | None) -> Json:
    """For a revision that has to take all requests at once.

    Args:
        candidate: As it is deployed, if it is.
        stable: The application that answers now, if there is one.
    """
    scale = live.scale
    if scale.low == scale.high:
        return bounds(scale)
    # As many as answer now; and at least one, or nothing would show that it starts at all.
    low = max(scale.low, 1)
    chosen = _deployed(candidate).get("min_replicas")
    if not isinstance(chosen, int) or not low <= chosen <= scale.high:
        chosen = min(max(low, stable.target_replicas if stable else low), scale.high)
    return bounds(replace(scale, low=chosen))


def stable_bounds(live: Live, stable: Application | None, off_settled: bool) -> Json:
    """For a revision that answers callers.

    Args:
        off_settled: Every table in use says that the node is off.
    """
    if live.scale.off and stable is not None and not off_settled:
        return _deployed(stable) or bounds(live.scale)
    return bounds(live.scale)


def wanted(autoscaling: Json, live: Live) -> int:
    """How many replicas must be healthy."""
    return 0 if live.scale.off else int(autoscaling["min_replicas"])


def _deployed(application: Application | None) -> Json:
    deployments = (application.config or {}).get("deployments") if application else None
    found = deployments[0].get("autoscaling_config") if isinstance(deployments, list) and deployments else None
    return found if isinstance(found, dict) else {}
