"""Which pods an application asks for: its pool, and what is in its slot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from servepipe.api.quantity import parse_quantity
from servepipe.api.removals import unmarked
from servepipe.api.v1alpha1 import Cluster, Spec, Workers
from servepipe_operator.engine.pools import DEFAULT_POOL, INGRESS_POOL, PodWish
from servepipe_operator.engine.revisions import normalised_resources
from servepipe_operator.engine.state import Json

__all__ = ["HEAD_RESOURCES", "WORKER_RESOURCES", "cluster_identity", "ingress_wish", "node_wish", "pod_resources"]

WORKER_RESOURCES = {"cpu": "4", "memory": "16Gi"}
HEAD_RESOURCES = {"cpu": "2", "memory": "8Gi"}

#: Fields of a node that are about its pods.
_POD_FIELDS = ("env", "volumes", "nodeSelector", "tolerations", "gpuResourceName", "template")

_DEFAULT_MEMORY = "4Gi"
#: Ray's own processes in a pod beside the replica.
_OVERHEAD = parse_quantity("1Gi")


def node_wish(node: str, identity: Mapping[str, Any], spec: Spec, shared_image: str | None) -> PodWish:
    """The pods of one revision of a node.

    It has a pool of its own with an image, an environment or pod fields of its own, and also when one replica does
    not fit into an empty pod of the default pool (a GPU where the workers have none): there it would wait for ever.

    Args:
        identity: Of the revision, as the engine makes it (``image`` is set where ``spec.image`` is).
        shared_image: ``spec.image`` of the spec that the revision comes from. While the pipeline changes to another
            image, what runs with the one of before is still no node's own.
    """
    shared = _shared(spec)
    image = identity.get("image")
    own = {field: identity[field] for field in _POD_FIELDS if identity.get(field)}
    resources = identity.get("resources", {})
    workers = (spec.cluster or Cluster()).workers or Workers()
    size = normalised_resources(workers.resources.to_json()) if workers.resources else {}
    if not own and image == shared_image and _fits(resources, {**WORKER_RESOURCES, **size}):
        content = {**shared, "image": image, "resources": size, "template": unmarked(workers.template)}
        return PodWish(DEFAULT_POOL, _given(content))
    return PodWish(node, {**_given({**shared, "image": image, **own}), "replica": dict(resources)})


def ingress_wish(identity: Mapping[str, Any], spec: Spec) -> PodWish:
    """The pods of one revision of the ingress: one for each replica."""
    fields = {field: identity.get(field) for field in ("image", "template")}
    return PodWish(
        INGRESS_POOL, {**_given({**_shared(spec), **fields}), "replica": dict(identity.get("resources", {}))}
    )


def pod_resources(content: Mapping[str, Any]) -> dict[str, str]:
    """CPU, memory and GPU of one pod with this content, in Kubernetes' quantities; a GPU is named ``gpu``.

    A pod for one replica has as much as that reserves and room for Ray's own processes.
    """
    if "replica" not in content:
        size = {**WORKER_RESOURCES, **content.get("resources", {})}
        return {key: value for key, value in size.items() if key != "custom"}
    replica = content["replica"]
    memory = parse_quantity(replica.get("memory", _DEFAULT_MEMORY)) + (_OVERHEAD if "memory" in replica else 0)
    cpu = replica.get("cpu", "1")
    size = {"cpu": cpu if parse_quantity(cpu) else "100m", "memory": str(math.ceil(memory))}
    gpus = math.ceil(parse_quantity(replica.get("gpu", "0")))
    return {**size, "gpu": str(gpus)} if gpus else size


def cluster_identity(spec: Spec, ray_version: str, head_image: str) -> Json:
    """What cannot change in a RayCluster that lives: other values need a second one (`ClusterReplacementRequired`)."""
    cluster = spec.cluster or Cluster()
    head = cluster.head.to_json() if cluster.head else {}
    if "template" in head:
        head["template"] = unmarked(head["template"])
    head["resources"] = normalised_resources(head.get("resources", {}))
    content = {
        "rayVersion": ray_version,
        "head": _given({**head, "image": head_image}),
        "gcsFaultTolerance": cluster.gcs_fault_tolerance,
        # Serve takes its gRPC options only when it starts.
        "grpc": spec.ingress.grpc.port if spec.ingress and spec.ingress.grpc else None,
    }
    return _given(content)


def _shared(spec: Spec) -> Json:
    return {
        "imagePullSecrets": [one.to_json() for one in spec.image_pull_secrets or []],
        "serviceAccountName": spec.service_account_name,
    }


def _fits(replica: Mapping[str, Any], pod: Mapping[str, Any]) -> bool:
    wanted = {"cpu": "1", **{key: value for key, value in replica.items() if key != "custom"}}
    flat = {**wanted, **{f"custom.{key}": value for key, value in replica.get("custom", {}).items()}}
    room = {**pod, **{f"custom.{key}": value for key, value in pod.get("custom", {}).items()}}
    return all(parse_quantity(value) <= parse_quantity(room.get(key, "0")) for key, value in flat.items())


def _given(content: Mapping[str, Any]) -> Json:
    return {key: value for key, value in content.items() if value not in (None, [], {}, "")}
