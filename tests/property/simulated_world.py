"""A world for one pipeline: simulated Serve, history and status in memory, and a shell that can be killed anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from simulated_serve import Clock, SimulatedServe

from servepipe.api.v1alpha1 import ServePipeline
from servepipe_operator.engine.state import Application, Capacity, Environment, Event, Json, Plan, Record, RoutingAck
from servepipe_operator.ports import ConflictError, Ports, UnreachableError
from servepipe_operator.reconcile import reconcile

T = TypeVar("T")


class KilledError(Exception):
    """The shell died here."""


class World:
    """Everything outside the engine, and `look`, which reconciles once.

    Args:
        cpus: Logical CPUs.
        fault: Called before each call of a port with its name; returns "" or what goes wrong: "unreachable",
            "unreachable-after" (it took effect, the answer was lost), "killed", "killed-after".
    """

    def __init__(self, cpus: float = 1000.0, fault: Callable[[str], str] = lambda call: "") -> None:
        self.clock = Clock()
        self.serve = SimulatedServe(self.clock, cpus)
        self.fault = fault
        self.records: dict[tuple[str, str, int], Record] = {}
        self.stale_records: dict[tuple[str, str, int], Record] | None = None
        """What reading history gives instead, as a cache that is behind would."""
        self.status: Json = {}
        self.events: list[Event] = []
        self.writes: list[str] = []
        self.environment = Environment(http={"host": "127.0.0.1", "port": 8000}, url="http://127.0.0.1:8000/")
        self.ports = Ports(_Serve(self), _Routing(self), _History(self), _Status(self), _Events(self))

    def look(self, pipeline: ServePipeline) -> Plan | None:
        """One reconcile; None when the shell was killed or found history unreachable."""
        self.writes = []
        coroutine = reconcile(pipeline, self.ports, self.environment, self.clock.now)
        try:
            coroutine.send(None)
        except StopIteration as finished:
            return finished.value
        except (KilledError, UnreachableError):
            return None
        raise AssertionError("a simulated port waited")

    def run(self, pipeline: ServePipeline, seconds: float, *, requests: bool = True) -> None:
        """Look again and again, as a shell would, for so long."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            plan = self.look(pipeline)
            pause = plan.look_again_after_s if plan else 1.0
            self.wait(min(pause, end - self.clock.now + 0.001), requests=requests)

    def wait(self, seconds: float, *, requests: bool = True) -> None:
        """Let time pass; callers send a request every second."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + 1.0)
            if requests:
                self.serve.request()
            else:
                self.serve.tick()

    def settle(self, pipeline: ServePipeline, within_s: float = 600.0) -> None:
        """Run until the pipeline is Ready. Fails with what it waits for when that takes too long."""
        end = self.clock.now + within_s
        while self.clock.now < end:
            plan = self.look(pipeline)
            if self.condition("Ready") == "True" and not self.condition("Reconciling"):
                return
            self.wait(plan.look_again_after_s if plan else 1.0)
        raise AssertionError(f"not ready after {within_s} s: {json.dumps(self.status, indent=1)}")

    def seen_records(self) -> dict[tuple[str, str, int], Record]:
        return self.records if self.stale_records is None else self.stale_records

    def condition(self, kind: str) -> str:
        return self._condition(kind).get("status", "")

    def reason(self, kind: str) -> str:
        return self._condition(kind).get("reason", "")

    def message(self, kind: str) -> str:
        return self._condition(kind).get("message", "")

    def _condition(self, kind: str) -> Json:
        return next((one for one in self.status.get("conditions", []) if one["type"] == kind), {})

    def node_applications(self, node: str) -> list[str]:
        return sorted(
            name
            for name, application in self.serve.applications.items()
            if name.startswith(f"{node}--") and not application.deleting
        )

    def table(self) -> Json:
        return self.serve.applications["ingress"].deployment["user_config"]

    def call(self, name: str, effect: Callable[[], T]) -> T:
        fault = self.fault(name)
        if fault == "killed":
            raise KilledError(name)
        if fault == "unreachable":
            raise UnreachableError(name)
        result = effect()
        if fault == "killed-after":
            raise KilledError(name)
        if fault == "unreachable-after":
            raise UnreachableError(name)
        return result


class _Serve:
    def __init__(self, world: World) -> None:
        self._world = world

    async def applications(self) -> dict[str, Application] | None:
        return self._world.call("applications", self._world.serve.observe)

    async def put(self, config: Json) -> None:
        self._world.writes.append("put")
        self._world.call("put", lambda: self._world.serve.put(config))

    async def capacity(self) -> Capacity | None:
        return self._world.call("capacity", self._world.serve.capacity)


class _Routing:
    def __init__(self, world: World) -> None:
        self._world = world

    async def acks(self) -> tuple[RoutingAck, ...]:
        return _answered(self._world.call("acks", self._world.serve.acks))

    async def ready(self) -> tuple[bool, tuple[str, ...]]:
        return _answered(self._world.call("ready", self._world.serve.ready))


def _answered(answer: T | None) -> T:
    if answer is None:
        raise UnreachableError("there is no ingress")
    return answer


class _History:
    def __init__(self, world: World) -> None:
        self._world = world

    async def list(self) -> tuple[Record, ...]:
        return self._world.call("list", lambda: tuple(self._world.seen_records().values()))

    async def write(self, record: Record) -> None:
        self._world.writes.append(f"record {record.kind}")
        stored = replace(record, data=json.loads(json.dumps(record.data)))
        key = (record.kind, record.name, record.sequence)
        found = self._world.records.get(key, stored)
        if found.data != stored.data:
            raise ConflictError(f"another {record.kind} is there already")
        self._world.call("write", lambda: self._world.records.setdefault(key, stored))

    async def delete(self, record: Record) -> None:
        self._world.writes.append(f"prune {record.kind}")
        key = (record.kind, record.name, record.sequence)
        self._world.call("delete", lambda: self._world.records.pop(key, None))


class _Status:
    def __init__(self, world: World) -> None:
        self._world = world

    async def read(self) -> Json:
        return self._world.call("read-status", lambda: self._world.status)

    async def write(self, status: Json) -> None:
        self._world.writes.append("status")
        self._world.call("write-status", lambda: setattr(self._world, "status", json.loads(json.dumps(status))))


class _Events:
    def __init__(self, world: World) -> None:
        self._world = world

    async def emit(self, event: Event) -> None:
        self._world.writes.append("event")
        self._world.call("emit", lambda: self._world.events.append(event))


def resource(nodes: dict[str, dict[str, Any]], *, steps: list[str] | None = None, **spec: Any) -> ServePipeline:
    """A pipeline whose graph calls each of ``steps`` (default: all nodes) once, one after the other."""
    called = list(nodes) if steps is None else steps
    graph: Json = {
        "steps": [{"name": f"{node}-out", "node": node, "args": [{"$input": []}]} for node in called],
        "output": [{"$step": f"{node}-out"} for node in called],
    }
    preprocessor, preprocessor_code = spec.pop("preprocessor", None), spec.pop("preprocessor_code", None)
    if preprocessor:
        graph["input"] = {"preprocessor": preprocessor} | ({"code": preprocessor_code} if preprocessor_code else {})
    return ServePipeline.model_validate(
        {
            "apiVersion": "servepipe.dev/v1alpha1",
            "kind": "ServePipeline",
            "metadata": {"name": "diamond", "generation": spec.pop("generation", 1)},
            "spec": {"graph": graph | spec.pop("graph", {}), "nodes": nodes, **spec},
        }
    )


def node(*args: Any, **fields: Any) -> dict[str, Any]:
    """A node whose constructor is given ``args``; the first says how it behaves (`simulated_serve`)."""
    return {"import": "models:Model", "args": list(args), **fields}
