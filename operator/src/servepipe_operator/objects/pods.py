"""Pod templates of the head and of the worker groups. They pass the ``restricted`` level of Pod Security."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from servepipe.api.quantity import parse_quantity
from servepipe.api.removals import unmarked
from servepipe_operator.engine.pools import INGRESS_POOL, PodWish
from servepipe_operator.engine.state import Json
from servepipe_operator.engine.wishes import HEAD_RESOURCES, pod_resources
from servepipe_operator.objects.environment import HEAD_CONTAINER, cluster_environment
from servepipe_operator.objects.merge import merge_template
from servepipe_operator.objects.names import POOL_LABEL, ROLE_LABEL, Owner, labels

__all__ = [
    "CONTAINER_SECURITY",
    "CONTENTS_ANNOTATION",
    "DASHBOARD_PORT",
    "DRAIN_SECONDS",
    "HEAD_PORTS",
    "METRICS_PORT",
    "SERVE_PORT",
    "head_template",
    "worker_template",
]

DASHBOARD_PORT = 8265
METRICS_PORT = 8080
SERVE_PORT = 8000
#: All of them: KubeRay fills in its defaults only where the head lists none.
HEAD_PORTS = {"gcs-server": 6379, "client": 10001, "dashboard": DASHBOARD_PORT, "metrics": METRICS_PORT}
HEAD_PORTS["serve"] = SERVE_PORT

#: Of a worker template: `PodWish.digest` of what it was made from.
CONTENTS_ANNOTATION = "servepipe.dev/contents"

#: The user `ray` of Ray's images. A number, since the kubelet cannot check a name against runAsNonRoot.
_USER = 1000
_SECCOMP = {"type": "RuntimeDefault"}
#: KubeRay's init container `wait-gcs-ready` takes it from the worker's container, the autoscaler from its options.
CONTAINER_SECURITY: Json = {
    "runAsNonRoot": True,
    "runAsUser": _USER,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": _SECCOMP,
}
_POD_SECURITY: Json = {"runAsNonRoot": True, "runAsUser": _USER, "seccompProfile": _SECCOMP}

_GPU = "nvidia.com/gpu"

#: Seconds that a worker's pod may take to hand over its replicas: a machine may have to come for the new pod, and its
#: models to load. As long as the cluster autoscaler waits by default; the pod ends as soon as nobody needs it.
DRAIN_SECONDS = 600


def head_template(owner: Owner, head: Mapping[str, Any], image: str, pull_secrets: list[Json]) -> Json:
    """The head's pod: no user code, so no service account of the user's; KubeRay gives it the autoscaler's.

    Args:
        head: ``spec.cluster.head``.
    """
    ports = [{"name": name, "containerPort": port} for name, port in HEAD_PORTS.items()]
    container = _container(
        HEAD_CONTAINER, image, cluster_environment(), {**HEAD_RESOURCES, **head.get("resources", {})}, _GPU
    )
    spec: Json = {"securityContext": _POD_SECURITY, "containers": [{**container, "ports": ports}]}
    if pull_secrets:
        spec["imagePullSecrets"] = pull_secrets
    ours = {"labels": {**labels(owner), ROLE_LABEL: "head"}}
    merged = merge_template({"metadata": ours, "spec": spec}, unmarked(head.get("template") or {}))
    return merge_template(merged, {"metadata": ours})  # whatever the template says: by them the head is found


def worker_template(owner: Owner, wish: PodWish, default_image: str, environment: Mapping[str, str]) -> Json:
    """The pod of a worker group that holds ``wish``.

    Args:
        default_image: Where neither the node nor the pipeline names one.
        environment: Of the head that lives; a node's ``env`` cannot change it, a raw template can.
    """
    content = wish.content
    gpu = content.get("gpuResourceName", _GPU)
    container = _container("ray-worker", content.get("image", default_image), environment, pod_resources(content), gpu)
    ports = {"metrics": METRICS_PORT, "serve": SERVE_PORT}
    container["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    if wish.pool == INGRESS_POOL:
        # The caller's Service sends requests to pods that are ready: where Serve's proxy answers.
        container["readinessProbe"] = {
            "httpGet": {"path": "/-/healthz", "port": SERVE_PORT},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            # A proxy that drains still answers, for 30 s, and says that it does not. It stays behind the Service until
            # the pods of the next ingress are: without an overlap a caller would find nobody.
            "failureThreshold": 5,
        }
    spec: Json = {
        "automountServiceAccountToken": False,
        # KubeRay's init container is a shell, which as process 1 ignores SIGTERM: a pod that is deleted before its head
        # answers would stay for all of the time that a worker has for its replicas.
        "shareProcessNamespace": True,
        "securityContext": _POD_SECURITY,
        "containers": [container],
    }
    spec |= {
        key: content[key]
        for key in ("imagePullSecrets", "serviceAccountName", "nodeSelector", "tolerations")
        if key in content
    }
    role = "ingress" if wish.pool == INGRESS_POOL else "worker"
    base: Json = {"metadata": {"labels": {**labels(owner), ROLE_LABEL: role, POOL_LABEL: wish.pool}}, "spec": spec}
    base = merge_template(base, _extras(container["name"], content, environment))
    raw = content.get("template", {})
    merged = merge_template(base, raw)
    if not _own_hook(raw, container["name"]):
        merged = _drained(merged, container["name"], wish.pool == INGRESS_POOL)
    # Ours, whatever the template says: by them pods are found, and they tell what the slot holds.
    ours = {
        "labels": {**labels(owner), POOL_LABEL: wish.pool, ROLE_LABEL: role},
        "annotations": {CONTENTS_ANNOTATION: wish.digest},
    }
    return merge_template(merged, {"metadata": ours})


def _own_hook(raw: Mapping[str, Any], container: str) -> bool:
    """Whether a raw template says itself what runs before the container ends; null says: nothing."""
    for one in (raw.get("spec") or {}).get("containers") or []:
        if one.get("name") == container and "lifecycle" in one:
            return one["lifecycle"] is None or "preStop" in one["lifecycle"]
    return False


def _drained(template: Json, container: str, proxy: bool) -> Json:
    """With the hook that hands replicas over to other pods before this one ends.

    Args:
        proxy: Callers are connected to this pod.
    """
    grace = template["spec"].get("terminationGracePeriodSeconds", DRAIN_SECONDS)
    if not isinstance(grace, int):
        return template  # the API server says what is wrong with it
    drain = f"python -m servepipe.runtime.drain --grace {grace}{' --proxy' if proxy else ''}"
    # Where the image has no such module yet, the pod serves on for as long as it did before there was one, and ends.
    command = ["sh", "-c", f"{drain} || {{ sleep {min(25, max(0, grace - 5))}; ray stop --force; }}"]
    hook = {"name": container, "lifecycle": {"preStop": {"exec": {"command": command}}}}
    return merge_template(template, {"spec": {"terminationGracePeriodSeconds": grace, "containers": [hook]}})


def _extras(container: str, content: Mapping[str, Any], environment: Mapping[str, str]) -> Json:
    """A node's ``env`` and ``volumes`` as a template."""
    # Serve's flags must be equal on all pods of the cluster.
    env = [one for one in content.get("env", []) if one["name"] not in environment]
    volumes = content.get("volumes", [])
    mounts = [
        {"name": one["name"], "mountPath": one["mountPath"], "readOnly": one.get("readOnly", False)} for one in volumes
    ]
    return {
        "spec": {
            "containers": [{"name": container, "env": env, "volumeMounts": mounts}],
            "volumes": [{"name": one["name"], **one["source"]} for one in volumes],
        }
    }


def _container(name: str, image: str, environment: Mapping[str, str], size: Mapping[str, str], gpu: str) -> Json:
    resources = {gpu if key == "gpu" else key: value for key, value in size.items() if key != "custom"}
    # Ray counts whole processors, and its own processes need them when they start: held to a part of one they take
    # minutes, and the raylet gives up.
    limits = {**resources, "cpu": str(math.ceil(parse_quantity(resources["cpu"])))}
    return {
        "name": name,
        "image": image,
        "env": [{"name": key, "value": value} for key, value in sorted(environment.items())],
        # Ray counts limits; requests mean that a replica has what it was promised.
        "resources": {"limits": limits, "requests": resources},
        "securityContext": CONTAINER_SECURITY,
    }
