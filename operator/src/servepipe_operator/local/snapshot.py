"""What `servepipe status` and the screen show, as one JSON object."""

from __future__ import annotations

from collections.abc import Mapping

from servepipe_operator.engine.state import Application, Json
from servepipe_operator.local.run_folder import Run

__all__ = ["snapshot_of"]


def snapshot_of(
    run: Run,
    *,
    folder: str,
    status: Json,
    applications: Mapping[str, Application],
    generation: int,
    observed_generation: int,
) -> Json:
    """See `servepipe_operator.local.control.Controlled.snapshot`.

    Args:
        generation: Of what was asked for last.
        observed_generation: Of what ``status`` is about.
    """
    return {
        "pipeline": run.pipeline,
        "url": run.url,
        "source": run.source,
        "state": run.state,
        "folder": folder,
        "dashboard": run.ray_dashboard,
        "generation": generation,
        "observedGeneration": observed_generation,
        "status": status,
        "applications": {
            name: {
                "status": application.status,
                "message": application.message or application.deployment_message,
                "replicas": [{"id": r.id, "state": r.state, "pid": r.pid} for r in application.replicas],
            }
            for name, application in sorted(applications.items())
        },
    }
