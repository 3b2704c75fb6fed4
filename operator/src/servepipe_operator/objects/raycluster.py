"""The RayCluster of a pipeline, and what a live one says about its slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from servepipe.api.v1alpha1 import Cluster, Spec
from servepipe_operator.engine.pools import DEFAULT_POOL, PodWish, Slot, slot_resource
from servepipe_operator.engine.revisions import normalised_resources
from servepipe_operator.engine.state import Json
from servepipe_operator.engine.wishes import pod_resources
from servepipe_operator.objects.environment import environment_of
from servepipe_operator.objects.names import POOL_LABEL, Owner, metadata
from servepipe_operator.objects.pod_trouble import PodTrouble
from servepipe_operator.objects.pods import (
    CONTAINER_SECURITY,
    CONTENTS_ANNOTATION,
    head_template,
    worker_template,
)

__all__ = ["raycluster", "slot_of", "slots_of", "worker_group"]

#: It wants a processor for some seconds when it starts, and next to nothing after that; KubeRay reserves half of one.
_AUTOSCALER_RESOURCES: Json = {
    "requests": {"cpu": "100m", "memory": "256Mi"},
    "limits": {"cpu": "1", "memory": "512Mi"},
}
#: More than the actors that one shared pod can hold; a pod for one replica offers 1.
_SHARED_PER_POD = 10_000


def raycluster(
    owner: Owner,
    name: str,
    spec: Spec,
    ray_version: str,
    runtime_image: str,
    token_secret: str,
    slots: Sequence[Slot],
    suspend: bool,
) -> Json:
    """The body with which a RayCluster is created.

    Args:
        runtime_image: The project's image for ``ray_version``: of the head, and of pods for which no image is named.
        slots: From `assign`; each has its wish.
        suspend: No pods are wanted yet.
    """
    cluster = spec.cluster or Cluster()
    head = cluster.head.to_json() if cluster.head else {}
    secrets = [one.to_json() for one in spec.image_pull_secrets or []]
    template = head_template(owner, head, head.get("image", runtime_image), secrets)
    environment = environment_of(template)
    body: Json = {
        "rayVersion": ray_version,
        "suspend": suspend,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "securityContext": CONTAINER_SECURITY,
            "resources": _AUTOSCALER_RESOURCES,
        },
        "authOptions": {"mode": "token", "secretName": token_secret},
        "headGroupSpec": {
            # Nothing of the user's is placed on the head.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": template,
        },
        "workerGroupSpecs": [
            worker_group(owner, slot, slot.wish, runtime_image, environment) for slot in slots if slot.wish is not None
        ],
    }
    if cluster.gcs_fault_tolerance is not None:
        body["gcsFaultToleranceOptions"] = cluster.gcs_fault_tolerance
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata(owner, name), "spec": body}


def worker_group(owner: Owner, slot: Slot, wish: PodWish, runtime_image: str, environment: Mapping[str, str]) -> Json:
    """A worker group that does not exist yet, or the new content of an idle one."""
    size: Json = wish.content.get("replica") or wish.content.get("resources") or {}
    resources = normalised_resources(size.get("custom", {}))
    gpus = pod_resources(wish.content).get("gpu")
    if gpus is not None:
        # Ray knows only some vendors' names of GPUs.
        resources["GPU"] = gpus
    resources[slot_resource(slot.name)] = str(_SHARED_PER_POD if wish.pool == DEFAULT_POOL else 1)
    return {
        "groupName": slot.name,
        "replicas": slot.low,
        "minReplicas": slot.low,
        "maxReplicas": slot.high,
        "rayStartParams": {},
        "resources": resources,
        "template": worker_template(owner, wish, runtime_image, environment),
    }


def slots_of(
    live: Mapping[str, Any],
    pods: Mapping[str, int],
    ending: Mapping[str, int] = MappingProxyType({}),
    troubles: Mapping[str, PodTrouble] | None = None,
) -> list[Slot]:
    """The slots of a live RayCluster, in its order.

    Args:
        pods: How many pods there are, by the label ``ray.io/group``; terminating ones count.
        ending: How many of them are terminating.
        troubles: Why pods do not come, by the same label.
    """
    return [
        _with_trouble(
            replace(slot, pods=pods.get(slot.name, 0), ending=ending.get(slot.name, 0)),
            (troubles or {}).get(slot.name),
        )
        for slot in map(slot_of, live["spec"].get("workerGroupSpecs") or [])
    ]


def _with_trouble(slot: Slot, found: PodTrouble | None) -> Slot:
    return replace(slot, trouble=found.message, unschedulable=found.unschedulable) if found else slot


def slot_of(group: Mapping[str, Any]) -> Slot:
    """The slot that a worker group is, without its pods."""
    name = group["groupName"]
    found = group["template"].get("metadata") or {}
    return Slot(
        name=name,
        pool=(found.get("labels") or {}).get(POOL_LABEL, name.rpartition("-")[0]),
        contents=(found.get("annotations") or {}).get(CONTENTS_ANNOTATION, ""),
        replicas=group.get("replicas") or 0,
        low=group.get("minReplicas") or 0,
        high=group.get("maxReplicas") or 0,
    )
