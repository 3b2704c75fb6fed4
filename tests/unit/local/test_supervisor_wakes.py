"""What is asked of a run that has nothing to do reaches Serve at once, not when it would have looked again anyway."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from simulated_serve import Clock, Timing
from simulated_world import World
from small_pipeline import SMALL
from waiting import until

from servepipe_operator.engine.state import Environment, Plan
from servepipe_operator.local import supervisor
from servepipe_operator.local.sources import Compiled
from servepipe_operator.local.supervisor import Options, Supervisor
from servepipe_operator.reconcile import reconcile
from servepipe_operator.view import QuietView

STEADY_S = 600.0
COMPILED = Compiled(SMALL, "small", "/project", {}, ())
CHANGED = replace(COMPILED, document=SMALL.replace("args: [1]", "args: [2]"))


class RealClock(Clock):
    """The simulated Serve in the time of the process under test."""

    def __init__(self) -> None:
        pass

    @property
    def now(self) -> float:  # type: ignore[override]
        return time.time()


class NoRay:
    """Stands in for the run's Ray: it has started, and goes on until it is told to stop."""

    address = dashboard = token = ""
    token_file = session = log = Path()
    link = None

    def __init__(self, *_: Any, **__: Any) -> None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def capacity(self) -> None: ...

    def running(self) -> bool:
        return True

    def processes(self) -> list[Any]:
        return []

    def open_to_others(self) -> list[Any]:
        return []

    def intruder(self) -> None: ...


class Run:
    """A run on a simulated Serve, and when it means to look again."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = folder / "small.yaml"
        self.file.write_text(SMALL, encoding="utf-8")
        self.world = World()
        self.world.serve.clock = self.world.clock = RealClock()
        self.world.serve.timing = Timing().faster(20)
        self.look_again_after_s = 0.0
        self.at_the_end_of_a_look: Ask | None = None
        for name, value in {
            "LocalRay": NoRay,
            "RayServeApi": lambda *_: self.world.ports.serve,
            "IngressRouting": lambda *_: self.world.ports.routing,
            "Environment": partial(Environment, steady_s=STEADY_S),
            "reconcile": self._reconcile,
            "compile_document": self._changed,
        }.items():
            monkeypatch.setattr(supervisor, name, value)
        compiled = replace(COMPILED, files=(self.file,))
        self.supervisor = Supervisor(compiled, Options(reload=self._changed), QuietView())

    async def _reconcile(self, *arguments: Any) -> Plan:
        plan = await reconcile(*arguments)
        self.look_again_after_s = plan.look_again_after_s
        if self.at_rest and self.at_the_end_of_a_look is not None:
            ask, self.at_the_end_of_a_look = self.at_the_end_of_a_look, None
            await ask(self)
        return plan

    async def _changed(self, *_: Any) -> Compiled:
        return replace(CHANGED, files=(self.file,))

    @property
    def at_rest(self) -> bool:
        """Whether its next look is ten minutes away."""
        return self.look_again_after_s == STEADY_S

    def sent(self) -> dict[str, Any]:
        """The node's application as Serve was sent it last."""
        _, config = self.world.serve.puts[-1]
        return next(one for one in config["applications"] if one["name"] != "ingress")

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """From when it has come to rest for the first time until the end of the block."""
        task = asyncio.create_task(self.supervisor.run())
        try:
            await until("nothing to do", lambda: task.done() or self.at_rest)
            yield
        finally:
            self.supervisor.stop()
            assert await asyncio.wait_for(task, 30) == 0


Ask = Callable[[Run], Awaitable[None]]


async def apply(run: Run) -> None:
    await run.supervisor.apply("a document", "a folder")


async def edit(run: Run) -> None:
    run.file.write_text(CHANGED.document, encoding="utf-8")


async def scale(run: Run) -> None:
    await run.supervisor.scale("m1", 2)


def changed(application: dict[str, Any]) -> bool:
    return bool(application["args"]["args"] == [2])


def scaled(application: dict[str, Any]) -> bool:
    return bool(application["deployments"][0]["autoscaling_config"]["min_replicas"] == 2)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return Run(tmp_path, monkeypatch)


@pytest.mark.parametrize(("ask", "as_asked"), [(apply, changed), (edit, changed), (scale, scaled)])
async def test_what_is_asked_for_is_sent_to_serve_at_once(
    run: Run, ask: Ask, as_asked: Callable[[dict[str, Any]], bool]
) -> None:
    async with run.going_on():
        assert not as_asked(run.sent())
        await ask(run)
        await until("the PUT", lambda: as_asked(run.sent()))


async def test_what_is_asked_for_in_the_middle_of_a_look_is_not_forgotten(run: Run) -> None:
    run.at_the_end_of_a_look = scale
    async with run.going_on():
        await until("the PUT", lambda: scaled(run.sent()))
