"""What `servepipe up` reads from, and changes in, a resource as plain data."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from servepipe.errors import ServePipeError
from servepipe_operator.engine.state import Json

__all__ = ["cpus_for", "custom_resources", "declared_replicas", "scaled"]

INGRESS = "ingress"
LEAST_CPUS = 64
"""Logical CPUs cost nothing; with fewer a later `servepipe scale` would find no room."""
SURGE = 2
CUSTOM_UNITS = 1_000.0


def cpus_for(resource: Json, *, at_most: int | None) -> int:
    """Logical CPUs that hold every replica that the resource may ask for, twice over for upgrades."""
    spec = resource["spec"]
    needed = 0.0
    for part in [*spec["nodes"].values(), spec.get("ingress") or {}]:
        autoscaling = part.get("autoscaling") or {}
        replicas = int(autoscaling.get("maxReplicas") or part.get("replicas") or 1)
        replicas = replicas if at_most is None else min(replicas, at_most)
        needed += replicas * max(_cpu((part.get("resources") or {}).get("cpu")), 1.0)
    return max(LEAST_CPUS, math.ceil(needed * SURGE))


def _cpu(quantity: Any) -> float:
    text = str(quantity or "1")
    try:
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError:
        return 1.0


def custom_resources(resource: Json) -> dict[str, float]:
    """Ray resources of the user's own names; on one machine there is always enough of them."""
    parts = resource["spec"]["nodes"].values()
    names = {name for part in parts for name in (part.get("resources") or {}).get("custom") or {}}
    return dict.fromkeys(sorted(names), CUSTOM_UNITS)


def declared_replicas(resource: Json) -> dict[str, Any]:
    """What each node and the ingress says about its size, None where it says nothing."""
    spec = resource["spec"]
    return {
        name: part.get("replicas", part.get("autoscaling"))
        for name, part in [*spec["nodes"].items(), (INGRESS, spec.get("ingress") or {})]
    }


def scaled(resource: Json, sizes: Mapping[str, int], *, at_most: int | None = None) -> Json:
    """The resource with ``replicas`` of some nodes (or ``ingress``) replaced; the original stays as it is.

    Raises:
        ServePipeError: No such node, or more replicas than ``at_most``.
    """
    spec = dict(resource["spec"])
    nodes = dict(spec["nodes"])
    for name, replicas in sizes.items():
        if name != INGRESS and name not in nodes:
            close = difflib.get_close_matches(name, [*nodes, INGRESS], n=1)
            raise ServePipeError(
                f"There is no node {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
                fix=f"The nodes are: {', '.join(sorted(nodes))}; and {INGRESS}.",
            )
        if replicas < 0:
            raise ServePipeError(f"{name!r} cannot have {replicas} replicas", fix="Give 0 or more.")
        if name == INGRESS and replicas == 0:
            raise ServePipeError("The ingress needs at least one replica", fix="To stop everything: `servepipe down`.")
        if at_most is not None and replicas > at_most:
            raise ServePipeError(
                f"{name!r} cannot have {replicas} replicas: this run was started with --replicas-at-most {at_most}",
                fix=f"Give at most {at_most}, or start the run again with a higher limit.",
            )
        part = dict(spec.get(INGRESS) or {} if name == INGRESS else nodes[name])
        part.pop("autoscaling", None)
        part["replicas"] = replicas
        if name == INGRESS:
            spec[INGRESS] = part
        else:
            nodes[name] = part
    return {**resource, "spec": {**spec, "nodes": nodes}}
