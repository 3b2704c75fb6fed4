"""What a pipeline's objects and its Serve have come to, without what differs from one run to the next."""

from __future__ import annotations

import json
from typing import Any

from pipelines import Json, Pipelines

CHILDREN = (
    "api/v1:services",
    "apis/networking.k8s.io/v1:networkpolicies",
    "apis/policy/v1:poddisruptionbudgets",
)
#: Of metadata: what the API server writes.
SERVERS = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "ownerReferences")
TIMES = frozenset(("since", "lastTransitionTime", "observedGeneration"))


def end_state(pipelines: Pipelines, name: str) -> Json:
    """Of the pipeline ``name``, for comparisons; a difference is the work of a fault."""
    live = pipelines.get(name)
    cluster = pipelines.cluster(name)
    look = pipelines.kuberay.look(pipelines.namespace, cluster)
    puts = pipelines.kuberay.last_puts(pipelines.namespace, cluster)
    found = {
        "status": _without_times(live["status"]),
        "children": {kind: [_child(one) for one in pipelines.children(kind, name)] for kind in CHILDREN},
        "clusters": [_cluster(one) for one in pipelines.children("apis/ray.io/v1:rayclusters", name)],
        "serve": {app: len(one["replicas"]) for app, one in sorted(look["applications"].items())},
        "config": puts[-1].config,
        "problems": look["problems"],
    }
    # The uid of the pipeline is in the RayCluster's name.
    normal: Json = json.loads(json.dumps(found, sort_keys=True).replace(cluster, "CLUSTER"))
    return normal


def _child(live: Json) -> Json:
    metadata = {key: value for key, value in live["metadata"].items() if key not in (*SERVERS, "annotations")}
    spec = {key: value for key, value in live["spec"].items() if key not in ("clusterIP", "clusterIPs")}
    return {"metadata": metadata, "spec": spec}


def _cluster(live: Json) -> Json:
    """Its groups by name; how many pods are there is the autoscaler's."""
    spec = json.loads(json.dumps(live["spec"]))
    for group in spec.get("workerGroupSpecs", ()):
        for key in ("replicas", "scaleStrategy"):
            group.pop(key, None)
    return {"spec": spec}


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(one) for key, one in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [_without_times(one) for one in value]
    return value
