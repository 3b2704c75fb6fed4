"""One node in the status: its stable revision, its candidate, and why it is not ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from servepipe_operator.engine.goal import Live
from servepipe_operator.engine.health import alive, failure, headline, is_ready, running
from servepipe_operator.engine.history import Checkpoint, Failure
from servepipe_operator.engine.layout import Layout, live_of
from servepipe_operator.engine.names import application
from servepipe_operator.engine.reasons import CandidateReason
from servepipe_operator.engine.rollout import Candidate, Stage, View, retry_at
from servepipe_operator.engine.state import Application, Json
from servepipe_operator.engine.times import timestamp

__all__ = ["REFUSED", "NodeReport", "node_report"]

#: The state of a node, and the reason, when a replica keeps the configuration that it has.
REFUSED: Final = "ConfigurationRefused"

#: What is said of a candidate that is on its way.
_STAGES: dict[Stage, CandidateReason] = {
    Stage.STARTING: "Starting",
    Stage.OFFERED: "Offered",
    Stage.SWITCHED: "Switched",
}


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What is to be said of one node.

    Args:
        json: Its part of ``status.nodes``.
        ready: What NodesReady counts.
        available: What callers see.
        off: By choice.
        why: It is not ready.
        no_room: What a replica of it waits for, or "".
    """

    json: Json
    ready: bool
    available: bool
    off: bool
    why: str = ""
    no_room: str = ""


def node_report(view: View, checkpoint: Checkpoint, layout: Layout, name: str) -> NodeReport:
    """What is to be said of the node ``name``, of the spec or of what still serves."""
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
        wanted = candidate is not None and candidate.revision == unit.failed.revision
        json["failedRevision"] = _failed(unit.failed, retried=wanted)
        if candidate is not None and candidate.stage is Stage.FAILED:
            why = f"{name}: revision {unit.failed.revision} failed: {unit.failed.message}"
    return NodeReport(json, ready, available, live.scale.off, why, no_room)


def _stable(view: View, name: str, revision: str, live: Live) -> tuple[Json, bool, bool, str, str]:
    route = view.deployed.route(name, revision)
    found = view.deployed.applications.get(application(name, revision))
    # Without a route it is where it would be: in the ingress, unless it still has replicas of its own.
    if live.inline and (route.inline if route is not None else found is None):
        error = view.deployed.errors.get(application(name, revision), "")
        up = not error and view.deployed.ingress_answers
        state = "Failed" if error else "Running" if up else "Suspended" if view.goal.suspend else "Missing"
        json: Json = {"revision": revision, "placement": "Inline", "state": state}
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
        "state": "Suspended" if found is None and view.goal.suspend else _state(found, ready, live, no_room),
    }
    held = f"{name} is being turned off" if live.scale.off else f"{name} has {count} of {wanted} replicas"
    why = no_room or (held if found else f"{name} is not deployed")
    if found is not None and not ready and (failed := failure(found)):
        json["message"] = failed[1]
        why = f"{name}: {failed[1]}"
    elif no_room:
        json["message"] = no_room
    elif refused := view.deployed.errors.get(application(name, revision)):
        json |= {"state": REFUSED, "message": headline(refused)}
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
        return json | _waits("Waiting", "another upgrade goes first"), ""
    json["since"] = timestamp(candidate.since)
    found = view.deployed.applications.get(application(candidate.node, candidate.revision))
    if found is not None:
        json |= {"replicas": found.target_replicas, "readyReplicas": running(found)}
    no_room = _no_room(view, candidate.node, candidate.revision, found) if candidate.no_room else ""
    if no_room:
        return json | _waits("InsufficientCapacity", no_room), no_room
    if why := waiting.get(application(candidate.node, candidate.revision)):
        return json | _waits("WaitingForWorkers", why), ""
    return json | _waits(_STAGES[candidate.stage]), ""


def _waits(reason: CandidateReason, message: str = "") -> Json:
    return {"reason": reason, "message": message} if message else {"reason": reason}


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
