"""Ray Serve as the engine sees it, simulated: a fake clock, no processes.

It does what was measured of the real one where that is inconvenient: a PUT is the whole configuration and starts every
build again that is under way; while an application builds, and after its build failed, it shows no replicas though the
old ones serve; a replica that cannot be placed waits for ever; what failed to start is tried again only when something
about it changed. It also plays the replicas' part: they take new tables with a delay, hold requests of old ones, and
say so.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from servepipe_operator.engine.state import Application, Capacity, Replica, RoutingAck
from servepipe_operator.ports import ServeRejectedError

BUILD_S = 3.0
START_S = 2.0
RECONFIGURE_S = 0.4
SLOW_RECONFIGURE_S = 2.6
"""Of nodes: a holder takes its table later than the ingress."""
REQUEST_S = (0.5, 9.0, 3.0)
"""How long requests take, one after the other."""
DRAIN_S = 3.0
PROXY_DRAIN_S = 30.0
TRIES = 3


@dataclass(frozen=True)
class Timing:
    """How long things take, in seconds of the clock."""

    build_s: float = BUILD_S
    start_s: float = START_S
    reconfigure_s: float = RECONFIGURE_S
    slow_reconfigure_s: float = SLOW_RECONFIGURE_S
    drain_s: float = DRAIN_S
    proxy_drain_s: float = PROXY_DRAIN_S

    def faster(self, factor: float) -> Timing:
        return Timing(*(getattr(self, one.name) / factor for one in fields(self)))


#: What a node's first constructor argument may ask for.
GOOD, BUILD_FAILS, CRASHES, HANGS, BUILD_HANGS = "good", "build-fails", "crashes", "hangs", "build-hangs"
BAD = (BUILD_FAILS, CRASHES, HANGS, BUILD_HANGS)
MISMATCHES = "mismatches"
#: What a replica raises that does not start.
RAISES = {
    CRASHES: "ValueError: weights are missing",
    MISMATCHES: "servepipe.errors.RuntimeMismatchError: this replica has servepipe 0.2.0, Ray's head 0.1.0",
}


class Clock:
    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Request:
    """Until when it runs, the revisions that it drew, and those of them that are applications."""

    until: float
    pins: Mapping[str, str]
    applications: tuple[str, ...]


@dataclass
class SimReplica:
    id: str
    version: str
    user_config: dict[str, Any]
    placed_at: float | None = None
    node: str = ""
    """Where several machines are simulated."""
    state: str = "STARTING"
    gone_at: float = 0.0
    next_config: tuple[float, dict[str, Any]] | None = None
    requests: list[Request] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.state in ("RUNNING", "UPDATING")


@dataclass
class SimApplication:
    name: str
    config: dict[str, Any]
    version: str
    deployed_at: float
    built_at: float | None
    built_version: str = ""
    failed: str = ""
    """"build" or "start", and what it says."""
    message: str = ""
    tries: int = 0
    target: int = 0
    target_low_at: float = 0.0
    replicas: list[SimReplica] = field(default_factory=list)
    deleting: bool = False

    @property
    def deployment(self) -> dict[str, Any]:
        return self.config["deployments"][0]

    def alive(self) -> list[SimReplica]:
        return [replica for replica in self.replicas if replica.alive]


class SimulatedServe:
    """Args:
    clock: Shared with whoever drives the simulation.
    cpus: Logical CPUs of the machine.
    timing: How long things take.
    """

    def __init__(self, clock: Clock, cpus: float = 1000.0, timing: Timing | None = None) -> None:
        self.clock = clock
        self.cpus = cpus
        self.timing = timing or Timing()
        self.running = False
        self.applications: dict[str, SimApplication] = {}
        self.puts: list[tuple[float, dict[str, Any]]] = []
        self.problems: list[str] = []
        """What must never happen and did."""
        self.deadline_s = 600.0
        """How long a build must be left in peace."""
        self.sabotaged_until = 0.0
        self.deaf: set[str] = set()
        """Replicas that do not take a new ``user_config``."""
        self.stuck: set[str] = set()
        """Applications whose replicas never finish starting."""
        self._ids = itertools.count(1)
        self._durations = itertools.cycle(REQUEST_S)

    # --- What the engine can do -------------------------------------------------------------------------------------

    def put(self, config: dict[str, Any]) -> None:
        self.tick()
        config = json.loads(json.dumps(config))
        self._check(config)
        self.running = True
        self.puts.append((self.clock.now, config))
        wanted = {application["name"]: application for application in config["applications"]}
        for name, application in self.applications.items():
            if name not in wanted and not application.deleting:
                self._delete(application)
        for name, new in wanted.items():
            found = self.applications.get(name)
            version = _version(new)
            if found is None:
                self.applications[name] = SimApplication(
                    name, new, version, self.clock.now, self.clock.now + self.timing.build_s
                )
                continue
            building = found.built_at is not None
            rebuild = version != found.version or building or found.failed.startswith("build") or found.deleting
            old_config, found.config, found.deleting = found.config, new, False
            if rebuild:
                found.version, found.deployed_at = version, self.clock.now
                found.built_at, found.failed, found.tries = self.clock.now + self.timing.build_s, "", 0
            elif old_config != new:
                found.deployed_at = self.clock.now
                self._apply(found)
        self.tick()

    def observe(self) -> dict[str, Application] | None:
        self.tick()
        if not self.running:
            return None
        return {name: self._seen(application) for name, application in self.applications.items()}

    def capacity(self) -> Capacity:
        self.tick()
        return Capacity({"CPU": self.cpus}, {"CPU": self.cpus - self._used()})

    def acks(self) -> tuple[RoutingAck, ...] | None:
        """None when there is no ingress to ask."""
        self.tick()
        ingress = self.applications.get("ingress")
        if ingress is None or not ingress.alive():
            return None
        acks = []
        for application in self.applications.values():
            for replica in application.alive():
                config = replica.user_config
                if application.name == "ingress" or config.get("routes") or config.get("userConfig"):
                    acks.append(self._ack(application, replica))
        return tuple(acks)

    def ready(self) -> tuple[bool, tuple[str, ...]] | None:
        self.tick()
        ingress = self.applications.get("ingress")
        if ingress is None or not ingress.alive():
            return None
        table = ingress.alive()[0].user_config
        missing = []
        for node, entry in table["nodes"].items():
            called = [route for route in entry["routes"] if route["weight"] > 0]
            if entry["off"] or (not called and not entry["routes"]):
                continue
            for route in called:
                name = f"{node}--{route['revision']}"
                if "inline" not in route and not self.answers(name):
                    missing.append(node)
        return not missing, tuple(missing)

    # --- What others do to it ---------------------------------------------------------------------------------------

    def lose_state(self) -> None:
        """The head is gone and comes back with nothing."""
        self.applications.clear()
        self.running = False
        self._sabotaged()

    def delete_by_hand(self, name: str) -> None:
        if name in self.applications:
            self._delete(self.applications[name])
            self._sabotaged()

    def edit_by_hand(self, name: str) -> None:
        """Somebody PUTs another table or another number of replicas."""
        if name in self.applications and not self.applications[name].deleting:
            application = self.applications[name]
            application.config = json.loads(json.dumps(application.config))
            application.deployment["max_ongoing_requests"] = 77
            self._apply(application)

    def kill_replica(self, name: str) -> None:
        application = self.applications.get(name)
        if application is not None and application.alive():
            application.replicas.remove(application.alive()[0])
            self._sabotaged()

    def _sabotaged(self) -> None:
        self.sabotaged_until = self.clock.now + 60.0

    # --- Callers ----------------------------------------------------------------------------------------------------

    def request(self, seconds: float | None = None) -> None:
        """One request at every replica of the ingress; each must find every node that its table sends it to."""
        self.tick()
        seconds = next(self._durations) if seconds is None else seconds
        ingress = self.applications.get("ingress")
        for replica in ingress.alive() if ingress else ():
            pins: dict[str, str] = {}
            called: list[str] = []
            for node, entry in replica.user_config["nodes"].items():
                if entry["off"]:
                    continue
                for route in entry["routes"]:
                    if route["weight"] == 0:
                        continue
                    name = f"{node}--{route['revision']}"
                    pins[node] = route["revision"]
                    if "inline" not in route:
                        called.append(name)
                        self._must_answer(name, "a request")
                    elif route["inline"]["code"] and route["inline"]["code"] not in replica.version:
                        self._complain(f"{name} is called inline in a process without its code")
            replica.requests.append(Request(self.clock.now + seconds, pins, tuple(called)))
            for holder in self.applications.values():
                self._through_holder(holder, pins)

    def _through_holder(self, holder: SimApplication, pins: Mapping[str, str]) -> None:
        node, _, revision = holder.name.partition("--")
        if pins.get(node) != revision:
            return
        for replica in holder.alive():
            for held, routes in replica.user_config.get("routes", {}).items():
                if held in pins and pins[held] not in [route["revision"] for route in routes]:
                    self._complain(f"{holder.name} is asked for {held}--{pins[held]}, which its table does not have")

    def _must_answer(self, name: str, who: str) -> None:
        if not self.answers(name):
            self._complain(f"{who} needs {name}, which does not answer")

    def answers(self, name: str) -> bool:
        """Whether somebody who calls this application is served."""
        found = self.applications.get(name)
        if found is None or found.deleting:
            return False
        return bool(found.alive()) or found.deployment["autoscaling_config"]["min_replicas"] == 0

    def _complain(self, text: str) -> None:
        if self.clock.now >= self.sabotaged_until:
            self.problems.append(f"at {self.clock.now - 1_700_000_000:.1f}: {text}")

    # --- How time passes --------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let happen whatever is due by now."""
        now = self.clock.now
        for application in list(self.applications.values()):
            self._build(application, now)
            self._run(application, now)
            self._scale(application, now)
            if application.deleting and not application.replicas:
                del self.applications[application.name]
        for application in self.applications.values():
            for replica in application.replicas:
                replica.requests = [request for request in replica.requests if request.until > now]
                for request in replica.requests:
                    for name in request.applications:
                        found = self.applications.get(name)
                        if found is None or found.deleting:
                            self._complain(f"a request in flight needs {name}, which was removed")
                        else:
                            self._through_holder(found, request.pins)

    def _build(self, application: SimApplication, now: float) -> None:
        if application.built_at is None or now < application.built_at or application.deleting:
            return
        behaviour = _behaviour(application.config)
        if behaviour == BUILD_HANGS:
            return
        application.built_at = None
        if behaviour == BUILD_FAILS:
            application.failed = "build"
            application.message = (
                f"Deploying app '{application.name}' failed with exception:\nTraceback (most recent call last):\n"
                "  File \"model.py\", line 1, in <module>\nModuleNotFoundError: No module named 'model'"
            )
            return
        application.built_version = application.version
        self._apply(application)

    def _apply(self, application: SimApplication) -> None:
        bounds = application.deployment["autoscaling_config"]
        application.target = min(max(application.target, bounds["min_replicas"]), bounds["max_replicas"])
        if application.target > bounds["min_replicas"] == 0:
            application.target_low_at = self.clock.now + bounds.get("downscale_delay_s", 600)
        for replica in application.replicas:
            if replica.state in ("RUNNING", "UPDATING", "STARTING") and replica.version == application.version:
                wanted = application.deployment["user_config"]
                if replica.user_config != wanted or replica.next_config is not None:
                    timing = self.timing
                    delay = timing.reconfigure_s if application.name == "ingress" else timing.slow_reconfigure_s
                    replica.next_config = (self.clock.now + delay, wanted)
                    if replica.state == "RUNNING":
                        replica.state = "UPDATING"

    def _run(self, application: SimApplication, now: float) -> None:
        behaviour = _behaviour(application.config)
        for replica in list(application.replicas):
            if replica.state == "STOPPING" and now >= replica.gone_at:
                application.replicas.remove(replica)
            elif replica.state == "STARTING":
                if replica.placed_at is None and self.place(application, replica):
                    replica.placed_at = now
                if (
                    replica.placed_at is None
                    or now < replica.placed_at + self.timing.start_s
                    or behaviour == HANGS
                    or application.name in self.stuck
                ):
                    continue
                if behaviour in RAISES:
                    application.replicas.remove(replica)
                    application.tries += 1
                    if application.tries >= TRIES:
                        application.failed = "start"
                        application.message = (
                            "The deployment failed to start 3 times in a row. Error:\n"
                            "Traceback (most recent call last):\n"
                            '  File "model.py", line 3, in __init__\n    raise ValueError("weights are missing")\n'
                            f"{RAISES[behaviour]}"
                        )
                else:
                    replica.state = "RUNNING" if replica.next_config is None else "UPDATING"
            due = replica.next_config is not None and now >= replica.next_config[0]
            if due and replica.state != "STOPPING" and replica.id not in self.deaf:
                assert replica.next_config is not None
                replica.user_config, replica.next_config = replica.next_config[1], None
                if replica.state == "UPDATING":
                    replica.state = "RUNNING"

    def _scale(self, application: SimApplication, now: float) -> None:
        if application.deleting or application.built_at is not None or application.failed:
            return
        bounds = application.deployment["autoscaling_config"]
        if bounds["min_replicas"] == 0 and application.target > 0 and now >= application.target_low_at:
            application.target = 0
        current = [r for r in application.replicas if r.version == application.version and r.state != "STOPPING"]
        old = [r for r in application.replicas if r.version != application.version and r.state != "STOPPING"]
        for _ in range(application.target - len(current)):
            config = application.deployment["user_config"]
            replica = SimReplica(f"{application.name}#{next(self._ids)}", application.version, config)
            application.replicas.append(replica)
        for replica in current[application.target :]:
            self._stop(replica)
        started = sum(replica.state == "RUNNING" for replica in current)
        if started >= application.target:
            for replica in old:  # surge: the old go when the new are there
                self._stop(replica)

    def _stop(self, replica: SimReplica) -> None:
        # Serve waits for the replica's own requests.
        replica.gone_at = max([self.clock.now + self.timing.drain_s, *(request.until for request in replica.requests)])
        replica.state = "STOPPING"

    def _delete(self, application: SimApplication) -> None:
        application.deleting = True
        application.built_at = None
        for replica in application.replicas:
            if replica.state != "STOPPING":
                self._stop(replica)

    # --- Views ------------------------------------------------------------------------------------------------------

    def _seen(self, application: SimApplication) -> Application:
        hidden = application.built_at is not None or application.failed == "build"
        running = sum(replica.state == "RUNNING" for replica in application.replicas)
        old = any(r.version != application.version for r in application.replicas if r.state != "STOPPING")
        if application.deleting:
            status, deployment_status = "DELETING", ""
        elif application.built_at is not None:
            status, deployment_status = "DEPLOYING", ""
        elif application.failed == "build":
            status, deployment_status = "DEPLOY_FAILED", ""
        elif application.failed:
            status, deployment_status = "DEPLOY_FAILED", "DEPLOY_FAILED"
        elif running >= application.target and not old:
            status, deployment_status = "RUNNING", "HEALTHY"
        else:
            status, deployment_status = "DEPLOYING", "UPDATING"
        return Application(
            name=application.name,
            status=status,
            message=application.message if hidden or application.failed else "",
            config=application.config,
            deployment_status=deployment_status,
            deployment_message=application.message if application.failed == "start" else "",
            replicas=()
            if hidden
            else tuple(
                Replica(replica.id, replica.state, pid=None if replica.placed_at is None else 1)
                for replica in application.replicas
            ),
            target_replicas=0 if hidden else application.target,
            deployed_at=application.deployed_at,
        )

    def _ack(self, application: SimApplication, replica: SimReplica) -> RoutingAck:
        busy: Counter[str] = Counter()
        for request in replica.requests:
            busy.update(f"{node}--{revision}" for node, revision in request.pins.items())
        errors = {}
        for node, entry in replica.user_config.get("nodes", {}).items():
            for route in entry["routes"]:
                if "inline" in route and route["inline"]["args"][:1] and route["inline"]["args"][0] in BAD:
                    errors[f"{node}--{route['revision']}"] = "ValueError: cannot be built"
        if (replica.user_config.get("userConfig") or {}).get("refused"):
            errors[application.name] = "userConfig: ValueError: not this"
        return RoutingAck(replica.id, application.name, replica.user_config["table"], dict(busy), errors)

    def place(self, application: SimApplication, replica: SimReplica) -> bool:
        """Whether there is room for a new replica, which then has it."""
        return self._used() + _cpus(application.config) <= self.cpus

    def _used(self) -> float:
        return sum(
            _cpus(application.config)
            for application in self.applications.values()
            for replica in application.replicas
            if replica.placed_at is not None
        )

    def _check(self, config: dict[str, Any]) -> None:
        """What the real one refuses, and what must not be asked of it."""
        names = [application["name"] for application in config["applications"]]
        prefixes = [application["route_prefix"] for application in config["applications"]]
        exposed = [prefix for prefix in prefixes if prefix is not None]
        if len(set(names)) < len(names) or len(set(exposed)) < len(exposed):
            raise ServeRejectedError("names and route prefixes must be unique")
        if "request_timeout_s" not in config["http_options"]:
            self.problems.append("http_options come too late after the first PUT")
        for application in config["applications"]:
            (deployment,) = application["deployments"]
            if deployment["autoscaling_config"]["max_replicas"] < 1:
                raise ServeRejectedError("max_replicas must be positive")
            if deployment["max_surge_percent"] != 100:
                self.problems.append("old replicas would stop before new ones start")
        for name, found in self.applications.items():
            building = found.built_at is not None and not found.deleting
            if building and name in names and self.clock.now - found.deployed_at < self.deadline_s:
                self.problems.append(f"a PUT while {name} builds")


def _version(application: Mapping[str, Any]) -> str:
    options = application["deployments"][0]["ray_actor_options"]
    return json.dumps([application["import_path"], application["args"], options], sort_keys=True)


def _behaviour(application: Mapping[str, Any]) -> str:
    arguments = application["args"].get("args") or [GOOD]
    if application["args"].get("preprocessor") == "broken:hook":
        return CRASHES
    return arguments[0] if arguments[0] in (*BAD, MISMATCHES) else GOOD


def _cpus(application: Mapping[str, Any]) -> float:
    return float(application["deployments"][0]["ray_actor_options"]["num_cpus"])
