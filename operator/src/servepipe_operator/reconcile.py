"""One look at a pipeline: observe, plan, act. The same for every shell.

    observe ─▶ plan ─▶ records ─▶ PUT ─▶ status ─▶ events ─▶ prune

The order matters. Records come before anything of them is sent to Ray, so that a process that is killed in between
finds out what it was doing. Status comes after the PUT, so that it never tells of something that was not sent.
"""

from __future__ import annotations

from dataclasses import replace

from servepipe.api.v1alpha1 import ServePipeline
from servepipe_operator.engine.conditions import Condition
from servepipe_operator.engine.names import INGRESS
from servepipe_operator.engine.plan import plan
from servepipe_operator.engine.state import Capacity, Environment, Json, Observed, Plan, RoutingAck
from servepipe_operator.engine.status import with_problem
from servepipe_operator.ports import Ports, ServeRejectedError, UnreachableError

__all__ = ["observe", "reconcile"]


async def reconcile(pipeline: ServePipeline, ports: Ports, environment: Environment, now: float) -> Plan:
    """Look once and act.

    Returns:
        The plan as carried out: its status is the one that counts, ``look_again_after_s`` says when to come back.

    Raises:
        UnreachableError: History or status could not be reached; nothing may be done without them. As a
            `ConflictError`, what was read of history is out of date: nothing was sent, look again.
    """
    observed = await observe(ports)
    decided = plan(pipeline, observed, environment, now)
    for record in decided.records:
        await ports.history.write(record)
    if decided.serve_config is not None:
        decided = await _put(pipeline, ports, environment, now, observed, decided)
    if decided.status != observed.status:
        await ports.status.write(decided.status)
    for event in (*decided.events, *decided.begun):
        await ports.events.emit(event)
    for record in decided.prune:
        await ports.history.delete(record)
    return decided


async def observe(ports: Ports) -> Observed:
    """Everything that the engine may know. What does not answer is marked as such and never guessed."""
    records = await ports.history.list()
    status = await ports.status.read()
    try:
        applications = await ports.serve.applications()
    except UnreachableError as error:
        return Observed("Unreachable", str(error), records=records, status=status)
    if applications is None:
        return Observed("NotStarted", records=records, status=status)
    acks: tuple[RoutingAck, ...] | None = None
    ready: bool | None = None
    not_ready: tuple[str, ...] = ()
    if INGRESS in applications:
        try:
            ready, not_ready = await ports.routing.ready()
            acks = await ports.routing.acks()
        except UnreachableError:
            pass  # the engine waits for those who did not answer
    return Observed(
        "Running",
        applications=applications,
        acks=acks,
        ready=ready,
        not_ready=not_ready,
        records=records,
        status=status,
        capacity=await _capacity(ports),
    )


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
