"""Applications that are built one after the other in one process.

Serve's controller has each application built by a Ray task, in a process that imports Serve, runs this task and ends.
All those of a pipeline start at once, and cost a second of CPU each. Serve must do so, as it does not know what the
modules of an application do to a process; ours (`servepipe.runtime.app`) import no user code.

Serve calls `share_builder` where ``RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH`` names it: once, in the controller,
before that does anything. The task itself has no public name; where it is not as in the versions that this was written
for (Ray 2.58 to 2.60), it stays as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.remote_function import RemoteFunction
from ray.serve._private import application_state

__all__ = ["Build", "Builder", "share_builder"]

#: How the import paths of our applications begin.
OURS = "servepipe.runtime.app:"
#: For so long a builder gets what is to be built, in seconds; then it ends with its last one.
KEEP_S = 10.0
_TASK = "build_serve_application"

log = logging.getLogger("ray.serve")


class Builder:
    """An actor that builds applications as Serve's task does."""

    def build(self, *args: Any) -> Any:
        """Takes and returns what the task does."""
        return application_state.build_serve_application._function(*args)


class Build:
    """What Serve's controller calls in place of its task that builds an application.

    Args:
        own: Serve's task; for applications of others, and for those that want an environment of their own.
        make: Starts a `Builder` with these options of Ray actors, and returns its handle.
    """

    def __init__(self, own: Any, make: Callable[..., Any]) -> None:
        self._own, self._make = own, make
        self._builder: Any = None

    def options(self, **options: Any) -> _WithOptions:
        """As of a Ray task."""
        return _WithOptions(self, options)

    def start(self, options: dict[str, Any], import_path: str, *args: Any) -> Any:
        """The reference to what the task returns; the application's ``import_path`` comes first."""
        if options.get("runtime_env") or options.get("label_selector") or not import_path.startswith(OURS):
            return self._own.options(**options).remote(import_path, *args)
        if self._builder is None:
            self._builder = self._make(num_cpus=0, max_restarts=3, max_task_retries=3)
            # Without a handle Ray ends the actor, when it has done what it was asked for.
            asyncio.get_running_loop().call_later(KEEP_S, self._forget)
        return self._builder.build.remote(import_path, *args)

    def _forget(self) -> None:
        self._builder = None


class _WithOptions:
    def __init__(self, build: Build, options: dict[str, Any]) -> None:
        self._build, self._options = build, options

    def remote(self, import_path: str, *args: Any) -> Any:
        """As of a Ray task."""
        return self._build.start(self._options, import_path, *args)


def share_builder() -> None:
    """Let applications of ours be built in one process, for this process from now on."""
    own = getattr(application_state, _TASK, None)
    if isinstance(own, Build):
        return
    options = getattr(own, "_default_options", None)
    if not isinstance(own, RemoteFunction) or not isinstance(options, dict) or options.get("max_calls") != 1:
        log.warning(
            "Serve of Ray %s builds applications in an unexpected way: each is built in a process of its own",
            ray.__version__,
        )
        return
    setattr(application_state, _TASK, Build(own, lambda **options: ray.remote(Builder).options(**options).remote()))
