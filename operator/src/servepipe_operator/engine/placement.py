"""Which worker group each application of a plan runs on, as far as it may choose.

What is deployed keeps its slot. Of the rest stable revisions choose first: what serves must come back before what is
to replace it. A candidate that finds no slot waits, and is not sent to Serve: its actors would find no pod.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from servepipe.api.v1alpha1 import Cluster, Spec, Workers
from servepipe_operator.engine.names import INGRESS
from servepipe_operator.engine.pools import (
    DEFAULT_POOL,
    Assignment,
    PodWish,
    Slot,
    Wanted,
    actor_resources,
    assign,
    slot_resource,
)
from servepipe_operator.engine.state import Json
from servepipe_operator.engine.wishes import ingress_wish, node_wish

__all__ = ["Placement", "Tenant", "deployed_slot", "place"]


@dataclass(frozen=True, slots=True)
class Tenant:
    """An application that runs, is to run, or drains.

    Args:
        application: Its name in Serve; of the ingress one for each revision.
        identity: Of its revision; {} where history does not know it any more.
        config: As deployed, or None.
        low, high: Fewest and most replicas.
        first: It serves callers: it chooses before others.
        shared_image: As for `node_wish`.
    """

    application: str
    node: str
    identity: Json
    config: Json | None
    low: int
    high: int
    first: bool
    shared_image: str | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Custom resources that pin an application's actors, and why others wait; both by application.

    ``outdated``: applications that keep pods other than those that the spec would give them today.
    """

    pinned: Mapping[str, Mapping[str, int]]
    waiting: Mapping[str, str]
    slots: tuple[Slot, ...]
    outdated: frozenset[str] = frozenset()


def place(tenants: Sequence[Tenant], spec: Spec, live: Sequence[Slot]) -> Placement:
    """A slot for everybody who can have one.

    Args:
        spec: The accepted one.
        live: The worker groups that there are.
    """
    pools = {slot.name: slot.pool for slot in live}
    ordered = sorted(tenants, key=lambda tenant: (not tenant.first, tenant.config is None, tenant.application))
    wanted = [_wanted(tenant, spec, pools) for tenant in ordered]
    assignment = assign(wanted, live)
    pinned = {application: actor_resources(slot) for application, slot in assignment.of.items()}
    waiting = {}
    for one, tenant in zip(wanted, ordered, strict=True):
        if one.application in assignment.of:
            continue
        held = _held(tenant.config)
        if held:
            # Its group is gone and no other is free: where it runs now is the best that there is.
            pinned[one.application] = held
        else:
            waiting[one.application] = _why(one.wish.pool, assignment)
    contents = {slot.name: (slot.pool, slot.contents) for slot in assignment.slots}
    outdated = {
        one.application
        for one in wanted
        if (slot := assignment.of.get(one.application)) and contents[slot] != (one.wish.pool, one.wish.digest)
    }
    return Placement(pinned, waiting, assignment.slots, frozenset(outdated))


def deployed_slot(config: Json | None, names: set[str]) -> str | None:
    """The slot whose resource a deployed application's actors ask for; None where no group has that name."""
    held = _held(config)
    return next((name for name in sorted(names) if slot_resource(name) in held), None)


def _held(config: Json | None) -> dict[str, int]:
    for deployment in (config or {}).get("deployments") or ():
        resources = (deployment.get("ray_actor_options") or {}).get("resources") or {}
        return {name: int(amount) for name, amount in resources.items() if name.startswith(slot_resource(""))}
    return {}


def _wanted(tenant: Tenant, spec: Spec, pools: Mapping[str, str]) -> Wanted:
    slot = deployed_slot(tenant.config, set(pools))
    wish = _wish(tenant, spec)
    # Where it runs counts: pods of the default pool are many replicas', whatever the node would get today.
    if (pools[slot] if slot else wish.pool) == DEFAULT_POOL:
        workers = (spec.cluster or Cluster()).workers or Workers()
        return Wanted(tenant.application, wish, slot, workers.min_replicas, workers.max_replicas)
    # Serve starts new replicas beside the old ones when it replaces them.
    return Wanted(tenant.application, wish, slot, tenant.low, 2 * tenant.high)


def _wish(tenant: Tenant, spec: Spec) -> PodWish:
    if tenant.node == INGRESS:
        return ingress_wish(tenant.identity, spec)
    return node_wish(tenant.node, tenant.identity, spec, tenant.shared_image)


def _why(pool: str, assignment: Assignment) -> str:
    groups = sorted(slot.name for slot in assignment.slots if slot.pool == pool)
    return f"waits until one of the worker groups {', '.join(groups)} is empty"
