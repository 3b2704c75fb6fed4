"""What the resource's status says. It is computed from what is observed and remembered, never from what was intended.

Available is about callers now: the stable revisions, whatever upgrade is going on. Ready is about the spec: what serves
is what it asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from servepipe_operator.engine.conditions import Condition, in_order, merged
from servepipe_operator.engine.goal import Live
from servepipe_operator.engine.health import (
    alive,
    failure,
    headline,
    is_ready,
    running,
)
from servepipe_operator.engine.history import Checkpoint, Failure
from servepipe_operator.engine.layout import Layout, live_of
from servepipe_operator.engine.names import INGRESS, application
from servepipe_operator.engine.rollout import Candidate, Rollout, Stage, View, retry_at
from servepipe_operator.engine.state import Application, Environment, Json, Observed
from servepipe_operator.engine.times import timestamp

__all__ = ["Report", "blind", "report", "with_problem"]

_DRAINING = "Draining"
_STALLED_ROUTING = "RoutingNotAcknowledged"
_REFUSED = "ConfigurationRefused"


@dataclass(frozen=True, slots=True)
class Report:
    """A status, and whether anything is still on its way to what the spec asks for."""

    status: Json
    changing: bool


@dataclass(frozen=True, slots=True)
class _Node:
    """One node in the report: ``ready`` is what NodesReady counts, ``available`` what callers see."""

    json: Json
    ready: bool
    available: bool
    off: bool
    why: str = ""
    no_room: str = ""


def report(
    view: View,
    checkpoint: Checkpoint,
    layout: Layout,
    observed: Observed,
    *,
    accepted: Condition,
    cluster: str,
    pending_put: bool,
    generation: int | None,
    environment: Environment,
) -> Report:
    """The status while Serve answers or was never started.

    Args:
        cluster: Name of the RayCluster, or "".
    """
    rollout = layout.rollout
    names = sorted(view.goal.nodes.keys() | checkpoint.nodes.keys())
    nodes = {name: _node(view, checkpoint, layout, name) for name in names}
    before = observed.status
    nodes_ready = _nodes_ready(view, nodes)
    waits = nodes_ready.status == "False" and not view.goal.suspend
    # An empty Serve and nodes that do not get ready are two things to wait for.
    waiting_for = ("nodes" if view.deployed.applications else "cluster") if waits else ""
    problem = observed.cluster.message if observed.cluster else ""
    stalled = _stalled(view, checkpoint, rollout, nodes, waiting_for, problem)
    stalled = _first_of(_outside(observed, accepted), stalled)
    changes = [] if view.goal.suspend else _changes(view, checkpoint, layout, nodes)
    if layout.draining:
        changes.append((_DRAINING, f"waiting for the last requests of {', '.join(sorted(layout.draining))}"))
    if pending_put and not changes:
        changes = [("Applying", "a changed configuration is being applied")]
    available = _available(view, checkpoint, observed, nodes)
    ready = _ready(view, accepted, nodes_ready, available, changes, observed)
    conditions = [accepted, _cluster(observed), nodes_ready, available, ready]
    if changes:
        conditions.append(Condition("Reconciling", "True", changes[0][0], "; ".join(text for _, text in changes)))
    if stalled:
        conditions.append(stalled)
    counted = [node for name, node in nodes.items() if name in view.goal.nodes and not node.off]
    status: Json = {
        "conditions": merged(conditions, before.get("conditions"), view.now, generation),
        "nodesReady": f"{sum(node.ready for node in counted)}/{len(counted)}",
        "graph": {"revision": checkpoint.graph},
        "nodes": {name: node.json for name, node in nodes.items()},
    }
    if cluster:
        status["clusters"] = [{"name": cluster, "role": "Active"}]
    upgrading = ", ".join(f"{c.node} {c.weight}%" for c in rollout.candidates.values() if c.active)
    if upgrading:
        status["upgrading"] = upgrading
    if deadlines := _deadlines(view, rollout, waiting_for):
        status["deadlines"] = deadlines
    # What failed is only waited for; everything else that is not as it should be is about to change.
    changing = bool(changes) or (ready.status != "True" and stalled is None and not view.goal.suspend)
    if environment.installation:
        status["installation"] = environment.installation
    return Report(_headed(status, generation, environment.url), changing)


def _deadlines(view: View, rollout: Rollout, waiting_for: str) -> Json:
    """For how long everything that has a deadline has been watched."""
    watched = []
    for candidate in rollout.candidates.values():
        if candidate.active and candidate.watched_s is not None:
            deadline_s = view.goal.nodes[candidate.node].live.deadline_s
            watched.append((application(candidate.node, candidate.revision), candidate.attempt, deadline_s))
    if rollout.ingress_watched_s is not None:
        watched.append((application(INGRESS, rollout.ingress), rollout.ingress_attempt, view.goal.deadline_s))
    if waiting_for:
        watched.append((waiting_for, 0, view.goal.deadline_s))
    return {subject: view.watch.entry(subject, attempt, deadline_s) for subject, attempt, deadline_s in sorted(watched)}


def blind(
    observed: Observed,
    accepted: Condition,
    reason: str,
    message: str,
    now: float,
    generation: int | None,
    *,
    nothing: bool = False,
) -> Json:
    """The status while nobody knows what serves: what was known stays, and every claim about now is Unknown.

    Args:
        nothing: It is known that nothing serves, because nothing was ever accepted.
    """
    claim: Literal["False", "Unknown"] = "False" if nothing else "Unknown"
    unknown = [Condition(kind, claim, reason, message) for kind in ("NodesReady", "Available", "Ready")]
    if observed.ready is not None:
        # The ingress answers by itself, whoever else does not.
        unknown[1] = _asked(observed)
    if accepted.status == "False":
        # Whatever serves, it is not what the spec asks for.
        unknown[2] = Condition("Ready", "False", accepted.reason, accepted.message)
    cluster = observed.cluster
    conditions = [
        accepted,
        Condition("ClusterReady", "False", cluster.reason, cluster.message)
        if cluster
        else Condition("ClusterReady", "Unknown", reason, message),
        *unknown,
    ]
    if outside := _outside(observed, accepted):
        conditions.append(outside)
    status = {key: value for key, value in observed.status.items() if key not in ("conditions", "observedGeneration")}
    status["conditions"] = merged(conditions, observed.status.get("conditions"), now, generation)
    return _headed(status, generation, "")


def with_problem(status: Json, before: Json, condition: Condition, now: float) -> Json:
    """``status`` with one condition more, or in place of the one of its type."""
    others = [one for one in status.get("conditions", []) if one["type"] != condition.type]
    changed = merged([condition], before.get("conditions"), now, _generation(status))
    return {**status, "conditions": in_order(others + changed)}


def _generation(status: Json) -> int | None:
    generation = status.get("observedGeneration")
    return generation if isinstance(generation, int) else None


def _headed(status: Json, generation: int | None, url: str) -> Json:
    if generation is not None:
        status["observedGeneration"] = generation
    if url:
        status["url"] = url
    return status


# --- Nodes ------------------------------------------------------------------------------------------------------------


def _node(view: View, checkpoint: Checkpoint, layout: Layout, name: str) -> _Node:
    unit = checkpoint.unit(name)
    candidate = layout.rollout.candidates.get(name)
    json: Json = {}
    ready = available = False
    why = no_room = ""
    live = live_of(view, checkpoint, name) if unit.stable else view.goal.nodes[name].live
    if unit.stable is not None:
        json, ready, available, why, no_room = _stable(view, name, unit.stable, live)
    else:
        json = {"state": "Starting"}
        why = f"{name} has no revision that answers yet"
    if unit.trouble is not None:
        json["message"] = unit.trouble.message
    if candidate is not None:
        ready = False
        why = f"{name} is not at revision {candidate.revision} yet" if unit.stable else why
        if candidate.stage is not Stage.FAILED:
            json["candidate"], waits_for = _candidate(view, candidate, layout.waiting)
            no_room = no_room or waits_for
    if unit.failed is not None:
        json["failedRevision"] = _failed(unit.failed, retried=candidate is not None)
        if candidate is not None and candidate.stage is Stage.FAILED:
            why = f"{name}: revision {unit.failed.revision} failed: {unit.failed.message}"
    return _Node(json, ready, available, live.scale.off, why, no_room)


def _stable(view: View, name: str, revision: str, live: Live) -> tuple[Json, bool, bool, str, str]:
    route = view.deployed.route(name, revision)
    found = view.deployed.applications.get(application(name, revision))
    if live.inline and route is not None and route.inline:
        error = view.deployed.errors.get(application(name, revision), "")
        ingress = view.deployed.applications.get(INGRESS)
        up = not error and ingress is not None and alive(ingress) > 0
        json: Json = {"revision": revision, "placement": "Inline", "state": "Failed" if error else "Running"}
        if error:
            json["message"] = headline(error)
        return json, up, up, f"{name}: {headline(error)}" if error else f"{name} waits for the ingress", ""
    wanted = live.scale.low
    count = running(found) if found else 0
    ready = is_ready(found, wanted)
    serving = alive(found) if found else 0
    # A node that starts on demand may be at zero; callers then wait for its first replica.
    available = found is not None and found.status != "DELETING" and (serving > 0 or (wanted == 0 and ready))
    no_room = _no_room(view, name, revision, found)
    json = {
        "revision": revision,
        "placement": "Dedicated",
        "replicas": max(wanted, found.target_replicas) if found and not live.scale.off else wanted,
        "readyReplicas": count,
        "state": _state(found, ready, live, no_room),
    }
    held = f"{name} is being turned off" if live.scale.off else f"{name} has {count} of {wanted} replicas"
    why = no_room or (held if found else f"{name} is not deployed")
    if found is not None and not ready and (failed := failure(found)):
        json["message"] = failed[1]
        why = f"{name}: {failed[1]}"
    elif no_room:
        json["message"] = no_room
    elif refused := view.deployed.errors.get(application(name, revision)):
        json |= {"state": _REFUSED, "message": headline(refused)}
        ready, why = False, f"{name}: {headline(refused)}"
    return json, ready, available or live.scale.off, why, no_room


def _state(found: Application | None, ready: bool, live: Live, no_room: str) -> str:
    if found is None:
        return "Missing"
    if ready:
        return "Off" if live.scale.off else "Running"
    if no_room:
        return "InsufficientCapacity"
    return (found.deployment_status or found.status).title().replace("_", "")


def _candidate(view: View, candidate: Candidate, waiting: Mapping[str, str]) -> tuple[Json, str]:
    json: Json = {"revision": candidate.revision, "weight": candidate.weight}
    if candidate.stage is Stage.WAITING:
        return json | {"reason": "Waiting", "message": "another upgrade goes first"}, ""
    json["since"] = timestamp(candidate.since)
    found = view.deployed.applications.get(application(candidate.node, candidate.revision))
    if found is not None:
        json |= {"replicas": found.target_replicas, "readyReplicas": running(found)}
    no_room = _no_room(view, candidate.node, candidate.revision, found) if candidate.no_room else ""
    if no_room:
        return json | {"reason": "InsufficientCapacity", "message": no_room}, no_room
    if why := waiting.get(application(candidate.node, candidate.revision)):
        return json | {"reason": "WaitingForWorkers", "message": why}, ""
    return json | {"reason": candidate.stage.value}, ""


def _no_room(view: View, name: str, revision: str, found: Application | None) -> str:
    """``"m1 needs GPU: 1 needed, 0 free of 0"`` where a replica was not placed, else ``""``."""
    found_hindrance = view.hindrance(found, view.identity(name, revision))
    return f"{name}: {found_hindrance.why}" if found_hindrance and found_hindrance.no_room else ""


def _failed(failed: Failure, *, retried: bool) -> Json:
    json: Json = {
        "revision": failed.revision,
        "reason": failed.reason,
        "message": failed.message,
        "attempts": failed.attempts,
        "at": timestamp(failed.at),
    }
    if retried:
        json["retryAt"] = timestamp(retry_at(failed))
    return json


# --- Conditions -------------------------------------------------------------------------------------------------------


def _cluster(observed: Observed) -> Condition:
    if observed.cluster is not None:
        return Condition("ClusterReady", "False", observed.cluster.reason, observed.cluster.message)
    if observed.serve == "Running":
        return Condition("ClusterReady", "True", "Running", "Ray Serve answers")
    return Condition("ClusterReady", "False", "NotStarted", observed.detail or "Ray Serve is not started yet")


def _nodes_ready(view: View, nodes: Mapping[str, _Node]) -> Condition:
    if view.goal.suspend:
        return Condition("NodesReady", "False", "Suspended", "spec.suspend is true")
    missing = [node.why for name, node in nodes.items() if name in view.goal.nodes and not node.ready]
    if missing:
        return Condition("NodesReady", "False", "NodesNotReady", "; ".join(missing))
    return Condition("NodesReady", "True", "NodesReady", "every node runs the revision that the spec asks for")


def _available(view: View, checkpoint: Checkpoint, observed: Observed, nodes: Mapping[str, _Node]) -> Condition:
    if view.goal.suspend:
        return Condition("Available", "False", "Suspended", "spec.suspend is true")
    ingress = view.deployed.applications.get(INGRESS)
    if (
        observed.ready is True
        and ingress is not None
        and all(checkpoint.unit(n).stable for n in _served(view, checkpoint))
    ):
        return Condition("Available", "True", "Answering", "callers are answered")
    if ingress is None or alive(ingress) == 0:
        return Condition("Available", "False", "IngressNotReady", "the ingress has no replica that answers")
    missing = [name for name in _served(view, checkpoint) if name not in nodes or not nodes[name].available]
    if missing or observed.ready is False:
        named = ", ".join(sorted({*missing, *observed.not_ready})) or "the ingress"
        return Condition("Available", "False", "NodesNotAnswering", f"no replica that answers: {named}")
    return Condition("Available", "Unknown", "NoAnswer", "the ingress has replicas, but /-/ready was not answered")


def _asked(observed: Observed) -> Condition:
    """What the ingress answered."""
    if observed.ready:
        return Condition("Available", "True", "Answering", "callers are answered")
    named = ", ".join(sorted(observed.not_ready)) or "the ingress"
    return Condition("Available", "False", "NodesNotAnswering", f"no replica that answers: {named}")


def _served(view: View, checkpoint: Checkpoint) -> list[str]:
    """The nodes of the graph that callers get."""
    if checkpoint.graph == view.goal.graph_revision:
        return sorted(view.goal.nodes)
    return list(view.memory.graphs[checkpoint.graph]["nodes"])


def _ready(
    view: View,
    accepted: Condition,
    nodes_ready: Condition,
    available: Condition,
    changes: list[tuple[str, str]],
    observed: Observed,
) -> Condition:
    for condition in (accepted, available, nodes_ready):
        if condition.status != "True":
            return Condition("Ready", condition.status, condition.reason, condition.message)
    # An old revision that drains changes nothing about what serves.
    if under_way := [change for change in changes if change[0] != _DRAINING]:
        return Condition("Ready", "False", *under_way[0])
    if not view.deployed.settled:
        return Condition("Ready", "False", "RoutingNotAcknowledged", "not every replica uses the current table yet")
    if observed.ready is not True:
        return Condition("Ready", "Unknown", "NoAnswer", "the ingress was not asked whether it is ready")
    return Condition("Ready", "True", "Ready", "what serves is what the spec asks for")


def _changes(view: View, checkpoint: Checkpoint, layout: Layout, nodes: Mapping[str, _Node]) -> list[tuple[str, str]]:
    """What is under way, as reason and message, the most important first."""
    rollout = layout.rollout
    changes = [("InsufficientCapacity", node.no_room) for node in nodes.values() if node.no_room]
    active = [candidate for candidate in rollout.candidates.values() if candidate.active]
    for candidate in active:
        first = checkpoint.unit(candidate.node).stable is None
        reason, verb = ("Starting", "starts") if first else ("Upgrading", "is being replaced by")
        stage = candidate.stage.value.lower()
        changes.append((reason, f"{candidate.node} {verb} revision {candidate.revision} ({stage})"))
    if rollout.reshaping and not any(c.stage is Stage.FAILED for c in rollout.candidates.values()):
        changes.append(("ChangingGraph", "the new graph takes over when all its nodes are ready"))
    if rollout.replacing_ingress:
        failed = checkpoint.ingress.failed
        if failed is None or failed.revision != rollout.ingress:
            told = "is being replaced by one with new code or settings" if checkpoint.ingress.stable else "starts"
            changes.append(("ReplacingIngress", f"the ingress {told}"))
    elif rollout.ingress_waits:
        changes.append(("IngressWaits", layout.waiting.get(INGRESS, "the ingress is replaced after the nodes")))
    ingress = view.deployed.applications.get(INGRESS)
    if checkpoint.ingress.stable and not is_ready(ingress, view.goal.ingress.scale.low):
        count = running(ingress) if ingress else 0
        changes.append(("IngressNotReady", f"the ingress has {count} of {view.goal.ingress.scale.low} replicas"))
    return changes


def _outside(observed: Observed, accepted: Condition) -> Condition | None:
    """What only somebody else can change, and no node is to blame for."""
    if accepted.status == "False":
        return Condition("Stalled", "True", accepted.reason, accepted.message)
    problem = observed.cluster
    return Condition("Stalled", "True", problem.reason, problem.message) if problem and problem.stalled else None


def _first_of(first: Condition | None, second: Condition | None) -> Condition | None:
    """Both in one, under the reason of the first."""
    if first is None or second is None:
        return first or second
    return replace(first, message=f"{first.message}; {second.message}")


def _next_try(view: View, failed: Failure) -> str:
    """Until then nothing happens by itself."""
    at = retry_at(failed)
    return f"; tried again at {timestamp(at)}" if at > view.now else ""


def _stalled(
    view: View, checkpoint: Checkpoint, rollout: Rollout, nodes: Mapping[str, _Node], waiting_for: str, problem: str
) -> Condition | None:
    found: list[tuple[str, str]] = []
    goal_nodes = view.goal.nodes
    goals = {INGRESS: view.goal.ingress.revision} | {name: node.revision for name, node in goal_nodes.items()}
    for name, revision in goals.items():
        unit = checkpoint.unit(name)
        if unit.failed is not None and unit.failed.revision == revision and unit.stable != revision:
            serves = f"; revision {unit.stable} goes on serving" if unit.stable else ""
            told = f"{name}: revision {revision} failed: {unit.failed.message}{serves}{_next_try(view, unit.failed)}"
            found.append((unit.failed.reason, told))
        elif unit.trouble is not None:
            told = f"the revision that serves cannot be started: {unit.trouble.message}{_next_try(view, unit.trouble)}"
            found.append((unit.trouble.reason, f"{name}: {told}"))
        elif refused := view.deployed.errors.get(INGRESS if name == INGRESS else application(name, revision)):
            # Replicas keep the table or userConfig that they have; only a change of the spec helps.
            inline = name != INGRESS and goal_nodes[name].live.inline
            found.append(("ReplicaFailed" if inline else _REFUSED, f"{name}: {headline(refused)}"))
    for candidate in rollout.candidates.values():
        late = (candidate.watched_s or 0) >= view.goal.nodes[candidate.node].live.deadline_s
        if candidate.stage in (Stage.OFFERED, Stage.SWITCHED) and late and not view.deployed.settled:
            found.append((_STALLED_ROUTING, f"{candidate.node}: not every replica uses the new table"))
    if view.watch.seconds(waiting_for, 0, view.goal.deadline_s) >= view.goal.deadline_s and not found:
        stuck = [node.why for name, node in nodes.items() if name in view.goal.nodes and not node.ready]
        if stuck and not any(node.no_room for node in nodes.values()):
            first = [problem] if problem and problem not in "; ".join(stuck) else []
            found.append(("ProgressDeadlineExceeded", "; ".join([*first, *stuck])))
    if not found:
        return None
    return replace(Condition("Stalled", "True", *found[0]), message="; ".join(text for _, text in found))
