"""How revisions replace each other.

One node, BlueGreen (`Stage`); where it stands is read from what is deployed, never remembered:

                      app is up and healthy           every replica of ingress and       every one of them uses it
                      (Inline: at once)               holders knows the candidate        => new checkpoint
    WAITING ──▶ STARTING ──────────────────▶ OFFERED ───────────────────────▶ SWITCHED ───────────────────────▶ stable
       ▲           │    table: S 100            │    table: S 100, T 0          │    table: T 100             │
       │           │                            │                               │                             ▼
       │           └───────── gave up, or past its deadline ────────────────────┘               old application drains,
       │                             ▼                                                          goes when nobody uses it
       └── 5, 10, 20 … 60 min ── FAILED (in the checkpoint); table: S 100, the candidate's application is taken out

A change of the graph's shape (its steps, the set of nodes, who holds whom) takes all nodes through STARTING and OFFERED
and then switches graph and nodes in one table. A node without a stable revision goes the same way, its table empty
before. The ingress itself is replaced in place by Serve when its code or hooks change.

An Inline revision is offered in the table itself when the ingress's process holds its code already. Otherwise it runs
on replicas of its own until it is promoted; then the ingress is replaced by one with the new code, whose table names
the revision inline, and those replicas drain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from servepipe_operator.engine.deployed import Deployed
from servepipe_operator.engine.goal import Goal, Live, NodeGoal, covers
from servepipe_operator.engine.health import alive, is_ready
from servepipe_operator.engine.history import Checkpoint, Failure, Memory, Unit
from servepipe_operator.engine.names import INGRESS, application
from servepipe_operator.engine.pools import Slot
from servepipe_operator.engine.room import Hindrance, hindrance
from servepipe_operator.engine.scaling import candidate_bounds, wanted
from servepipe_operator.engine.serve_config import demand
from servepipe_operator.engine.state import Application, Capacity, Environment, Json
from servepipe_operator.engine.watch import Watch

__all__ = [
    "Candidate",
    "Rollout",
    "Stage",
    "View",
    "attempt_of",
    "backing_off",
    "look",
    "retry_at",
    "without_new_ingress",
]

_RETRY_FIRST_S = 300
_RETRY_MOST_S = 3600


class Stage(Enum):
    """Where a candidate stands; see the drawing above."""

    WAITING = "Waiting"
    FAILED = "Failed"
    STARTING = "Starting"
    OFFERED = "Offered"
    SWITCHED = "Switched"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A revision that is to replace the stable one.

    Args:
        in_place: It is an instance in the ingress's process, not an application.
        attempt: The nonce with which it runs.
        ready: It could answer all requests now.
        no_room: A replica was not placed.
        since: When it was started (epoch seconds), as far as status tells.
        watched_s: How long it has been watched of its deadline; None while that does not count.
    """

    node: str
    revision: str
    stage: Stage
    in_place: bool
    attempt: int
    ready: bool = False
    no_room: bool = False
    since: float = 0.0
    watched_s: int | None = None

    @property
    def active(self) -> bool:
        return self.stage not in (Stage.WAITING, Stage.FAILED)

    @property
    def weight(self) -> int:
        return 100 if self.stage is Stage.SWITCHED else 0


@dataclass(frozen=True, slots=True)
class View:
    """Everything that decisions are made from.

    Args:
        old_lives: Live settings of the nodes by the name of an older spec.
        started: When each candidate's application was started, by name, as far as status tells.
        watch: How long what has a deadline has been watched.
        slots: As in `Observed`.
    """

    goal: Goal
    memory: Memory
    deployed: Deployed
    environment: Environment
    capacity: Capacity | None
    old_lives: Mapping[str, Mapping[str, Live]]
    started: Mapping[str, float]
    watch: Watch
    now: float
    slots: tuple[Slot, ...] | None = None

    def identity(self, node: str, revision: str) -> Json:
        """Of a revision of a node or of the ingress, from history or, for what is new, from the goal."""
        goal = self.goal.ingress if node == INGRESS else self.goal.nodes.get(node)
        if goal is not None and goal.revision == revision:
            return goal.identity
        return self.memory.revisions[application(node, revision)]

    def hindrance(self, found: Application | None, identity: Json) -> Hindrance | None:
        """What keeps replicas of an application from starting."""
        return hindrance(found, demand(identity, self.environment), self.capacity, self.slots)

    def lacks_room(self, found: Application | None, identity: Json) -> bool:
        """Whether one of its replicas waits for room."""
        found_hindrance = self.hindrance(found, identity)
        return found_hindrance is not None and found_hindrance.no_room


@dataclass(frozen=True, slots=True)
class Rollout:
    """What is to be deployed.

    Args:
        candidates: By node; nodes whose stable revision is the wanted one have none.
        reshaping: The graph's shape is to change.
        switched: The table has the new graph (only while reshaping).
        ingress: Revision of the ingress that is to run.
        ingress_attempt: Its nonce.
        replacing_ingress: It is not the stable one yet.
        ingress_waits: The ingress has to be replaced, but not now.
        ingress_watched_s: As `Candidate.watched_s`, for the ingress that replaces the stable one.
    """

    candidates: Mapping[str, Candidate]
    reshaping: bool
    switched: bool
    ingress: str
    ingress_attempt: int
    replacing_ingress: bool
    ingress_waits: bool
    ingress_watched_s: int | None = None


def retry_at(failed: Failure) -> float:
    """When a failed revision is tried again: after 5, 10, 20 … at most 60 minutes."""
    doubled = _RETRY_FIRST_S << min(failed.attempts - 1, 10)
    return failed.at + min(doubled, _RETRY_MOST_S)


def backing_off(unit: Unit, revision: str, token: str, now: float) -> bool:
    """Whether ``revision`` failed and is not to be tried yet."""
    failed = unit.failed
    return failed is not None and failed.revision == revision and failed.token == token and now < retry_at(failed)


def attempt_of(unit: Unit, revision: str, waiting: bool = False) -> int:
    """The nonce of a revision: Serve starts again what failed only when something about it changed."""
    if unit.failed is not None and unit.failed.revision == revision:
        return unit.failed.attempts - (1 if waiting else 0)
    return unit.attempt if unit.stable == revision else 0


def look(view: View, checkpoint: Checkpoint) -> Rollout:
    """What is to be deployed, given what is remembered and what runs."""
    goal = view.goal
    reshaping = checkpoint.graph != goal.graph_revision
    pending = [node for name, node in goal.nodes.items() if checkpoint.unit(name).stable != node.revision]
    active = _select(view, checkpoint, pending, reshaping)
    candidates = {node.name: _candidate(view, checkpoint, node, node.name in active) for node in pending}
    switched = False
    if reshaping:
        switched = all(candidate.stage is Stage.SWITCHED for candidate in candidates.values())
        if not switched:
            # One table for all: until every candidate can take over, none does.
            candidates = {name: _held_back(candidate) for name, candidate in candidates.items()}
    revision, waits = _ingress(view, checkpoint, candidates.values(), reshaping, switched)
    unit = checkpoint.ingress
    attempt = attempt_of(unit, revision, backing_off(unit, revision, "", view.now))
    return Rollout(
        candidates=candidates,
        reshaping=reshaping,
        switched=switched,
        ingress=revision,
        ingress_attempt=attempt,
        replacing_ingress=revision != unit.stable,
        ingress_waits=waits,
        ingress_watched_s=_ingress_watched(view, unit, revision, attempt),
    )


def without_new_ingress(rollout: Rollout, checkpoint: Checkpoint) -> Rollout:
    """The same while the new ingress has to wait; with it waits a graph that needs it."""
    stable = checkpoint.ingress.stable
    assert stable is not None
    candidates = rollout.candidates
    if rollout.reshaping:
        candidates = {name: _held_back(candidate) for name, candidate in candidates.items()}
    return replace(
        rollout,
        candidates=candidates,
        switched=False,
        ingress=stable,
        ingress_attempt=attempt_of(checkpoint.ingress, stable),
        replacing_ingress=False,
        ingress_waits=True,
        ingress_watched_s=None,
    )


def _held_back(candidate: Candidate) -> Candidate:
    return replace(candidate, stage=Stage.OFFERED) if candidate.stage is Stage.SWITCHED else candidate


def _select(view: View, checkpoint: Checkpoint, pending: list[NodeGoal], reshaping: bool) -> set[str]:
    """The nodes whose candidates run now: one after the other, but all at once where nobody is served yet."""
    tried = [
        node
        for node in pending
        if not backing_off(checkpoint.unit(node.name), node.revision, node.live.retry_token, view.now)
    ]
    if _restoring(view, checkpoint):
        return {node.name for node in tried if _begun(view, node)}
    if reshaping:
        return {node.name for node in tried}
    new = {node.name for node in tried if checkpoint.unit(node.name).stable is None}
    begun = {node.name for node in tried if node.name not in new and _begun(view, node)}
    queue = [node.name for node in tried if node.name not in new | begun]
    if _replacing_ingress(view, checkpoint):
        queue = []
    # What still drains takes room too.
    draining = {
        name
        for name, unit in checkpoint.nodes.items()
        if set(view.deployed.of_node(name)) - {application(name, unit.stable or "")}
    }
    free = view.goal.max_concurrent_upgrades - len(begun | (draining - new))
    return new | begun | set(queue[: max(0, free)])


def _restoring(view: View, checkpoint: Checkpoint) -> bool:
    """Serve lacks an application that callers need: its head was lost, or nothing ran while suspended.

    That one is sent first, so that it and no candidate gets the room that there is.
    """
    for name, unit in checkpoint.nodes.items():
        lives = view.goal.nodes.get(name), view.old_lives.get(unit.live, {}).get(name)
        inline = any((live.live if isinstance(live, NodeGoal) else live).inline for live in lives if live)
        if unit.stable and not inline and application(name, unit.stable) not in view.deployed.applications:
            return True
    return False


def _begun(view: View, node: NodeGoal) -> bool:
    return (
        application(node.name, node.revision) in view.deployed.applications
        or view.deployed.route(node.name, node.revision) is not None
    )


def _candidate(view: View, checkpoint: Checkpoint, node: NodeGoal, active: bool) -> Candidate:
    unit = checkpoint.unit(node.name)
    waiting = backing_off(unit, node.revision, node.live.retry_token, view.now)
    candidate = Candidate(
        node=node.name,
        revision=node.revision,
        stage=Stage.FAILED if waiting else Stage.WAITING,
        in_place=node.live.inline and covers(_process(view, checkpoint), node.identity),
        attempt=attempt_of(unit, node.revision, waiting),
    )
    return _placed(view, checkpoint, node, candidate) if active else candidate


def _placed(view: View, checkpoint: Checkpoint, node: NodeGoal, candidate: Candidate) -> Candidate:
    """How far a candidate that may run has come."""
    deployed = view.deployed
    name = application(node.name, node.revision)
    found = deployed.applications.get(name)
    if found is not None and deployed.attempt(name) != candidate.attempt:
        found = None
    route = deployed.route(node.name, node.revision)
    if route is not None and route.inline is not candidate.in_place and (candidate.in_place or route.weight == 0):
        route = None  # from before its placement changed
    if route is not None and route.inline:
        serving = name not in deployed.errors
        ready = serving and deployed.settled
    else:
        stable = deployed.applications.get(application(node.name, checkpoint.unit(node.name).stable or ""))
        needed = wanted(candidate_bounds(node.live, found, stable), node.live)
        serving = found is not None and found.status != "DEPLOY_FAILED" and alive(found) >= min(needed, 1)
        ready = is_ready(found, needed)
    if route is not None and (serving if route.weight > 0 else ready and deployed.settled):
        stage = Stage.SWITCHED
    elif ready or candidate.in_place:
        stage = Stage.OFFERED
    else:
        stage = Stage.STARTING
    no_room = view.lacks_room(found, node.identity)
    since = view.started.get(name, view.now)
    watched_s = None
    # What is not there yet and what has no room makes no progress.
    if not no_room and (found is not None or candidate.in_place):
        watched_s = view.watch.seconds(name, candidate.attempt, node.live.deadline_s)
    return replace(candidate, stage=stage, ready=ready, no_room=no_room, since=since, watched_s=watched_s)


# --- The ingress ------------------------------------------------------------------------------------------------------


def _process(view: View, checkpoint: Checkpoint) -> Json:
    """Identity of the process that is the ingress now, or will be the first."""
    stable = checkpoint.ingress.stable
    return view.identity(INGRESS, stable) if stable else view.goal.ingress.identity


def _suffices(stable: Json, goal: Json) -> bool:
    """Whether the process that runs can do all that the goal asks for; code that it no longer needs does no harm."""
    return {**stable, "codes": []} == {**goal, "codes": []} and set(goal["codes"]) <= set(stable["codes"])


def _replacing_ingress(view: View, checkpoint: Checkpoint) -> bool:
    """Serve is replacing the ingress by the one that the goal asks for."""
    goal, unit = view.goal.ingress, checkpoint.ingress
    return (
        unit.stable is not None
        and view.deployed.ingress == goal.revision != unit.stable
        and not _suffices(_process(view, checkpoint), goal.identity)
        and not backing_off(unit, goal.revision, "", view.now)
    )


def _ingress_watched(view: View, unit: Unit, revision: str, attempt: int) -> int | None:
    deployed = view.deployed
    found = deployed.applications.get(INGRESS)
    replaces = unit.stable not in (None, revision) and deployed.ingress == revision
    if found is None or not replaces or deployed.attempt(INGRESS) != attempt or deployed.settled:
        return None
    if view.lacks_room(found, view.identity(INGRESS, revision)):
        return None
    return view.watch.seconds(application(INGRESS, revision), attempt, view.goal.deadline_s)


def _ingress(
    view: View, checkpoint: Checkpoint, candidates: Iterable[Candidate], reshaping: bool, switched: bool
) -> tuple[str, bool]:
    """The revision of the ingress that is to run, and whether another one has to wait."""
    goal, unit = view.goal.ingress, checkpoint.ingress
    if unit.stable is None:
        return goal.revision, False
    if _suffices(_process(view, checkpoint), goal.identity) or backing_off(unit, goal.revision, "", view.now):
        return unit.stable, False
    if reshaping:
        return (goal.revision, False) if switched else (unit.stable, True)
    if _replacing_ingress(view, checkpoint):
        return goal.revision, False
    # One process holds one version of a module: it is replaced when all Inline nodes agree on theirs.
    if any(candidate.active or view.goal.nodes[candidate.node].live.inline for candidate in candidates):
        return unit.stable, True
    return goal.revision, False
