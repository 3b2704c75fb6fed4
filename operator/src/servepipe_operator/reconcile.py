"""One look at a pipeline: observe, plan, act. The same for every shell.

    observe ─▶ plan ─▶ records ─▶ cluster ─▶ PUT ─▶ status ─▶ events ─▶ prune

The order matters. Records come before anything of them is sent to Ray, so that a process that is killed in between
finds out what it was doing. The cluster's worker groups come before the actors that ask for them. Status comes after
the PUT, so that it never tells of something that was not sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from servepipe.api.problem import Problem
from servepipe.api.v1alpha1 import ServePipeline
from servepipe_operator.engine.conditions import Condition
from servepipe_operator.engine.goal import spec_name
from servepipe_operator.engine.history import decided as decided_by
from servepipe_operator.engine.names import INGRESS
from servepipe_operator.engine.plan import plan
from servepipe_operator.engine.reasons import Reason
from servepipe_operator.engine.state import (
    Capacity,
    ClusterProblem,
    Environment,
    Event,
    Json,
    Observed,
    Plan,
    RoutingAck,
)
from servepipe_operator.engine.status import with_problem
from servepipe_operator.ports import ClusterState, Ports, ServeRejectedError, TokenRefusedError, UnreachableError

__all__ = ["observe", "reconcile"]


async def reconcile(
    pipeline: ServePipeline, ports: Ports, environment: Environment, now: float, refused: Sequence[Problem] = ()
) -> Plan:
    """Look once and act.

    Args:
        refused: Why ``pipeline`` is not the resource as it stands, but what was accepted before.

    Returns:
        The plan as carried out: its status is the one that counts, ``look_again_after_s`` says when to come back.

    Raises:
        UnreachableError: History or status could not be reached; nothing may be done without them. As a
            `ConflictError`, what was read of history is out of date: nothing was sent, look again.
    """
    observed = await observe(pipeline, ports, refused)
    decided = plan(pipeline, observed, environment, now)
    for record in decided.records:
        await ports.history.write(record)
    troubles: tuple[ClusterProblem, ...] = ()
    if ports.cluster is not None and decided.cluster is not None:
        troubles = await ports.cluster.apply(decided.cluster)
    if any(trouble.blocking for trouble in troubles):
        decided = replace(decided, serve_config=None, begun=())
    if decided.serve_config is not None:
        decided = await _put(pipeline, ports, environment, now, observed, decided)
    decided = _told(decided, observed, troubles, environment, now)
    if decided.status != observed.status:
        await ports.status.write(decided.status)
    for event in (*decided.events, *decided.begun):
        await ports.events.emit(event)
    for record in decided.prune:
        await ports.history.delete(record)
    return decided


async def observe(pipeline: ServePipeline, ports: Ports, refused: Sequence[Problem] = ()) -> Observed:
    """Everything that the engine may know. What does not answer is marked as such and never guessed."""
    records = await ports.history.list()
    status = await ports.status.read()
    seen = Observed("NotStarted", records=records, status=status, refused=tuple(refused))
    if ports.cluster is None:
        return await _observe_serve(ports, seen, None)
    kept = decided_by(records)
    state = await ports.cluster.look(kept.get("cluster"))
    if not refused and kept.get("spec") != spec_name(pipeline.spec):
        seen = replace(seen, refused=await ports.cluster.refusals(pipeline))
    seen = replace(seen, slots=state.slots, cluster=state.problem)
    return seen if state.absent else await _observe_serve(ports, seen, state)


async def _observe_serve(ports: Ports, seen: Observed, state: ClusterState | None) -> Observed:
    try:
        applications = await ports.serve.applications()
    except UnreachableError as error:
        ready, not_ready = await _ready(ports) if state is not None else (None, ())
        if isinstance(error, TokenRefusedError):
            begun = seen.cluster is not None and seen.cluster.suspending
            refused = ClusterProblem("TokenRefused", str(error), stalled=True, suspending=begun)
            seen = replace(seen, cluster=refused)
        if state is not None and not state.up and ready is None:
            return replace(seen, detail=str(error))
        return replace(seen, serve="Unreachable", detail=str(error), ready=ready, not_ready=not_ready)
    if applications is None:
        return seen
    acks: tuple[RoutingAck, ...] | None = None
    ready, not_ready = None, ()
    if INGRESS in applications:
        ready, not_ready = await _ready(ports)
        acks = await _acks(ports) if ready is not None else None
    return replace(
        seen,
        serve="Running",
        applications=applications,
        acks=acks,
        ready=ready,
        not_ready=not_ready,
        capacity=await _capacity(ports),
    )


async def _ready(ports: Ports) -> tuple[bool | None, tuple[str, ...]]:
    try:
        return await ports.routing.ready()
    except UnreachableError:
        return None, ()  # the engine waits for those who did not answer


async def _acks(ports: Ports) -> tuple[RoutingAck, ...] | None:
    try:
        return await ports.routing.acks()
    except UnreachableError:
        return None


async def _capacity(ports: Ports) -> Capacity | None:
    try:
        return await ports.serve.capacity()
    except UnreachableError:
        return None


async def _put(
    pipeline: ServePipeline, ports: Ports, environment: Environment, now: float, observed: Observed, decided: Plan
) -> Plan:
    """Send the configuration; where that fails, the plan with an honest status and nothing else left to do."""
    config: Json = decided.serve_config or {}
    try:
        await ports.serve.put(config)
    except UnreachableError as error:
        # Whether it arrived is not known; the next look shows.
        lost = replace(observed, serve="Unreachable", detail=str(error))
        blind = plan(pipeline, lost, environment, now)
        return replace(decided, status=blind.status, prune=(), look_again_after_s=environment.changing_s)
    except ServeRejectedError as error:
        condition = Condition("Stalled", "True", "ServeRejected", f"Ray Serve refused the configuration: {error}")
        status = with_problem(decided.status, observed.status, condition, now)
        return replace(decided, status=status, begun=(), prune=(), look_again_after_s=environment.steady_s)
    return decided


def _told(
    decided: Plan, observed: Observed, troubles: Sequence[ClusterProblem], environment: Environment, now: float
) -> Plan:
    """The plan with what the cluster lacks in its status: what callers reach is not what the spec asks for."""
    # One for each reason: of two that take turns each would look new at every look.
    stalled: dict[Reason, list[ClusterProblem]] = {}
    for problem in (observed.cluster, *troubles):
        if problem is not None and problem.stalled:
            stalled.setdefault(problem.reason, []).append(problem)
    news = [Event("Warning", reason, _messages(problems)) for reason, problems in stalled.items()]
    if troubles:
        first = troubles[0]
        message = _messages(troubles)
        conditions = [Condition("Ready", "False", first.reason, message)]
        conditions += [Condition("Stalled", "True", first.reason, message)] if first.stalled else []
        status = decided.status
        for condition in conditions:
            status = with_problem(status, observed.status, condition, now)
        # For what somebody else has to do it is enough to look now and then.
        again_s = environment.steady_s if all(trouble.stalled for trouble in troubles) else environment.changing_s
        decided = replace(decided, status=status, prune=(), look_again_after_s=again_s)
    return replace(decided, events=(*decided.events, *news))


def _messages(problems: Sequence[ClusterProblem]) -> str:
    return "; ".join(dict.fromkeys(problem.message for problem in problems))
