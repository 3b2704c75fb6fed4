"""The engine's one entry: what to do next.

The phases, in order:

    read history ─▶ accept the spec ─▶ promote, give up ─▶ lay out applications and tables ─▶ PUT or not ─▶ report
        │                │
        │                └─ not valid: go on with the last accepted one
        └─ Serve does not answer, or the pipeline is paused: report only

Each phase is a pure function of the ones before; nothing waits, and a wait shows as "look again". A shell that is
killed between any two of its steps starts here again and comes to the same end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from servepipe.api import problems
from servepipe.api.problem import Problem
from servepipe.api.v1alpha1 import ServePipeline, Spec
from servepipe_operator.engine import goal as goals
from servepipe_operator.engine import history
from servepipe_operator.engine.advance import accept, advance
from servepipe_operator.engine.cluster import cluster_plan, cluster_problems, replacement_problem
from servepipe_operator.engine.conditions import Condition, in_a_line
from servepipe_operator.engine.deployed import Deployed
from servepipe_operator.engine.goal import Goal
from servepipe_operator.engine.history import Checkpoint, Memory
from servepipe_operator.engine.layout import Layout, lay_out, to_put
from servepipe_operator.engine.names import INGRESS, application, cluster_name
from servepipe_operator.engine.reasons import Reason
from servepipe_operator.engine.rollout import View, look, retry_at
from servepipe_operator.engine.state import (
    ClusterPlan,
    ClusterProblem,
    Environment,
    Event,
    Json,
    Observed,
    Plan,
    Record,
)
from servepipe_operator.engine.status import blind, report
from servepipe_operator.engine.times import seconds
from servepipe_operator.engine.watch import Watch

__all__ = ["plan", "refused_status"]


def plan(pipeline: ServePipeline, observed: Observed, environment: Environment, now: float) -> Plan:
    """What to do now.

    Args:
        pipeline: The resource as it stands; it may be wrong.
        observed: Everything that is known of the world.
        environment: What differs between one machine and a cluster.
        now: Epoch seconds.
    """
    memory = history.read(observed.records)
    wrong = [*observed.refused, *_problems(pipeline, memory, environment)]
    replacement = None if wrong else _replacement(pipeline, memory, environment)
    wrong += [replacement] if replacement else []
    generation = pipeline.metadata.generation
    goal = _goal(pipeline, wrong, memory, environment)
    accepted = _accepted(wrong, "ClusterReplacementRequired" if replacement else "InvalidSpec", goal, environment)
    if goal is None:
        nothing = memory.checkpoint is None
        why = "no spec was accepted yet" if nothing else "the last accepted spec cannot be read"
        status = blind(observed, accepted, "NotAccepted", why, now, generation, nothing=nothing)
        return Plan(status=status, look_again_after_s=environment.steady_s)
    paused = pipeline.spec.paused
    if observed.serve == "Unreachable":
        why = observed.detail or "Ray Serve does not answer"
        status = blind(observed, accepted, "Unreachable", why, now, generation)
        cluster = None if paused or memory.checkpoint is None else _cluster(pipeline, goal, memory.checkpoint, observed)
        return Plan(cluster=cluster, status=status, look_again_after_s=environment.changing_s)

    checkpoint, records = accept(goal, memory, environment, now)
    if _moves(memory.checkpoint, checkpoint) and not paused:
        observed = _in_a_new_cluster(observed)
    view = _view(goal, memory, observed, environment, now)
    cluster = None
    if paused:
        told = []
        layout, put = Layout({}, frozenset(), look(view, checkpoint)), None
        records = []
    else:
        fresh = memory.checkpoint is None or checkpoint.spec != memory.checkpoint.spec
        told = _news(goal, environment) if fresh else []
        checkpoint, rollout, happened = advance(view, checkpoint)
        told += happened
        checkpoint, records = _committed(checkpoint, memory, records, now)
        layout = lay_out(view, checkpoint, rollout)
        resting = goal.suspend and observed.serve == "NotStarted"
        blocked = observed.cluster is not None and observed.cluster.blocking
        put = None if resting or blocked else to_put(view, layout.applications)
        cluster = _cluster(pipeline, goal, checkpoint, observed, layout)

    kept = checkpoint.cluster
    outcome = report(
        view,
        checkpoint,
        layout,
        observed,
        accepted=_paused(accepted) if paused else _with_notice(accepted, layout),
        cluster=cluster_name(pipeline.name, pipeline.metadata.uid or "", kept["revision"]) if kept else "",
        pending_put=put is not None,
        generation=generation,
        environment=environment,
    )
    changing = (outcome.changing or put is not None) and not paused
    return Plan(
        records=tuple(records),
        cluster=cluster,
        serve_config=put,
        status=outcome.status,
        events=tuple(told),
        begun=tuple(_begun(layout.applications, view, checkpoint)) if put else (),
        prune=() if paused else _prunable(observed.records, checkpoint, layout.applications, view),
        look_again_after_s=_look_again(checkpoint, environment, changing, now),
    )


def refused_status(problems: Sequence[Problem], before: Json, now: float, generation: int | None) -> Json:
    """The status of a resource that cannot be read at all, before anything was accepted."""
    accepted = _accepted(problems, "InvalidSpec", None, Environment())
    observed = Observed("NotStarted", status=before)
    return blind(observed, accepted, "NotAccepted", "no spec was accepted yet", now, generation)


# --- Phases -----------------------------------------------------------------------------------------------------------


def _problems(pipeline: ServePipeline, memory: Memory, environment: Environment) -> Sequence[Problem]:
    """What is wrong with the spec. One that was accepted stays so: a stricter version of this code stops nobody."""
    known = memory.checkpoint.spec if memory.checkpoint else None
    if goals.spec_name(pipeline.spec) == known:
        return []
    found = problems(pipeline)
    return [*found, *cluster_problems(pipeline.spec, environment.cluster)] if environment.cluster else found


def _replacement(pipeline: ServePipeline, memory: Memory, environment: Environment) -> Problem | None:
    if environment.cluster is None or memory.checkpoint is None:
        return None
    return replacement_problem(pipeline.spec, memory.checkpoint, environment.cluster)


def _moves(before: Checkpoint | None, after: Checkpoint) -> bool:
    """Another RayCluster takes the place of one in which nothing ever served."""
    if before is None or before.cluster is None or after.cluster is None:
        return False
    return bool(after.cluster["revision"] != before.cluster["revision"])


def _in_a_new_cluster(observed: Observed) -> Observed:
    """What is known of a cluster that was only just decided on."""
    creating = ClusterProblem("Creating", "another RayCluster is being created")
    return Observed("NotStarted", records=observed.records, status=observed.status, slots=(), cluster=creating)


def _cluster(
    pipeline: ServePipeline, goal: Goal, checkpoint: Checkpoint, observed: Observed, layout: Layout | None = None
) -> ClusterPlan | None:
    """The RayCluster; its worker groups as they are while nobody knows what runs."""
    if checkpoint.cluster is None:
        return None
    slots = layout.slots if layout else observed.slots or ()
    # Pods go after the last request is answered.
    empty = layout is not None and not layout.applications and not observed.applications
    # Once begun it goes on: workers of the ingress may answer for longer than the head.
    begun = observed.cluster is not None and observed.cluster.suspending
    suspend = goal.suspend and (empty or begun or observed.serve == "NotStarted")
    uid = pipeline.metadata.uid or ""
    return cluster_plan(pipeline.name, uid, checkpoint.cluster, goal.accepted, slots, suspend)


def _goal(pipeline: ServePipeline, wrong: Sequence[Problem], memory: Memory, environment: Environment) -> Goal | None:
    """The spec as it stands if it is valid, else the last accepted one, or None."""
    if not wrong:
        return goals.read(pipeline.name, pipeline.spec, memory, environment)
    checkpoint = memory.checkpoint
    if checkpoint is None or checkpoint.spec not in memory.specs:
        return None
    return _read_old(pipeline.name, checkpoint.spec, memory, environment)


def _read_old(pipeline: str, name: str, memory: Memory, environment: Environment) -> Goal | None:
    """What an older spec asked for; None where this version does not understand it any more."""
    try:
        spec = Spec.model_validate(memory.specs[name])
    except ValueError:
        return None
    return goals.read(pipeline, spec, memory, environment)


def _accepted(wrong: Sequence[Problem], reason: Reason, goal: Goal | None, environment: Environment) -> Condition:
    if wrong:
        kept = "" if goal is None else "; the last accepted spec goes on serving"
        return Condition("Accepted", "False", reason, "; ".join(map(in_a_line, wrong)) + kept)
    notices = [] if goal is None else _notices(goal, environment)
    return Condition("Accepted", "True", "Accepted", "; ".join(notices) or "the spec is valid")


def _notices(goal: Goal, environment: Environment) -> list[str]:
    """What the spec asks for and does not get here, said for as long as it is so."""
    canaries = sorted(name for name, node in goal.nodes.items() if node.live.canary)
    notices = []
    if canaries:
        notices.append(f"strategy Canary is not there yet and runs as BlueGreen: {', '.join(canaries)}")
    in_place = sorted(name for name, node in goal.nodes.items() if node.live.in_place)
    if in_place:
        notices.append(f"surge InPlace is not there yet and runs as Full: {', '.join(in_place)}")
    asked = {key for key in goal.spec if key in environment.ignored_fields}
    asked |= {key for node in goal.spec["nodes"].values() for key in node if key in environment.ignored_fields}
    if asked:
        but = environment.ignored_fields
        named = [f"{key} ({but[key]})" if but[key] else key for key in sorted(asked)]
        notices.append(f"without meaning here: {', '.join(named)}")
    return notices


def _with_notice(accepted: Condition, layout: Layout) -> Condition:
    if not layout.outdated:
        return accepted
    notice = (
        f"{', '.join(layout.outdated)}: the pods are from before a change of imagePullSecrets, serviceAccountName or "
        "cluster.workers, which reaches them with the next revision, or with spec.suspend and back"
    )
    return replace(accepted, message=f"{accepted.message}; {notice}")


def _paused(accepted: Condition) -> Condition:
    return replace(accepted, message=f"{accepted.message}; paused: nothing is changed")


def _view(goal: Goal, memory: Memory, observed: Observed, environment: Environment, now: float) -> View:
    return View(
        goal=goal,
        memory=memory,
        deployed=Deployed.of(observed),
        environment=environment,
        capacity=observed.capacity,
        old_lives=_old_lives(goal, memory, environment),
        started=_started(observed.status),
        watch=Watch.of(observed.status, now),
        now=now,
        slots=observed.slots,
    )


def _started(status: Json) -> dict[str, float]:
    """Since when candidates are on their way, as status tells."""
    started: dict[str, float] = {}
    nodes = status.get("nodes")
    for name, node in nodes.items() if isinstance(nodes, Mapping) else ():
        candidate = node.get("candidate") if isinstance(node, Mapping) else None
        if not isinstance(candidate, Mapping):
            continue
        since = seconds(candidate.get("since"))
        if since is not None:
            started[application(name, str(candidate.get("revision")))] = since
    return started


def _old_lives(goal: Goal, memory: Memory, environment: Environment) -> dict[str, dict[str, goals.Live]]:
    names = {unit.live for unit in memory.checkpoint.nodes.values()} if memory.checkpoint else set()
    lives = {}
    for name in sorted(names & memory.specs.keys() - {goal.spec_name}):
        old = _read_old(goal.pipeline, name, memory, environment)
        if old is not None:
            lives[name] = {node.name: node.live for node in old.nodes.values()}
    return lives


def _committed(
    checkpoint: Checkpoint, memory: Memory, records: list[Record], now: float
) -> tuple[Checkpoint, list[Record]]:
    """A new checkpoint where anything in it changed. It comes after the records that it names."""
    before = memory.checkpoint
    if before is not None and checkpoint == before:
        return before, records
    checkpoint = replace(checkpoint, at=now, sequence=before.sequence + 1 if before else 1)
    return checkpoint, [*records, checkpoint.record()]


def _prunable(
    records: Sequence[Record], checkpoint: Checkpoint, wanted: Mapping[str, Json], view: View
) -> tuple[Record, ...]:
    goal = view.goal
    used = {*wanted, *view.deployed.applications, application(INGRESS, goal.ingress.revision)}
    used |= {application(name, node.revision) for name, node in goal.nodes.items()}
    if view.deployed.ingress:
        used.add(application(INGRESS, view.deployed.ingress))
    kept_graphs = {goal.graph_revision, str(view.deployed.table.get("graphRevision"))}
    found = history.prunable(records, checkpoint, used, goal.history_limit)
    return tuple(record for record in found if not (record.kind == "graph" and record.name in kept_graphs))


def _look_again(checkpoint: Checkpoint, environment: Environment, changing: bool, now: float) -> float:
    if changing:
        return environment.changing_s
    units = (checkpoint.ingress, *checkpoint.nodes.values())
    retries = [retry_at(failed) for unit in units for failed in (unit.failed, unit.trouble) if failed]
    due = min((at - now for at in retries if at > now), default=environment.steady_s)
    return max(min(due, environment.steady_s), environment.changing_s)


# --- Events -----------------------------------------------------------------------------------------------------------


def _news(goal: Goal, environment: Environment) -> list[Event]:
    events = [Event("Normal", "Accepted", f"spec {goal.spec_name} is accepted")]
    return events + [Event("Normal", "Notice", notice) for notice in _notices(goal, environment)]


def _begun(wanted: Mapping[str, Json], view: View, checkpoint: Checkpoint) -> list[Event]:
    events = []
    for name, node in view.goal.nodes.items():
        begun = application(name, node.revision)
        if (
            begun in wanted
            and begun not in view.deployed.applications
            and checkpoint.unit(name).stable != node.revision
        ):
            events.append(Event("Normal", "Starting", f"revision {node.revision} is being started", name))
    removed = sorted(view.deployed.applications.keys() - wanted.keys())
    return events + [Event("Normal", "Removed", f"{name} is not needed any more") for name in removed]
