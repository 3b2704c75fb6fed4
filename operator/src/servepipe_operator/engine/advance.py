"""What goes into the next checkpoint: specs accepted, revisions promoted, and those given up."""

from __future__ import annotations

from dataclasses import replace

from servepipe_operator.engine import defaults
from servepipe_operator.engine.cluster import wanted_cluster
from servepipe_operator.engine.deployed import Deployed
from servepipe_operator.engine.goal import Goal
from servepipe_operator.engine.health import failure, headline, is_ready
from servepipe_operator.engine.history import (
    Checkpoint,
    Failure,
    Memory,
    Unit,
    graph_record,
    revision_record,
    spec_record,
)
from servepipe_operator.engine.names import INGRESS, application
from servepipe_operator.engine.reasons import Reason
from servepipe_operator.engine.rollout import Candidate, Rollout, Stage, View, look, retry_at
from servepipe_operator.engine.state import Application, Environment, Event, Json, Record

__all__ = ["accept", "advance"]


def accept(goal: Goal, memory: Memory, environment: Environment, now: float) -> tuple[Checkpoint, list[Record]]:
    """The checkpoint with this spec accepted, and the records of everything in it that is new."""
    before = memory.checkpoint
    sequence = before.sequence + 1 if before else 1
    records: list[Record] = []
    if goal.spec_name not in memory.specs:
        records.append(spec_record(goal.spec_name, goal.spec, defaults.today(), sequence))
    if goal.graph_revision not in memory.graphs:
        records.append(graph_record(goal.graph_revision, goal.graph_data, sequence))
    parts = {INGRESS: (goal.ingress.revision, goal.ingress.identity)}
    parts |= {name: (node.revision, node.identity) for name, node in goal.nodes.items()}
    for name, (revision, identity) in parts.items():
        if application(name, revision) not in memory.revisions:
            records.append(revision_record(application(name, revision), identity, sequence))
    if before is None:
        return Checkpoint(
            goal.spec_name, goal.graph_revision, cluster=_cluster(goal, None, environment), at=now
        ), records
    # A node that never answered and is not wanted any more leaves nothing behind.
    known = {name: unit for name, unit in before.nodes.items() if unit.stable or name in goal.nodes}
    # A graph that never answered anybody needs no protection, and one whose record is lost cannot have any.
    keeps_graph = before.ingress.stable and (before.graph == goal.graph_revision or before.graph in memory.graphs)
    graph = before.graph if keeps_graph else goal.graph_revision
    before = replace(before, cluster=_cluster(goal, before.cluster, environment))
    if before.spec == goal.spec_name:
        return replace(before, graph=graph, nodes=known), records
    nodes = {
        name: replace(unit, live=goal.spec_name)
        if name in goal.nodes and goal.nodes[name].revision == unit.stable
        else unit
        for name, unit in known.items()
    }
    return replace(before, spec=goal.spec_name, graph=graph, nodes=nodes), records


def _cluster(goal: Goal, kept: Json | None, environment: Environment) -> Json | None:
    return wanted_cluster(goal.accepted, kept, environment.cluster) if environment.cluster else kept


def advance(view: View, checkpoint: Checkpoint) -> tuple[Checkpoint, Rollout, list[Event]]:
    """Promote what may be promoted and give up what failed, until nothing more follows from what is observed."""
    events: list[Event] = []
    while True:
        rollout = look(view, checkpoint)
        after = checkpoint
        for step in (_give_up, _promote, _watch_stable):
            after, told = step(view, after, rollout)
            events += told
            if after != checkpoint:
                break
        if after == checkpoint:
            return checkpoint, rollout, events
        checkpoint = after


# --- Promotion --------------------------------------------------------------------------------------------------------


def _promote(view: View, checkpoint: Checkpoint, rollout: Rollout) -> tuple[Checkpoint, list[Event]]:
    """Whatever the deployed table sends all requests to becomes stable once everybody uses that table."""
    deployed, goal = view.deployed, view.goal
    if not deployed.settled:
        return checkpoint, []
    after = checkpoint
    ingress_runs = deployed.ingress == rollout.ingress and deployed.attempt(INGRESS) == rollout.ingress_attempt
    if rollout.reshaping:
        if not (rollout.switched and ingress_runs and deployed.table.get("graphRevision") == goal.graph_revision):
            return checkpoint, []
        after = replace(
            after,
            graph=goal.graph_revision,
            nodes={name: unit for name, unit in after.nodes.items() if name in goal.nodes},
        )
    events = []
    for candidate in rollout.candidates.values():
        if _answers_all(deployed, candidate):
            after = after.with_unit(candidate.node, Unit(candidate.revision, candidate.attempt, goal.spec_name))
            message = f"revision {candidate.revision} answers all requests"
            events.append(Event("Normal", "Promoted", message, candidate.node))
    if rollout.replacing_ingress and ingress_runs and is_ready(deployed.applications.get(INGRESS), 1):
        after = after.with_unit(INGRESS, Unit(rollout.ingress, rollout.ingress_attempt, goal.spec_name))
    return after, events


def _answers_all(deployed: Deployed, candidate: Candidate) -> bool:
    route = deployed.route(candidate.node, candidate.revision)
    return candidate.stage is Stage.SWITCHED and route is not None and route.weight == 100


# --- Giving up --------------------------------------------------------------------------------------------------------


def _give_up(view: View, checkpoint: Checkpoint, rollout: Rollout) -> tuple[Checkpoint, list[Event]]:
    events = []
    for candidate in rollout.candidates.values():
        if candidate.active and (why := _why_failed(view, candidate)):
            token = view.goal.nodes[candidate.node].live.retry_token
            checkpoint = _with_failure(view, checkpoint, candidate.node, candidate.revision, why, token)
            events.append(_told(view, checkpoint, candidate.node, f"revision {candidate.revision}"))
    if rollout.replacing_ingress and (why := _why_ingress_failed(view, checkpoint, rollout)):
        checkpoint = _with_failure(view, checkpoint, INGRESS, rollout.ingress, why, "")
        events.append(_told(view, checkpoint, INGRESS, "the ingress"))
    return checkpoint, events


def _why_failed(view: View, candidate: Candidate) -> tuple[Reason, str] | None:
    name = application(candidate.node, candidate.revision)
    deployed = view.deployed
    route = deployed.route(candidate.node, candidate.revision)
    if route is not None and route.inline and name in deployed.errors:
        return "ReplicaFailed", headline(deployed.errors[name])
    found = deployed.applications.get(name)
    if found is None or deployed.attempt(name) != candidate.attempt:
        return None
    if why := failure(found):
        return why
    deadline_s = view.goal.nodes[candidate.node].live.deadline_s
    if candidate.stage is Stage.STARTING and candidate.watched_s is not None and candidate.watched_s >= deadline_s:
        return "ProgressDeadlineExceeded", _late(view, found, candidate.node, candidate.revision, deadline_s)
    return None


def _why_ingress_failed(view: View, checkpoint: Checkpoint, rollout: Rollout) -> tuple[Reason, str] | None:
    found = view.deployed.applications.get(INGRESS)
    if found is None or view.deployed.ingress != rollout.ingress:
        return None
    if view.deployed.attempt(INGRESS) != rollout.ingress_attempt:
        return None
    unit = checkpoint.ingress
    if unit.failed and unit.failed.revision == rollout.ingress and rollout.ingress_attempt < unit.failed.attempts:
        return None  # this attempt was counted; there is nothing else to run meanwhile
    if why := failure(found):
        return why
    if rollout.ingress_watched_s is not None and rollout.ingress_watched_s >= view.goal.deadline_s:
        return "ProgressDeadlineExceeded", _late(view, found, INGRESS, rollout.ingress, view.goal.deadline_s)
    return None


def _late(view: View, found: Application, name: str, revision: str, deadline_s: int) -> str:
    hindrance = view.hindrance(found, view.identity(name, revision))
    said = found.deployment_message or found.message
    why = hindrance.why if hindrance else headline(said) if said else "its replicas do not come up; see their logs"
    return f"not healthy after {deadline_s} s: {why}"


def _with_failure(
    view: View, checkpoint: Checkpoint, name: str, revision: str, why: tuple[Reason, str], token: str
) -> Checkpoint:
    unit = checkpoint.unit(name)
    before = unit.failed.attempts if unit.failed and unit.failed.revision == revision else 0
    failed = Failure(revision, *why, attempts=before + 1, at=view.now, token=token)
    return checkpoint.with_unit(name, replace(unit, failed=failed))


def _told(view: View, checkpoint: Checkpoint, name: str, what: str) -> Event:
    failed = checkpoint.unit(name).failed
    assert failed is not None
    minutes = round((retry_at(failed) - view.now) / 60)
    message = f"{what} was given up: {failed.message}. It is tried again in {minutes} min"
    return Event("Warning", failed.reason, message, "" if name == INGRESS else name)


# --- Stable revisions that cannot be started again --------------------------------------------------------------------


def _watch_stable(view: View, checkpoint: Checkpoint, rollout: Rollout) -> tuple[Checkpoint, list[Event]]:
    """A stable revision that Serve has given up is started again with a new nonce, at growing intervals.

    There is nothing to go back to, and other replicas of it may still answer, so it stays deployed.
    """
    events = []
    pending = {name for name, candidate in rollout.candidates.items() if candidate.active}
    for name, unit in ((INGRESS, checkpoint.ingress), *checkpoint.nodes.items()):
        if unit.stable is None or name in pending or (name == INGRESS and rollout.replacing_ingress):
            continue
        serve_name = INGRESS if name == INGRESS else application(name, unit.stable)
        found = view.deployed.applications.get(serve_name)
        if found is None:
            continue
        attempt = view.deployed.attempt(serve_name)
        if name == INGRESS and view.deployed.ingress != unit.stable:
            continue
        after = _after_trouble(view, unit, found, attempt)
        if after.trouble is not None and (unit.trouble is None or after.trouble.at != unit.trouble.at):
            message = f"the stable revision cannot be started: {after.trouble.message}"
            events.append(Event("Warning", after.trouble.reason, message, "" if name == INGRESS else name))
        checkpoint = checkpoint.with_unit(name, after) if after != unit else checkpoint
    return checkpoint, events


def _after_trouble(view: View, unit: Unit, found: Application, attempt: int) -> Unit:
    assert unit.stable is not None
    trouble = unit.trouble
    if is_ready(found, 0):
        return replace(unit, trouble=None)
    why = failure(found)
    if why is None or attempt != unit.attempt:
        return unit
    # `token` tells the attempt that this trouble was recorded for.
    if trouble is None or trouble.token != str(unit.attempt):
        attempts = trouble.attempts + 1 if trouble else 1
        return replace(
            unit, trouble=Failure(unit.stable, *why, attempts=attempts, at=view.now, token=str(unit.attempt))
        )
    if view.now >= retry_at(trouble):
        return replace(unit, attempt=unit.attempt + 1)
    return unit
