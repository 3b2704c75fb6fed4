"""What the resource's status says. It is computed from what is observed and remembered, never from what was intended.

Available is about callers now: the stable revisions, whatever upgrade is going on. Ready is about the spec: what serves
is what it asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from servepipe_operator.engine import verdicts
from servepipe_operator.engine.conditions import Condition, in_order, merged
from servepipe_operator.engine.history import Checkpoint
from servepipe_operator.engine.layout import Layout, only_removed
from servepipe_operator.engine.names import INGRESS, application
from servepipe_operator.engine.node_status import node_report
from servepipe_operator.engine.reasons import Reason
from servepipe_operator.engine.rollout import Rollout, View
from servepipe_operator.engine.state import Environment, Json, Observed

__all__ = ["Report", "blind", "report", "with_problem"]


@dataclass(frozen=True, slots=True)
class Report:
    """A status, and whether anything is still on its way to what the spec asks for."""

    status: Json
    changing: bool


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
    nodes = {name: node_report(view, checkpoint, layout, name) for name in names}
    before = observed.status
    nodes_ready = verdicts.nodes_ready(view, nodes)
    waits = nodes_ready.status == "False" and not view.goal.suspend
    # An empty Serve and nodes that do not get ready are two things to wait for.
    waiting_for = ("nodes" if view.deployed.applications else "cluster") if waits else ""
    problem = observed.cluster.message if observed.cluster else ""
    stalled = verdicts.stalled(view, checkpoint, rollout, nodes, waiting_for, problem)
    stalled = verdicts.both(verdicts.outside(observed, accepted), stalled)
    changes = [] if view.goal.suspend else verdicts.changes_under_way(view, checkpoint, layout, nodes)
    if layout.draining:
        changes.append((verdicts.DRAINING, f"waiting for the last requests of {', '.join(sorted(layout.draining))}"))
    if pending_put and not changes:
        removed = only_removed(view, layout.applications)
        changes = [
            (verdicts.DRAINING, f"{', '.join(removed)} is being removed")
            if removed
            else ("Applying", "a changed configuration is being applied")
        ]
    available = verdicts.available(view, checkpoint, observed, nodes)
    ready = verdicts.ready(view, accepted, nodes_ready, available, changes, observed)
    conditions = [accepted, verdicts.cluster_ready(observed), nodes_ready, available, ready]
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
    # A first revision replaces nothing: that node starts.
    replaced = [c for c in rollout.candidates.values() if c.active and checkpoint.unit(c.node).stable]
    if replaced:
        status["upgrading"] = ", ".join(f"{candidate.node} {candidate.weight}%" for candidate in replaced)
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
    reason: Reason,
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
        unknown[1] = verdicts.asked(observed)
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
    if outside := verdicts.outside(observed, accepted):
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
