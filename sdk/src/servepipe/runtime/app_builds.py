"""Applications that are built by workers which they share.

Serve's controller has each application built by a Ray task, in a process that imports Serve, runs one task and ends:
a second of CPU for each node of a pipeline. It must, as it does not know what the modules of an application do to a
process. Ours (`servepipe.runtime.app`) import no user code, so a worker may build one after the other, and become a
replica when there are no more.

Serve calls `share_workers` where ``RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH`` names it: once, in the controller,
before that does anything. The task itself has no public name; where it is not as in the versions that this was written
for (Ray 2.58 to 2.60), it stays as it is.
"""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.remote_function import RemoteFunction
from ray.serve._private import application_state

__all__ = ["OURS", "Build", "share_workers"]

#: How the import paths of our applications begin.
OURS = "servepipe.runtime.app:"
_TASK = "build_serve_application"

log = logging.getLogger("ray.serve")


class Build:
    """What Serve's controller calls in place of its task that builds an application.

    Args:
        own: Serve's task.
        shared: The same one, whose worker goes on; for applications of `OURS`.
    """

    def __init__(self, own: RemoteFunction, shared: RemoteFunction, options: dict[str, Any] | None = None) -> None:
        self._own, self._shared, self._options = own, shared, options or {}

    def options(self, **options: Any) -> Build:
        """As of a Ray task."""
        return Build(self._own, self._shared, {**self._options, **options})

    def remote(self, import_path: str, *args: Any) -> Any:
        """As of a Ray task; the application's ``import_path`` comes first."""
        task = self._shared if import_path.startswith(OURS) else self._own
        return task.options(**self._options).remote(import_path, *args)


def share_workers() -> None:
    """Let applications of ours be built by workers that they share, in this process from now on."""
    own = getattr(application_state, _TASK, None)
    options = getattr(own, "_default_options", None)
    if isinstance(own, Build):
        return
    if not isinstance(own, RemoteFunction) or not isinstance(options, dict) or options.get("max_calls") != 1:
        log.warning(
            "Serve of Ray %s builds applications in an unexpected way: each is built by a worker of its own",
            ray.__version__,
        )
        return
    shared = {name: value for name, value in options.items() if name != "max_calls"}
    setattr(application_state, _TASK, Build(own, ray.remote(**shared)(own._function)))
