"""Whether what was applied has arrived, from the object alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

__all__ = ["Outcome", "State", "outcome", "snapshot"]

State: TypeAlias = Literal["waiting", "ready", "failed", "still"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """``still``: nothing will move, because the pipeline is suspended or paused. ``text`` is for people."""

    state: State
    text: str = ""


def outcome(live: Mapping[str, Any], generation: int) -> Outcome:
    """How far the operator is with the change that made ``generation``.

    Args:
        live: The pipeline as read.
        generation: `metadata.generation` after the change.
    """
    spec, status = live.get("spec") or {}, live.get("status") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    if int(status.get("observedGeneration") or 0) < generation:
        if status.get("observedGeneration") is None:
            return Outcome("waiting", "no operator has looked at it yet: is one installed that watches this namespace?")
        return Outcome("waiting", "the operator has not looked at this change yet")
    for kind, bad in (("Accepted", "False"), ("Stalled", "True")):
        if conditions.get(kind, {}).get("status") == bad:
            return Outcome("failed", f"{kind}={bad} {_why(conditions[kind])}")
    if spec.get("paused"):
        return Outcome("still", "it is paused: nothing is changed until `servepipe resume`")
    if spec.get("suspend"):
        return Outcome("still", "it is suspended: nothing runs until `servepipe resume`")
    ready, moving = conditions.get("Ready", {}), conditions.get("Reconciling", {})
    if ready.get("status") == "True" and moving.get("status") != "True":
        return Outcome("ready", "Ready")
    return Outcome("waiting", _why(moving if moving.get("status") == "True" else ready) or "no condition says why")


def snapshot(live: Mapping[str, Any], *, context: str = "") -> dict[str, Any]:
    """What `status` shows of a pipeline: the same keys as for one that runs on this machine, and where it is."""
    metadata, status = live["metadata"], live.get("status") or {}
    where = {"namespace": metadata.get("namespace", "")} | ({"context": context} if context else {})
    return {
        "pipeline": metadata["name"],
        **where,
        "url": status.get("url", ""),
        "generation": metadata.get("generation", 0),
        "status": status,
    }


def _why(condition: Mapping[str, Any]) -> str:
    return f"{condition.get('reason', '')}: {condition.get('message', '')}".strip(": ")
