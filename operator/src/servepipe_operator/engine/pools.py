"""Pools and slots: which worker group each application runs on.

A pool is a purpose: ``default``, ``ingress``, or a node with wishes of its own about its image or pods. Its slots are
worker groups; each holds one image, pod template and pod size, and offers a custom Ray resource that nothing else has.
Every actor asks for one slot's resource, so that it never lands on another image.

A slot is rewritten only when nothing runs in it. Groups are never removed or reordered, because KubeRay forgets the
pods of a group that is gone; those that nobody needs stay at 0 and are taken by the next pool that needs one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_lowercase

from servepipe.graph.fields import Json
from servepipe_operator.engine.revisions import digest

__all__ = [
    "DEFAULT_POOL",
    "INGRESS_POOL",
    "LETTERS",
    "Assignment",
    "PodWish",
    "Slot",
    "Wanted",
    "actor_resources",
    "assign",
    "slot_resource",
]

DEFAULT_POOL = "default"
INGRESS_POOL = "ingress"
#: What serves, what replaces it, and what is still draining.
LETTERS = "abc"


@dataclass(frozen=True, slots=True)
class PodWish:
    """The pods that an application needs.

    Args:
        pool: Of the slots that may hold them.
        content: The user's fields only (image, env, resources, template...), so that a new default rewrites nothing.
    """

    pool: str
    content: Json

    @property
    def digest(self) -> str:
        return digest(self.content, 12)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An application that runs, is to run, or drains.

    Args:
        application: Unique; two revisions of the ingress count as two.
        slot: The one that its actors ask for already, or None.
        low, high: Fewest and most pods that it needs. The ingress needs twice its replicas at most: Serve replaces
            its replicas with full surge, also within one slot.
    """

    application: str
    wish: PodWish
    slot: str | None = None
    low: int = 0
    high: int = 1


@dataclass(frozen=True, slots=True)
class Slot:
    """A worker group.

    Args:
        pool: The pool that it serves now; its name tells the first one.
        contents: `PodWish.digest` of what its template holds.
        replicas: What the group asks for. KubeRay makes pods up to ``low`` without saying so here.
        pods: Those that there are; ``ending`` of them are being deleted.
        wish: What to write into its template, or None to leave that alone.
        trouble: Why pods of it do not come, or ""; with `unschedulable`, because no machine has room for them.
    """

    name: str
    pool: str
    contents: str
    replicas: int = 0
    pods: int = 0
    ending: int = 0
    low: int = 0
    high: int = 0
    wish: PodWish | None = None
    trouble: str = ""
    unschedulable: bool = False

    @property
    def idle(self) -> bool:
        return self.replicas == 0 and self.pods == 0


@dataclass(frozen=True, slots=True)
class Assignment:
    """``slots``: all groups in their order. ``of``: slot by application. ``waiting``: applications without one yet."""

    slots: tuple[Slot, ...]
    of: Mapping[str, str]
    waiting: tuple[str, ...]


def assign(wanted: Sequence[Wanted], live: Sequence[Slot]) -> Assignment:
    """One slot for each application; those that have one keep it.

    Args:
        wanted: Earlier ones choose first.
        live: In the order of the RayCluster.
    """
    slots = {slot.name: replace(slot, wish=None) for slot in live}
    taken = {one.application: one.slot for one in wanted if one.slot in slots}
    needed = {one.wish.pool for one in wanted} | {DEFAULT_POOL, INGRESS_POOL}
    of: dict[str, str] = {application: slot for application, slot in taken.items() if slot is not None}
    waiting = []
    for one in wanted:
        if one.application in of:
            continue
        name = _find(one.wish, slots, set(of.values()), needed)
        if name is None:
            waiting.append(one.application)
            continue
        found = slots.get(name)
        if found is None:
            slots[name] = Slot(name, one.wish.pool, one.wish.digest, wish=one.wish)
        elif (found.pool, found.contents) != (one.wish.pool, one.wish.digest):
            slots[name] = replace(found, pool=one.wish.pool, contents=one.wish.digest, wish=one.wish)
        of[one.application] = name
    return Assignment(tuple(_sized(slot, wanted, of) for slot in slots.values()), of, tuple(waiting))


def slot_resource(slot: str) -> str:
    """The custom Ray resource that pins actors to a slot."""
    return f"svp-{slot}"


def actor_resources(slot: str) -> dict[str, int]:
    """What each actor in a slot asks for, beside its own resources."""
    return {slot_resource(slot): 1}


def _find(wish: PodWish, slots: Mapping[str, Slot], used: set[str], needed: set[str]) -> str | None:
    own = [slot for slot in slots.values() if slot.pool == wish.pool]
    for slot in own:
        if slot.contents == wish.digest:
            return slot.name
    free = [slot.name for slot in slots.values() if slot.idle and slot.name not in used]
    for slot in own:
        if slot.name in free:
            return slot.name
    if len(own) >= len(LETTERS):
        return None
    # Slots of pools that are gone come before new groups, so that renaming nodes does not make ever more of them.
    for name in free:
        if slots[name].pool not in needed:
            return name
    # Later letters only where another pool has taken over one of the first.
    return next(name for letter in ascii_lowercase if (name := f"{wish.pool}-{letter}") not in slots)


def _sized(slot: Slot, wanted: Sequence[Wanted], of: Mapping[str, str]) -> Slot:
    mine = [one for one in wanted if of.get(one.application) == slot.name]
    highs = [one.high for one in mine]
    # Applications of the default pool share its pods; elsewhere each replica has one of its own.
    high = max(highs, default=0) if slot.pool == DEFAULT_POOL else sum(highs)
    low = max((one.low for one in mine), default=0)
    # Never below what is there: the autoscaler would end pods that still answer. Idle ones go by themselves.
    return replace(slot, low=low, high=max(low, high, slot.pods - slot.ending))
