"""Why replicas of an application do not start: no room for them, or pods that do not come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from servepipe_operator.engine.health import headline, missing_resources, waits_for_room
from servepipe_operator.engine.placement import deployed_slot
from servepipe_operator.engine.pools import Slot
from servepipe_operator.engine.state import Application, Capacity

__all__ = ["Hindrance", "hindrance"]


@dataclass(frozen=True, slots=True)
class Hindrance:
    """What keeps a replica from starting.

    Args:
        no_room: Waiting helps, or more machines; nothing is wrong with the revision, and no deadline counts.
    """

    why: str
    no_room: bool


def hindrance(
    application: Application | None,
    demand: Mapping[str, float],
    capacity: Capacity | None,
    slots: Sequence[Slot] | None,
) -> Hindrance | None:
    """What is known to hinder it, or None.

    Args:
        demand: What one replica asks for, by Ray's resource names.
        slots: Worker groups, with what their pods say.
    """
    if application is None or not any(one.state == "STARTING" and one.pid is None for one in application.replicas):
        return None
    slot = _slot(application, slots or ())
    if slot is not None and slot.trouble:
        return Hindrance(slot.trouble, slot.unschedulable)
    if not waits_for_room(application, demand, capacity):
        return None
    missing = missing_resources(demand, capacity) if capacity else headline(application.deployment_message)
    if slot is not None and 0 < slot.high <= slot.pods:
        missing += f"; worker group {slot.name} has all the {slot.high} pods that it may have"
    return Hindrance(missing, no_room=True)


def _slot(application: Application, slots: Sequence[Slot]) -> Slot | None:
    name = deployed_slot(application.config, {slot.name for slot in slots})
    return next((slot for slot in slots if slot.name == name), None)
