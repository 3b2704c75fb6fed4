"""The conditions of a pipeline: what holds, since when, and why.

Accepted, ClusterReady, NodesReady, Available and Ready are always there; Reconciling and Stalled only while True, so
that ``kubectl wait --for=condition=...`` and kstatus read them as everywhere else. kstatus takes the first of these two
that it finds: what somebody has to do something about counts more than what goes on beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from servepipe.api.problem import Problem
from servepipe_operator.engine.reasons import Reason
from servepipe_operator.engine.state import Json
from servepipe_operator.engine.times import timestamp

__all__ = ["Condition", "in_a_line", "in_order", "merged"]

_ORDER = ("Accepted", "ClusterReady", "NodesReady", "Available", "Ready", "Stalled", "Reconciling")

_MESSAGE_LIMIT = 2000


@dataclass(frozen=True, slots=True)
class Condition:
    """``reason`` is one word in CamelCase for programs, ``message`` is for people."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str = ""


def in_a_line(problem: Problem) -> str:
    """A problem as a message has it: ``where: what. What to do``."""
    told = f"{problem.where}: {problem.what}" if problem.where else problem.what
    return f"{told}. {problem.fix.rstrip('.')}" if problem.fix else told


def merged(now_true: Iterable[Condition], before: object, now: float, generation: int | None) -> list[Json]:
    """The conditions as they stand in status; the time of the last transition stays while the status stays.

    Args:
        before: ``status.conditions`` as last written, whatever it is.
    """
    earlier = {one["type"]: one for one in before if _is_condition(one)} if isinstance(before, list) else {}
    result = []
    for condition in now_true:
        old = earlier.get(condition.type)
        kept = old is not None and old["status"] == condition.status
        json: Json = {
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            # Half a surrogate pair, which code can raise, is stored as something else: it would differ at every look.
            "message": condition.message[:_MESSAGE_LIMIT].encode(errors="replace").decode(),
            "lastTransitionTime": old["lastTransitionTime"] if old and kept else timestamp(now),
        }
        if generation is not None:
            json["observedGeneration"] = generation
        result.append(json)
    return in_order(result)


def in_order(conditions: Iterable[Json]) -> list[Json]:
    """As they stand in status, those of others last."""
    return sorted(conditions, key=lambda one: _ORDER.index(one["type"]) if one["type"] in _ORDER else len(_ORDER))


def _is_condition(one: object) -> bool:
    return isinstance(one, dict) and {"type", "status", "lastTransitionTime"} <= one.keys()
