"""What each condition says: functions of what is observed, remembered and decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from servepipe_operator.engine.conditions import Condition
from servepipe_operator.engine.health import alive, building, headline, is_ready, running
from servepipe_operator.engine.history import Checkpoint, Failure
from servepipe_operator.engine.layout import Layout
from servepipe_operator.engine.names import INGRESS, application
from servepipe_operator.engine.node_status import REFUSED, NodeReport
from servepipe_operator.engine.reasons import Reason
from servepipe_operator.engine.rollout import Rollout, Stage, View, retry_at
from servepipe_operator.engine.state import Observed
from servepipe_operator.engine.times import timestamp

__all__ = [
    "DRAINING",
    "asked",
    "available",
    "both",
    "changes_under_way",
    "cluster_ready",
    "nodes_ready",
    "outside",
    "ready",
    "stalled",
]

#: The reason while only an old revision waits for its last requests.
DRAINING: Final = "Draining"


def cluster_ready(observed: Observed) -> Condition:
    if observed.cluster is not None:
        return Condition("ClusterReady", "False", observed.cluster.reason, observed.cluster.message)
    if observed.serve == "Running":
        return Condition("ClusterReady", "True", "Running", "Ray Serve answers")
    return Condition("ClusterReady", "False", "NotStarted", observed.detail or "Ray Serve is not started yet")


def nodes_ready(view: View, nodes: Mapping[str, NodeReport]) -> Condition:
    if view.goal.suspend:
        return Condition("NodesReady", "False", "Suspended", "spec.suspend is true")
    missing = [node.why for name, node in nodes.items() if name in view.goal.nodes and not node.ready]
    if missing:
        return Condition("NodesReady", "False", "NodesNotReady", "; ".join(missing))
    return Condition("NodesReady", "True", "NodesReady", "every node runs the revision that the spec asks for")


def available(view: View, checkpoint: Checkpoint, observed: Observed, nodes: Mapping[str, NodeReport]) -> Condition:
    ingress = view.deployed.applications.get(INGRESS)
    # Paused before it was suspended it goes on serving.
    if view.goal.suspend and not (view.goal.paused and ingress is not None and alive(ingress)):
        return Condition("Available", "False", "Suspended", "spec.suspend is true")
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


def asked(observed: Observed) -> Condition:
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


def ready(
    view: View,
    accepted: Condition,
    nodes_ready: Condition,
    available: Condition,
    changes: list[tuple[Reason, str]],
    observed: Observed,
) -> Condition:
    for condition in (accepted, available, nodes_ready):
        if condition.status != "True":
            return Condition("Ready", condition.status, condition.reason, condition.message)
    # An old revision that drains changes nothing about what serves.
    if under_way := [change for change in changes if change[0] != DRAINING]:
        return Condition("Ready", "False", *under_way[0])
    if not view.deployed.settled:
        return Condition("Ready", "False", "RoutingNotAcknowledged", "not every replica uses the current table yet")
    if observed.ready is not True:
        return Condition("Ready", "Unknown", "NoAnswer", "the ingress was not asked whether it is ready")
    return Condition("Ready", "True", "Ready", "what serves is what the spec asks for")


def changes_under_way(
    view: View, checkpoint: Checkpoint, layout: Layout, nodes: Mapping[str, NodeReport]
) -> list[tuple[Reason, str]]:
    """What is under way, as reason and message, the most important first."""
    rollout = layout.rollout
    changes: list[tuple[Reason, str]] = [
        ("InsufficientCapacity", node.no_room) for node in nodes.values() if node.no_room
    ]
    active = [candidate for candidate in rollout.candidates.values() if candidate.active]
    for candidate in active:
        first = checkpoint.unit(candidate.node).stable is None
        reason: Reason
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
    hidden = ingress is not None and building(ingress) and view.deployed.ingress_answers
    if checkpoint.ingress.stable and not hidden and not is_ready(ingress, view.goal.ingress.scale.low):
        count = running(ingress) if ingress else 0
        changes.append(("IngressNotReady", f"the ingress has {count} of {view.goal.ingress.scale.low} replicas"))
    return changes


def outside(observed: Observed, accepted: Condition) -> Condition | None:
    """What only somebody else can change, and no node is to blame for."""
    if accepted.status == "False":
        return Condition("Stalled", "True", accepted.reason, accepted.message)
    problem = observed.cluster
    return Condition("Stalled", "True", problem.reason, problem.message) if problem and problem.stalled else None


def both(first: Condition | None, second: Condition | None) -> Condition | None:
    """Both in one, under the reason of the first."""
    if first is None or second is None:
        return first or second
    return replace(first, message=f"{first.message}; {second.message}")


def _next_try(view: View, failed: Failure) -> str:
    """Until then nothing happens by itself."""
    at = retry_at(failed)
    return f"; tried again at {timestamp(at)}" if at > view.now else ""


def stalled(
    view: View,
    checkpoint: Checkpoint,
    rollout: Rollout,
    nodes: Mapping[str, NodeReport],
    waiting_for: str,
    problem: str,
) -> Condition | None:
    found: list[tuple[Reason, str]] = []
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
            found.append(("ReplicaFailed" if inline else REFUSED, f"{name}: {headline(refused)}"))
    for candidate in rollout.candidates.values():
        late = (candidate.watched_s or 0) >= view.goal.nodes[candidate.node].live.deadline_s
        if candidate.stage in (Stage.OFFERED, Stage.SWITCHED) and late and not view.deployed.settled:
            found.append(("RoutingNotAcknowledged", f"{candidate.node}: not every replica uses the new table"))
    if view.watch.seconds(waiting_for, 0, view.goal.deadline_s) >= view.goal.deadline_s and not found:
        stuck = [node.why for name, node in nodes.items() if name in view.goal.nodes and not node.ready]
        if stuck and not any(node.no_room for node in nodes.values()):
            first = [problem] if problem and problem not in "; ".join(stuck) else []
            found.append(("ProgressDeadlineExceeded", "; ".join([*first, *stuck])))
    if not found:
        return None
    return replace(Condition("Stalled", "True", *found[0]), message="; ".join(text for _, text in found))
