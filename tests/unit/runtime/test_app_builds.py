"""Which of Serve's tasks builds an application."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from ray.remote_function import RemoteFunction
from ray.serve._private import application_state

from servepipe.runtime import app_builds
from servepipe.runtime.app_builds import OURS, Build, share_workers


class Task:
    """Notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, Any], tuple[Any, ...]]] = []

    def options(self, **options: Any) -> Any:
        task = self

        class WithOptions:
            def remote(self, *args: Any) -> str:
                task.calls.append((options, args))
                return "reference"

        return WithOptions()


@pytest.fixture
def serves_own(monkeypatch: pytest.MonkeyPatch) -> RemoteFunction:
    """Serve's task; what a test puts in its place is undone."""
    own = application_state.build_serve_application
    monkeypatch.setattr(application_state, "build_serve_application", own)
    return own


def test_ours_go_to_the_shared_one_and_others_to_serves_own() -> None:
    own, shared = Task(), Task()
    build = Build(own, shared)  # type: ignore[arg-type]
    assert build.options(runtime_env={"a": 1}).remote("servepipe.runtime.app:node", "v1", "m1--1") == "reference"
    assert build.options(runtime_env=None).remote("their.app:build", "v1") == "reference"
    assert build.remote(f"{OURS}ingress") == "reference"
    assert shared.calls == [
        ({"runtime_env": {"a": 1}}, ("servepipe.runtime.app:node", "v1", "m1--1")),
        ({}, ("servepipe.runtime.app:ingress",)),
    ]
    assert own.calls == [({"runtime_env": None}, ("their.app:build", "v1"))]


def test_serves_task_differs_only_in_that_its_worker_goes_on(serves_own: RemoteFunction) -> None:
    share_workers()
    build = application_state.build_serve_application
    assert isinstance(build, Build)
    assert build._own is serves_own
    assert build._shared._function is serves_own._function
    assert serves_own._default_options["max_calls"] == 1
    assert build._shared._default_options == {
        name: value for name, value in serves_own._default_options.items() if name != "max_calls"
    }


@pytest.mark.parametrize("strange", [None, print, "remote"])
def test_a_serve_that_builds_otherwise_is_left_alone(
    serves_own: RemoteFunction, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, strange: Any
) -> None:
    if strange == "remote":  # of a version that has no reason to end its worker, or another one
        strange = app_builds.ray.remote(num_cpus=0)(serves_own._function)
    monkeypatch.setattr(application_state, "build_serve_application", strange)
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        monkeypatch.setattr(app_builds.log, "propagate", True)
        share_workers()
    assert application_state.build_serve_application is strange
    assert "in an unexpected way" in caplog.text


def test_it_may_be_called_again(serves_own: RemoteFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller that starts again in the same process finds what the first one left."""
    share_workers()
    first = application_state.build_serve_application
    share_workers()
    assert application_state.build_serve_application is first
