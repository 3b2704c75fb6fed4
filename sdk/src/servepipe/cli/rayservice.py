"""The Ray cluster of an exported RayService, as KubeRay's RayService spells it."""

from __future__ import annotations

import math

from servepipe.api.v1alpha1 import Cluster, Head, Resources, ServePipeline, Workers
from servepipe.cli.serve_export import quantity
from servepipe.graph.fields import Json
from servepipe.runtime.flags import serve_environment

__all__ = ["ray_cluster"]

_HEAD_SIZE = Resources(cpu="2", memory="8Gi")
_WORKER_SIZE = Resources(cpu="4", memory="16Gi")


def ray_cluster(pipeline: ServePipeline, ray_version: str) -> Json:
    """``rayClusterConfig``: a head that runs no user code, and one group of workers with the pipeline's image."""
    spec = pipeline.spec
    cluster = spec.cluster or Cluster()
    head, workers = cluster.head or Head(), cluster.workers or Workers()
    return {
        "rayVersion": ray_version,
        "enableInTreeAutoscaling": True,
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
            "template": _pod(
                pipeline,
                "ray-head",
                head.image or spec.image,
                _sized(head.resources, _HEAD_SIZE),
                ports=[("gcs-server", 6379), ("dashboard", 8265), ("client", 10001), ("serve", 8000)],
            ),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": max(workers.min_replicas, 1),
                "minReplicas": workers.min_replicas,
                "maxReplicas": max(workers.max_replicas, workers.min_replicas),
                "rayStartParams": {},
                "template": _pod(
                    pipeline,
                    "ray-worker",
                    spec.image,
                    _sized(workers.resources, _WORKER_SIZE),
                    ports=[("serve", 8000)],
                ),
            }
        ],
    }


def _sized(given: Resources | None, default: Resources) -> Json:
    """Requests and limits of a pod: Ray counts whole CPUs, and what it counts must be there."""
    given = given or Resources()
    amounts: Json = {"cpu": given.cpu or default.cpu, "memory": given.memory or default.memory}
    if given.gpu:
        amounts["nvidia.com/gpu"] = str(math.ceil(quantity(given.gpu)))
    return {"requests": amounts, "limits": dict(amounts)}


def _pod(
    pipeline: ServePipeline,
    container: str,
    image: str | None,
    resources: Json,
    *,
    ports: list[tuple[str, int]],
) -> Json:
    environment = serve_environment(haproxy=False, callback=False)
    spec: Json = {
        "containers": [
            {
                "name": container,
                "image": image,
                "ports": [{"name": name, "containerPort": port} for name, port in ports],
                "env": [{"name": name, "value": value} for name, value in environment.items()],
                "resources": resources,
            }
        ]
    }
    if pipeline.spec.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret.name} for secret in pipeline.spec.image_pull_secrets]
    if pipeline.spec.service_account_name:
        spec["serviceAccountName"] = pipeline.spec.service_account_name
    return {"spec": spec}
