"""RayClusters and Serve configurations for tests."""

from __future__ import annotations

import copy
from typing import Any

Object = dict[str, Any]

RAY_VERSION = "2.60.0"


def template(cpu: str = "1", memory: str = "1Gi", **container: Any) -> Object:
    """A pod template with one container for Ray."""
    size = {"cpu": cpu, "memory": memory}
    ray = {"name": "ray", "image": "rayproject/ray:2.60.0", "resources": {"limits": size, "requests": dict(size)}}
    return {"spec": {"containers": [{**ray, **container}]}}


def group(name: str, replicas: int = 1, **fields: Any) -> Object:
    """A worker group."""
    content = {"groupName": name, "replicas": replicas, "minReplicas": 0, "maxReplicas": 10, "rayStartParams": {}}
    return {**content, "template": template(), **fields}


def raycluster(name: str, *groups: Object, **spec: Any) -> Object:
    """A RayCluster without the autoscaler; ``spec`` overrides fields, ``metadata`` among them."""
    metadata = {"name": name, **spec.pop("metadata", {})}
    head = {"rayStartParams": {"num-cpus": "0"}, "template": template()}
    content = {"rayVersion": RAY_VERSION, "headGroupSpec": head, "workerGroupSpecs": [*groups], **spec}
    return copy.deepcopy({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": content})


def autoscaled(name: str, *groups: Object, **spec: Any) -> Object:
    """A RayCluster with the autoscaler, version 2."""
    return raycluster(name, *groups, enableInTreeAutoscaling=True, autoscalerOptions={"version": "v2"}, **spec)


def application(name: str, slot: str, replicas: int = 1, behaviour: str = "good", route: str | None = None) -> Object:
    """A Serve application whose actors ask for one slot's resource."""
    return {
        "name": name,
        "route_prefix": route,
        "import_path": "models:app",
        "args": {"args": [behaviour]},
        "deployments": [
            {
                "name": "node",
                "autoscaling_config": {"min_replicas": replicas, "max_replicas": replicas},
                "user_config": {"table": "t"},
                "ray_actor_options": {"num_cpus": 1, "resources": {f"svp-{slot}": 1}},
                "max_surge_percent": 100,
            }
        ],
    }


def serve_config(*applications: Object) -> Object:
    """What is PUT to a dashboard."""
    http = {"request_timeout_s": 310}
    return {"proxy_location": "EveryNode", "http_options": http, "applications": [*applications]}
