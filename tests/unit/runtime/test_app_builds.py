"""Who builds an application for Serve's controller."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from ray.remote_function import RemoteFunction
from ray.serve._private import application_state

from servepipe.runtime import app_builds
from servepipe.runtime.app_builds import Build, Builder, share_builder

NODE, INGRESS = "servepipe.runtime.app:node", "servepipe.runtime.app:ingress"


class Task:
    """Serve's: notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, Any], tuple[Any, ...]]] = []

    def options(self, **options: Any) -> Any:
        task = self

        class WithOptions:
            def remote(self, *args: Any) -> str:
                task.calls.append((options, args))
                return "of the task"

        return WithOptions()


class Made:
    """The builders that were started: with what, and what each was asked for."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []
        self.asked: list[list[tuple[Any, ...]]] = []

    def __call__(self, **options: Any) -> Any:
        self.options.append(options)
        asked: list[tuple[Any, ...]] = []
        self.asked.append(asked)

        class Handle:
            class build:  # noqa: N801 - as Ray names it
                @staticmethod
                def remote(*args: Any) -> str:
                    asked.append(args)
                    return "of a builder"

        return Handle


@pytest.fixture
def task() -> Task:
    return Task()


@pytest.fixture
def made() -> Made:
    return Made()


@pytest.fixture
def build(task: Task, made: Made) -> Build:
    return Build(task, made)


@pytest.fixture
def serves_own(monkeypatch: pytest.MonkeyPatch) -> RemoteFunction:
    """Serve's task; what a test puts in its place is undone."""
    own = application_state.build_serve_application
    monkeypatch.setattr(application_state, "build_serve_application", own)
    return own


async def test_ours_are_built_by_one_builder(build: Build, made: Made, task: Task) -> None:
    usual = build.options(runtime_env=None, enable_task_events=True, label_selector=None)
    assert usual.remote(NODE, "v1", "m1--1") == usual.remote(NODE, "v1", "m2--1") == "of a builder"
    assert build.options(runtime_env={}, label_selector={}).remote(INGRESS, "v1") == "of a builder"
    assert made.asked == [[(NODE, "v1", "m1--1"), (NODE, "v1", "m2--1"), (INGRESS, "v1")]]
    assert made.options == [{"num_cpus": 0, "max_restarts": 3, "max_task_retries": 3}]
    assert task.calls == []


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("their.app:build", {"runtime_env": None}),
        (NODE, {"runtime_env": {"pip": ["x"]}}),
        (NODE, {"label_selector": {"a": "b"}}),
    ],
)
async def test_others_are_built_as_ever(
    build: Build, made: Made, task: Task, path: str, options: dict[str, Any]
) -> None:
    assert build.options(**options).remote(path, "v1") == "of the task"
    assert (task.calls, made.asked) == ([(options, (path, "v1"))], [])


async def test_a_builder_is_not_kept(build: Build, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that has died and can never build again."""
    monkeypatch.setattr(app_builds, "KEEP_S", 0)
    build.options().remote(NODE, 1)
    async with asyncio.timeout(5):
        while build._builder is not None:  # noqa: ASYNC110 - a timer takes it away
            await asyncio.sleep(0)
    build.options().remote(NODE, 2)
    assert made.asked == [[(NODE, 1)], [(NODE, 2)]]


def test_a_builder_does_what_serves_task_does(serves_own: RemoteFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serves_own, "_function", lambda *args: ("built", args))
    assert Builder().build(NODE, "v1") == ("built", (NODE, "v1"))


def test_serves_task_is_replaced_once(serves_own: RemoteFunction) -> None:
    """A controller that starts again in the same process finds what the first one left."""
    share_builder()
    build = application_state.build_serve_application
    assert isinstance(build, Build)
    assert build._own is serves_own
    share_builder()
    assert application_state.build_serve_application is build


@pytest.mark.parametrize("strange", [None, print, "remote"])
def test_a_serve_that_builds_otherwise_is_left_alone(
    serves_own: RemoteFunction, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, strange: Any
) -> None:
    if strange == "remote":  # of a version that has no reason to end its worker, or another one
        strange = app_builds.ray.remote(num_cpus=0)(serves_own._function)
    monkeypatch.setattr(application_state, "build_serve_application", strange)
    monkeypatch.setattr(app_builds.log, "propagate", True)
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        share_builder()
    assert application_state.build_serve_application is strange
    assert "in an unexpected way" in caplog.text
