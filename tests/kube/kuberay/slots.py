"""Simulated Serve on the nodes of one Ray cluster: an actor starts only where its resources are free."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simulated_serve import Clock, SimApplication, SimReplica, SimulatedServe, Timing

Resources = dict[str, float]


class WallClock(Clock):
    """Real time, so that what Serve reports agrees with everybody else's clocks."""

    @property
    def now(self) -> float:
        return time.time()

    @now.setter
    def now(self, _: float) -> None: ...


@dataclass
class Node:
    """A pod that has joined."""

    name: str
    group: str
    ip: str
    resources: Resources
    idle_since: float = field(default_factory=time.time)
    served: bool = False
    """It had a replica at some time."""


class SlotServe(SimulatedServe):
    """`SimulatedServe` whose room is that of nodes which come and go."""

    def __init__(self, timing: Timing) -> None:
        super().__init__(WallClock(), timing=timing)
        self.nodes: dict[str, Node] = {}

    def put(self, config: dict[str, Any]) -> None:
        super().put(config)
        del self.puts[:-1]

    def join(self, node: Node) -> None:
        self.nodes[node.name] = node
        self.settle()

    def leave(self, name: str) -> None:
        """The node is gone, with everything on it."""
        if self.nodes.pop(name, None) is None:
            return
        for application in self.applications.values():
            application.replicas = [one for one in application.replicas if one.node != name]
        self.settle()

    def settle(self) -> None:
        """Everything that is due: what one step makes possible is done by the next."""
        for _ in range(3):
            self.tick()
        busy = {replica.node for _, replica in self._placed()}
        now = self.clock.now
        for node in self.nodes.values():
            if node.name in busy:
                node.idle_since, node.served = now, True

    def place(self, application: SimApplication, replica: SimReplica) -> bool:
        wanted = demand(application)
        for node in self.nodes.values():
            if fits(wanted, self.free(node)):
                replica.node = node.name
                return True
        return False

    def free(self, node: Node) -> Resources:
        """What a node has left."""
        left = dict(node.resources)
        for application, replica in self._placed():
            if replica.node == node.name:
                for name, amount in demand(application).items():
                    left[name] = left.get(name, 0) - amount
        return left

    def waiting(self) -> list[Resources]:
        """What each replica asks for that has no node."""
        return [
            demand(application)
            for application in self.applications.values()
            for replica in application.replicas
            if replica.placed_at is None and replica.state == "STARTING"
        ]

    def idle(self) -> list[Node]:
        """Nodes without replicas."""
        busy = {replica.node for _, replica in self._placed()}
        return [node for node in self.nodes.values() if node.name not in busy]

    def proxied(self) -> set[str]:
        """Nodes where Serve's proxy answers: those with a replica that serves."""
        return {replica.node for _, replica in self._placed() if replica.alive}

    def proxy_answers(self, name: str) -> bool:
        """Whether requests to a node are answered: without replicas a proxy drains for a while, and is not ready."""
        node = self.nodes.get(name)
        drains = node is not None and node.served and self.clock.now - node.idle_since < self.timing.proxy_drain_s
        return drains or name in self.proxied()

    def next_due(self) -> float | None:
        """When `settle` will have something to do, if nobody does anything before."""
        return min(self._due(), default=None)

    def _due(self) -> list[float]:
        due = []
        for application in self.applications.values():
            if application.built_at is not None and not application.deleting:
                due.append(application.built_at)
            bounds = application.deployment["autoscaling_config"]
            if bounds["min_replicas"] == 0 and application.target > 0:
                due.append(application.target_low_at)
            for replica in application.replicas:
                if replica.state == "STOPPING":
                    due.append(replica.gone_at)
                elif replica.state == "STARTING" and replica.placed_at is not None:
                    due.append(replica.placed_at + self.timing.start_s)
                if replica.next_config is not None and replica.id not in self.deaf:
                    due.append(replica.next_config[0])
        # What hangs is due for ever.
        now = self.clock.now
        return [at if at > now else now + 1.0 for at in due]

    def _placed(self) -> list[tuple[SimApplication, SimReplica]]:
        return [
            (application, replica)
            for application in self.applications.values()
            for replica in application.replicas
            if replica.placed_at is not None
        ]


def demand(application: SimApplication) -> Resources:
    """What one replica asks Ray for."""
    options: Mapping[str, Any] = application.deployment.get("ray_actor_options") or {}
    named = {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus", 0), "memory": options.get("memory", 0)}
    return {name: float(amount) for name, amount in {**named, **options.get("resources", {})}.items() if amount}


def fits(wanted: Mapping[str, float], free: Mapping[str, float]) -> bool:
    return all(free.get(name, 0.0) >= amount for name, amount in wanted.items())


__all__ = ["Node", "Resources", "SlotServe", "WallClock", "demand", "fits"]
