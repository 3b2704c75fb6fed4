"""A RayCluster beside the simulated Serve: worker groups whose pods come with demand and go when they are idle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from simulated_world import World

from servepipe.api.problem import Problem
from servepipe.api.v1alpha1 import ServePipeline
from servepipe_operator.engine.pools import PodWish, Slot, slot_resource
from servepipe_operator.engine.state import ClusterDefaults, ClusterPlan, ClusterProblem, Json
from servepipe_operator.ports import ClusterState

DEFAULTS = ClusterDefaults("2.60.0", "runtime:ray{ray_version}")


class SimulatedCluster:
    """The `Cluster` port. What the operator must never do ends up in `problems`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.name = ""
        self.groups: list[Slot] = []
        self.wishes: dict[str, PodWish] = {}
        self.plan: ClusterPlan | None = None
        self.refused: tuple[Problem, ...] = ()
        self.problem: ClusterProblem | None = None
        self.up = True
        self.troubles: tuple[ClusterProblem, ...] = ()
        self.stuck_pods: dict[str, int] = {}
        """Pods by group that do not go although nothing runs on them."""
        self.problems: list[str] = []
        self._slots: dict[tuple[str, str], str] = {}

    async def look(self, kept: Json | None) -> ClusterState:
        self._autoscale()
        if kept is None or not self.name:
            return ClusterState(
                self.problem or ClusterProblem("Creating", "is being created"), (), absent=True, up=False
            )
        if self.plan is not None and self.plan.suspend:
            return ClusterState(
                ClusterProblem("Suspended", "is suspended", suspending=True), tuple(self.groups), absent=True, up=False
            )
        return ClusterState(self.problem, tuple(self.groups), absent=False, up=self.up)

    async def refusals(self, pipeline: ServePipeline) -> tuple[Problem, ...]:
        return self.refused

    async def apply(self, plan: ClusterPlan) -> tuple[ClusterProblem, ...]:
        self.world.writes.append("cluster")
        self.world.call("cluster", lambda: self._apply(plan))
        return self.troubles

    def _apply(self, plan: ClusterPlan) -> None:
        if plan.name != self.name:
            self.name, self.groups, self.wishes = plan.name, [], {}
            self.world.serve.lose_state()
        if plan.suspend and not (self.plan and self.plan.suspend):
            self.world.serve.lose_state()
        self.plan = plan
        old = {slot.name: slot for slot in self.groups}
        if [slot.name for slot in plan.slots][: len(old)] != list(old):
            self.problems.append(f"groups {list(old)} became {[slot.name for slot in plan.slots]}")
        for slot in plan.slots:
            before = old.get(slot.name)
            if slot.wish is not None:
                if before is not None and not before.idle and before.contents != slot.contents:
                    self.problems.append(f"{slot.name} was rewritten in use")
                self.wishes[slot.name] = slot.wish
            elif before is None:
                self.problems.append(f"{slot.name} came without contents")
            if before is not None and slot.high < before.pods - before.ending:
                self.problems.append(f"{slot.name} was cut below its pods")
        self.groups = [replace(slot, wish=None) for slot in plan.slots]

    def _autoscale(self) -> None:
        """As many pods as there are replicas, those of a worker are shared, and never more than a group may have.

        KubeRay makes the fewest that a group may have by itself, and writes that number nowhere.
        """
        used: dict[str, int] = {}
        for application in self.world.serve.applications.values():
            self._slots[application.name, application.version] = slot_of(application.config)
            for one in application.replicas:
                slot = self._slots.get((application.name, one.version), "")
                used[slot] = used.get(slot, 0) + 1
        self.groups = [self._scaled(slot, min(used.get(slot.name, 0), slot.high)) for slot in self.groups]

    def _scaled(self, slot: Slot, needed: int) -> Slot:
        stuck = self.stuck_pods.get(slot.name, 0)
        replicas = needed if needed > slot.low else 0
        return replace(slot, replicas=replicas, pods=max(needed, stuck), ending=max(0, stuck - needed))


class ClusterWorld(World):
    """A `World` whose Serve runs in a `SimulatedCluster`; every PUT is checked against its worker groups."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.cluster = SimulatedCluster(self)
        self.environment = replace(self.environment, cluster=DEFAULTS)
        self.ports = replace(self.ports, cluster=self.cluster)
        put = self.serve.put

        def checked(config: dict[str, Any]) -> None:
            names = {slot.name for slot in self.cluster.groups}
            for application in config["applications"]:
                if slot_of(application) not in names:
                    self.cluster.problems.append(f"{application['name']} asks for {slot_of(application) or 'no slot'}")
            put(config)

        self.serve.put = checked  # type: ignore[method-assign]

    def slot(self, application: str) -> str:
        """The slot that the actors of an application ask for."""
        return slot_of(self.serve.applications[application].config)


def slot_of(config: Json) -> str:
    resources = config["deployments"][0].get("ray_actor_options", {}).get("resources", {})
    return next((name.removeprefix(slot_resource("")) for name in resources if name.startswith(slot_resource(""))), "")
