"""What Serve's report of one application means.

Serve's own traps are handled here and nowhere else: an application that builds, or whose build failed, shows no
deployment and no replicas although older replicas may serve; a build error stands in the application's message, a
replica's in the deployment's; a replica that finds no room is STARTING for ever and has no process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from servepipe_operator.engine.reasons import Reason
from servepipe_operator.engine.state import Application, Capacity

__all__ = ["alive", "building", "failure", "headline", "is_ready", "missing_resources", "running", "waits_for_room"]

#: States of replicas that take requests.
_ALIVE = frozenset({"RUNNING", "UPDATING", "PENDING_MIGRATION"})
_SETTLED = frozenset({"HEALTHY", "UPSCALING", "DOWNSCALING"})

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_RAISED = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:: .+|:)?\Z")
#: What a replica raises that has another servepipe or Ray than the head.
_MISMATCH = re.compile(r"(?:\w+\.)*RuntimeMismatchError: ")
_LONGEST = 300


def building(application: Application) -> bool:
    """Serve imports and builds it now; any PUT would start the build from the beginning."""
    return application.status in ("NOT_STARTED", "DEPLOYING") and not application.deployment_status


def running(application: Application) -> int:
    """Replicas that have started and passed their first health check."""
    return sum(replica.state == "RUNNING" for replica in application.replicas)


def alive(application: Application) -> int:
    """Replicas that take requests, also while they are being reconfigured."""
    return sum(replica.state in _ALIVE for replica in application.replicas)


def is_ready(application: Application | None, replicas: int) -> bool:
    """Healthy with at least so many replicas."""
    return (
        application is not None
        and application.status == "RUNNING"
        and application.deployment_status in _SETTLED
        and running(application) >= replicas
    )


def failure(application: Application) -> tuple[Reason, str] | None:
    """The reason and the error's first line when Serve has given up on it, else None."""
    if application.status != "DEPLOY_FAILED":
        return None
    if not application.deployment_status:
        return "BuildFailed", headline(application.message)
    told = headline(application.deployment_message or application.message)
    return "RuntimeMismatch" if _MISMATCH.match(told) else "ReplicaFailed", told


def headline(message: str) -> str:
    """The line of a message that says what is wrong: the exception of the last traceback, else the first line."""
    # Half a surrogate pair can be raised and not be stored: what is kept of it would differ at every look.
    whole = message.encode(errors="replace").decode()
    lines = [line.rstrip() for line in _ANSI.sub("", whole).splitlines() if line.strip()]
    raised = ""
    in_traceback = False
    for line in lines:
        if line.lstrip().startswith(("Traceback (most recent call last)", 'File "')):
            in_traceback = True
        elif in_traceback and not line.startswith(" ") and _RAISED.match(line):
            raised, in_traceback = line, False
    text = raised or (lines[0].strip() if lines else "no message")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def waits_for_room(application: Application | None, demand: Mapping[str, float], capacity: Capacity | None) -> bool:
    """Whether a replica was not placed because the machines have no room for it.

    Args:
        demand: What one replica asks for, by Ray's resource names.
        capacity: None where nobody can tell; then Serve's own message decides, which comes after 30 seconds.
    """
    if application is None or not any(r.state == "STARTING" and r.pid is None for r in application.replicas):
        return False
    if capacity is None:
        return "to be scheduled" in application.deployment_message
    return bool(missing_resources(demand, capacity))


def missing_resources(demand: Mapping[str, float], capacity: Capacity) -> str:
    """``"GPU: 1 needed, 0 free of 0"`` for each resource of which too little is free, or ``""``."""
    return "; ".join(
        f"{name}: {amount:g} needed, {capacity.available.get(name, 0):g} free of {capacity.total.get(name, 0):g}"
        for name, amount in sorted(demand.items())
        if amount > capacity.available.get(name, 0) + 1e-9
    )
