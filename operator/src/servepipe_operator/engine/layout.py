"""From decisions to what Serve is given: which applications there are, and the tables that route between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from servepipe_operator.engine.goal import Live, covers, default_live
from servepipe_operator.engine.health import alive, building
from servepipe_operator.engine.history import Checkpoint
from servepipe_operator.engine.names import INGRESS, application, node_of, revision_of
from servepipe_operator.engine.placement import Placement, Tenant, place
from servepipe_operator.engine.pools import Slot
from servepipe_operator.engine.revisions import held_nodes
from servepipe_operator.engine.rollout import Candidate, Rollout, Stage, View, without_new_ingress
from servepipe_operator.engine.scaling import candidate_bounds, stable_bounds
from servepipe_operator.engine.serve_config import (
    holder_config,
    ingress_application,
    inline_entry,
    node_application,
    same,
    serve_config,
)
from servepipe_operator.engine.state import Json

__all__ = ["Layout", "lay_out", "live_of", "only_removed", "runs_inline", "to_put"]

_DRAIN_S = 30


@dataclass(frozen=True, slots=True)
class _Part:
    """An application that the engine wants, for one revision of a node."""

    node: str
    revision: str
    identity: Json
    attempt: int
    live: Live
    autoscaling: Json


def to_put(view: View, wanted: Mapping[str, Json]) -> Json | None:
    """The configuration to send, or None where Serve has it already or must not be disturbed now.

    Serve takes only whole configurations, and each one starts again every build that is under way. So none is sent
    while something builds that is to stay, unless it has been building for longer than it may.
    """
    deployed = view.deployed.applications
    if wanted.keys() == deployed.keys() and all(same(wanted[name], deployed[name].config) for name in wanted):
        return None
    for name, found in deployed.items():
        overdue = found.deployed_at > 0 and view.now - found.deployed_at >= view.goal.deadline_s
        if name in wanted and building(found) and not overdue:
            return None
    return serve_config(wanted.values(), view.goal.ingress, view.environment)


def only_removed(view: View, wanted: Mapping[str, Json]) -> list[str]:
    """The applications that are to be taken out, where nothing else is to change; otherwise none."""
    deployed = view.deployed.applications
    if all(name in deployed and same(config, deployed[name].config) for name, config in wanted.items()):
        return sorted(deployed.keys() - wanted.keys())
    return []


@dataclass(frozen=True, slots=True)
class Layout:
    """Every application that is to be deployed.

    Args:
        applications: By name.
        draining: Those of them that are only there to drain.
        rollout: As it can be carried out; something may have to wait for a worker group.
        waiting: What waits for one, and why, by application; of the ingress ``ingress``.
        slots: The worker groups that are wanted.
        outdated: Nodes whose wanted revision keeps pods from before the spec changed something about all pods.
    """

    applications: Mapping[str, Json]
    draining: frozenset[str]
    rollout: Rollout
    waiting: Mapping[str, str] = field(default_factory=dict)
    slots: tuple[Slot, ...] = ()
    outdated: tuple[str, ...] = ()


def lay_out(view: View, checkpoint: Checkpoint, rollout: Rollout) -> Layout:
    """What is to be deployed now."""
    if view.goal.suspend:
        draining = _suspended(view, checkpoint)
        return Layout(draining, frozenset(draining), rollout, slots=view.slots or ())
    parts = _parts(view, checkpoint, rollout)
    leaving = {
        name: found.config
        for name, found in view.deployed.applications.items()
        if name != INGRESS and name not in parts and found.config and not _removable(view, checkpoint, name)
    }
    placement = _place(view, checkpoint, rollout, parts, leaving)
    ingress = _ingress_tenant(rollout.ingress)
    if ingress in placement.waiting and checkpoint.ingress.stable not in (None, rollout.ingress):
        held = lay_out(view, checkpoint, without_new_ingress(rollout, checkpoint))
        return replace(held, waiting={**held.waiting, INGRESS: placement.waiting[ingress]})
    parts = {name: part for name, part in parts.items() if name not in placement.waiting}
    table = _table(view, checkpoint, rollout)
    wanted: dict[str, Json] = dict(leaving)
    for name, part in parts.items():
        wanted[name] = node_application(
            view.goal.pipeline,
            part.node,
            part.revision,
            part.identity,
            part.attempt,
            part.live,
            part.autoscaling,
            _holder_table(part.identity, table, [*parts, *leaving]),
            view.environment,
            placement.pinned.get(name, {}),
        )
    wanted[INGRESS] = ingress_application(
        view.goal.pipeline,
        rollout.ingress,
        view.identity(INGRESS, rollout.ingress),
        rollout.ingress_attempt,
        view.goal.ingress,
        table,
        view.environment,
        placement.pinned.get(ingress, {}),
    )
    outdated = tuple(sorted({node for node, name in _goals(view).items() if name in placement.outdated}))
    return Layout(wanted, frozenset(leaving), rollout, placement.waiting, placement.slots, outdated)


def _goals(view: View) -> dict[str, str]:
    """The tenants that the spec as it stands asks for, by node."""
    names = {name: application(name, node.revision) for name, node in view.goal.nodes.items()}
    return {**names, INGRESS: _ingress_tenant(view.goal.ingress.revision)}


def _place(
    view: View, checkpoint: Checkpoint, rollout: Rollout, parts: Mapping[str, _Part], leaving: Mapping[str, Json]
) -> Placement:
    """Everything that needs pods. Without pools nothing is pinned and nothing waits."""
    if view.slots is None:
        return Placement({}, {}, ())
    deployed = view.deployed
    tenants = []
    for name, part in parts.items():
        found = deployed.applications.get(name)
        first = checkpoint.unit(part.node).stable in (None, part.revision)
        low, high = part.autoscaling["min_replicas"], part.autoscaling["max_replicas"]
        config, image = found.config if found else None, _shared_image(view, checkpoint, part)
        tenants.append(Tenant(name, part.node, part.identity, config, low, high, first, image))
    for name, config in leaving.items():
        known = view.memory.revisions.get(name, {})
        high = len(deployed.applications[name].replicas)
        tenants.append(Tenant(name, node_of(name), known, config, 0, high, first=False))
    return place([*tenants, *_ingresses(view, checkpoint, rollout)], view.goal.accepted, view.slots)


def _shared_image(view: View, checkpoint: Checkpoint, part: _Part) -> str | None:
    """``spec.image`` of the spec that a revision comes from."""
    unit = checkpoint.unit(part.node)
    old = view.memory.specs.get(unit.live) if unit.stable == part.revision else None
    return view.goal.accepted.image if old is None else old.get("image")


def _ingresses(view: View, checkpoint: Checkpoint, rollout: Rollout) -> list[Tenant]:
    """The ingress that is to run, and the one that Serve is about to replace by it, or still replaces."""
    scale, stable = view.goal.ingress.scale, checkpoint.ingress.stable
    found = view.deployed.applications.get(INGRESS)
    revisions = {rollout.ingress, *([stable] if stable else []), *([view.deployed.ingress] if found else [])}
    tenants = []
    for revision in sorted(revisions):
        config = found.config if found and view.deployed.ingress == revision else None
        if revision != rollout.ingress and config is None:
            continue  # no replica is added to it, and its group keeps the pods that it has
        low = scale.low if revision == rollout.ingress else 0
        identity = view.identity(INGRESS, revision) if _known(view, revision) else {}
        name = _ingress_tenant(revision)
        tenants.append(Tenant(name, INGRESS, identity, config, low, scale.high, first=revision == stable or not stable))
    return tenants


def _known(view: View, revision: str) -> bool:
    return revision == view.goal.ingress.revision or application(INGRESS, revision) in view.memory.revisions


def _ingress_tenant(revision: str) -> str:
    """Two revisions of the ingress are one application in Serve, and yet need two worker groups."""
    return f"{INGRESS}@{revision}"


def _suspended(view: View, checkpoint: Checkpoint) -> dict[str, Json]:
    """The nodes stay until the ingress has finished the requests that it took."""
    deployed = view.deployed
    longest_s = max([view.goal.ingress.request_timeout_s, *(node.live.drain_s for node in view.goal.nodes.values())])
    finishing = deployed.ingress_is_leaving and view.now - checkpoint.at < longest_s
    if INGRESS not in deployed.applications and not finishing:
        return {}
    return {
        name: found.config
        for name, found in deployed.applications.items()
        if name != INGRESS and found.config and alive(found)
    }


def live_of(view: View, checkpoint: Checkpoint, node: str) -> Live:
    """The live settings of a node's stable revision.

    While another revision is to replace it, what its code was configured with stays; how many of it is today's wish.
    """
    goal = view.goal.nodes.get(node)
    unit = checkpoint.unit(node)
    old = view.old_lives.get(unit.live, {}).get(node)
    if goal is None or goal.revision == unit.stable or old is None:
        return goal.live if goal else old or default_live()
    return replace(goal.live, user_config=old.user_config, idempotent=old.idempotent, inline=old.inline)


def runs_inline(view: View, rollout: Rollout, node: str, revision: str, live: Live) -> bool:
    """Whether the table names this revision as an instance of the ingress's own process."""
    if not covers(view.identity(INGRESS, rollout.ingress), view.identity(node, revision)):
        return False
    if live.inline:
        return True
    # Its placement is Dedicated since the last change: it stays where it is until its replicas run.
    route = view.deployed.route(node, revision)
    found = view.deployed.applications.get(application(node, revision))
    return route is not None and route.inline and (found is None or alive(found) == 0)


# --- Applications -----------------------------------------------------------------------------------------------------


def _parts(view: View, checkpoint: Checkpoint, rollout: Rollout) -> dict[str, _Part]:
    """The applications of stable revisions and candidates, by name."""
    deployed = view.deployed.applications
    parts: dict[str, _Part] = {}
    for node, unit in checkpoint.nodes.items():
        if unit.stable is None:
            continue
        live = live_of(view, checkpoint, node)
        name = application(node, unit.stable)
        if live.inline and runs_inline(view, rollout, node, unit.stable, live):
            continue
        bounds = stable_bounds(live, deployed.get(name), _off_settled(view, node))
        identity = view.identity(node, unit.stable)
        parts[name] = _Part(node, unit.stable, identity, unit.attempt, live, bounds)
    for candidate in rollout.candidates.values():
        if not candidate.active or candidate.in_place:
            continue
        name = application(candidate.node, candidate.revision)
        stable = deployed.get(application(candidate.node, checkpoint.unit(candidate.node).stable or ""))
        goal = view.goal.nodes[candidate.node]
        bounds = candidate_bounds(goal.live, deployed.get(name), stable)
        parts[name] = _Part(candidate.node, candidate.revision, goal.identity, candidate.attempt, goal.live, bounds)
    return parts


def _off_settled(view: View, node: str) -> bool:
    return view.deployed.settled and bool(_deployed_node(view, node).get("off"))


def _deployed_node(view: View, node: str) -> Json:
    nodes = view.deployed.table.get("nodes")
    found = nodes.get(node) if isinstance(nodes, dict) else None
    return found if isinstance(found, dict) else {}


def _removable(view: View, checkpoint: Checkpoint, name: str) -> bool:
    """Whether an application that nobody needs any more can go without a caller noticing.

    Serve lets requests hang that are on their way to an application when it is removed, so removing takes two PUTs:
    one that routes past it, and this one, when nobody who used the table before has a request left.
    """
    deployed = view.deployed
    if deployed.called(name):
        return False
    found = deployed.applications[name]
    # One that is healthy with no replicas is at zero by choice: a request that is under way can still start one.
    if alive(found) == 0 and found.status != "RUNNING":
        return True
    node = node_of(name)
    goal = view.goal.nodes.get(node)
    old = view.old_lives.get(checkpoint.unit(node).live, {}).get(node)
    drain_s = goal.live.drain_s if goal else old.drain_s if old else _DRAIN_S
    ingress = deployed.applications.get(INGRESS)
    if not deployed.settled and ingress is not None and alive(ingress):
        # Somebody may still send new requests by an older table: no deadline makes that right. An ingress that is to be
        # replaced serves until the next one has found room.
        return False
    if view.now - checkpoint.at >= drain_s:
        return True
    if not deployed.settled or deployed.leaving or deployed.busy is None:
        return False
    # A revision that moved into the ingress is busy there too, under the same name: then the deadline decides.
    return not deployed.busy.get(name)


# --- Tables -----------------------------------------------------------------------------------------------------------


def _table(view: View, checkpoint: Checkpoint, rollout: Rollout) -> Json:
    """The graph and the routes of the ingress; the rest of its ``user_config`` is settings."""
    switched = not rollout.reshaping or rollout.switched
    graph_revision = view.goal.graph_revision if switched else checkpoint.graph
    known = graph_revision == view.goal.graph_revision
    data = view.goal.graph_data if known else view.memory.graphs[graph_revision]
    names = view.goal.nodes.keys() if switched else checkpoint.nodes.keys() | view.goal.nodes.keys()
    return {
        "graphRevision": graph_revision,
        "graph": data["graph"],
        "nodes": {node: _node(view, checkpoint, rollout, node) for node in sorted(names)},
    }


def _node(view: View, checkpoint: Checkpoint, rollout: Rollout, node: str) -> Json:
    unit = checkpoint.unit(node)
    candidate = rollout.candidates.get(node)
    switched = candidate is not None and candidate.stage is Stage.SWITCHED
    routes: list[Json] = []
    if unit.stable is not None and not switched:
        live = live_of(view, checkpoint, node)
        routes.append(_route(view, rollout, node, unit.stable, 100, live))
    if candidate is not None and candidate.stage in (Stage.OFFERED, Stage.SWITCHED):
        routes.append(_candidate_route(view, rollout, candidate))
    entry: Json = {"routes": routes, "off": _is_off(view, checkpoint, node)}
    # Only where it is not the rule: a new version of this sends nothing to a pipeline that nobody changed.
    return entry if _is_idempotent(view, checkpoint, node) else {**entry, "idempotent": False}


def _candidate_route(view: View, rollout: Rollout, candidate: Candidate) -> Json:
    live = view.goal.nodes[candidate.node].live
    # In the process that runs now only what is in place; in one that replaces it with the new graph, all Inline nodes.
    live = replace(live, inline=live.inline and (candidate.in_place or rollout.switched))
    return _route(view, rollout, candidate.node, candidate.revision, candidate.weight, live)


def _route(view: View, rollout: Rollout, node: str, revision: str, weight: int, live: Live) -> Json:
    route: Json = {"revision": revision, "weight": weight}
    if runs_inline(view, rollout, node, revision, live):
        route["inline"] = inline_entry(view.identity(node, revision), live)
    return route


def _is_idempotent(view: View, checkpoint: Checkpoint, node: str) -> bool:
    """Whether all revisions of a node that may be called are: the flag is the node's, and is told of its code."""
    goal = view.goal.nodes.get(node)
    has_stable = checkpoint.unit(node).stable is not None
    return (goal is None or goal.live.idempotent) and (not has_stable or live_of(view, checkpoint, node).idempotent)


def _is_off(view: View, checkpoint: Checkpoint, node: str) -> bool:
    """Off by choice, or switched on but not started yet."""
    unit = checkpoint.unit(node)
    live = live_of(view, checkpoint, node) if unit.stable else view.goal.nodes[node].live
    if live.scale.off or live.inline or unit.stable is None:
        return live.scale.off
    found = view.deployed.applications.get(application(node, unit.stable))
    return bool(_deployed_node(view, node).get("off")) and (found is None or alive(found) == 0)


def _holder_table(identity: Json, table: Json, names: list[str]) -> Json:
    """The routes of the nodes whose handles a revision holds.

    It knows every application of them, so that a request that drew another revision before finds its way.
    """
    routes: dict[str, list[Json]] = {}
    once: list[str] = []
    for held in sorted(held_nodes(identity)):
        entry = table["nodes"].get(held, {"routes": []})
        if entry.get("idempotent") is False:
            once.append(held)
        weighted = {route["revision"]: route["weight"] for route in entry["routes"]}
        others = sorted(name for name in names if node_of(name) == held)
        for name in others:
            weighted.setdefault(revision_of(name), 0)
        routes[held] = [{"revision": revision, "weight": weight} for revision, weight in weighted.items()]
    return holder_config(routes, once)
