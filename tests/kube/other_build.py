"""An operator whose build differs from this one in every default, as a later release may; see `crash_operator`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from servepipe.api.v1alpha1 import Autoscaling, HealthCheck, Ingress, NodeSpec, ServePipeline, Spec, Upgrade
from servepipe_operator.engine import wishes
from servepipe_operator.objects import environment

#: Settings of another release.
SETTINGS = {"SERVEPIPE_RAY_VERSION": "2.61.0", "SERVEPIPE_RUNTIME_IMAGE": "other/runtime:9-ray{ray_version}"}
DEFAULTS: dict[type[BaseModel], dict[str, Any]] = {
    Spec: {"max_concurrent_upgrades": 3, "progress_deadline_seconds": 77, "history_limit": 2},
    NodeSpec: {"max_ongoing_requests": 9, "max_queued_requests": 50, "drain_seconds": 11, "placement": "Inline"},
    Autoscaling: {"min_replicas": 2, "target_ongoing_requests": 5, "upscale_delay_seconds": 1},
    HealthCheck: {"period_seconds": 3, "timeout_seconds": 4},
    Upgrade: {"strategy": "Canary", "surge": "InPlace"},
    Ingress: {"request_timeout_seconds": 99, "max_body_bytes": 5, "max_ongoing_requests": 6},
}
FLAGS = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "0", "RAY_SERVE_OF_ANOTHER_RELEASE": "1"}


def exchange() -> None:
    """Exchange all of them in this process."""
    for model, fields in DEFAULTS.items():
        for name, value in fields.items():
            model.model_fields[name].default = value
    for model in (HealthCheck, Autoscaling, Upgrade, Ingress, NodeSpec, Spec, ServePipeline):
        model.model_rebuild(force=True)
    wishes.WORKER_RESOURCES |= {"cpu": "9", "memory": "99Gi"}
    wishes.HEAD_RESOURCES |= {"cpu": "3", "memory": "9Gi"}
    wishes._DEFAULT_MEMORY = "5Gi"
    before = environment.serve_environment
    environment.serve_environment = lambda **options: before(**options) | FLAGS  # type: ignore[assignment]
