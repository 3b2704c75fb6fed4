"""What KubeRay refuses by itself, beyond its CRD's schema. The only sign of it is an Event."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kuberay import names

Object = dict[str, Any]

LONGEST_NAME = 53
RAY_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"


def problem_of_metadata(cluster: Object) -> str | None:
    name = cluster["metadata"]["name"]
    if len(name) > LONGEST_NAME:
        return f"RayCluster name should be no more than {LONGEST_NAME} characters"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        return f"RayCluster name should be a valid DNS1035 label: {name}"
    return None


def problem_of_spec(cluster: Object) -> str | None:
    """The first rule that the spec breaks."""
    return next(_problems(cluster), None)


def problem_of_upgrade(cluster: Object) -> str | None:
    strategy = (cluster["spec"].get("upgradeStrategy") or {}).get("type")
    if strategy is None:
        return None
    if strategy not in ("Recreate", "None"):
        return (
            f"The RayCluster spec is invalid: Spec.UpgradeStrategy.Type value {strategy} is invalid, "
            "valid options are Recreate or None"
        )
    origin = cluster["metadata"].get("labels", {}).get("ray.io/originated-from-crd")
    if origin in ("RayJob", "RayService"):
        return f"upgradeStrategy cannot be set when RayCluster is created by {origin}"
    return None


def _problems(cluster: Object) -> Iterator[str]:
    spec = cluster["spec"]
    head = spec["headGroupSpec"]
    scaled = names.autoscaling(cluster)
    containers = head["template"].get("spec", {}).get("containers") or []
    if not containers:
        yield "headGroupSpec should have at least one container"
        return
    yield from _group("Head", head)
    for group in names.worker_groups(cluster):
        yield from _workers(group, scaled)
        if group.get("idleTimeoutSeconds") is not None:
            if not scaled or names.autoscaler_version(cluster) != "v2":
                yield (
                    f"worker group {group['groupName']} has idleTimeoutSeconds set, but autoscaler version is not v2. "
                    "Please set .spec.autoscalerOptions.version to v2"
                )
            if group["idleTimeoutSeconds"] < 0:
                yield f"worker group {group['groupName']} has negative idleTimeoutSeconds"
    env = {one["name"]: one.get("value") for one in containers[0].get("env") or []}
    yield from _fault_tolerance(cluster, env)
    yield from _autoscaler(cluster, env) if scaled else _no_autoscaler(env)
    if names.token_auth(cluster):
        yield from _token(spec)
    # Both are alpha, and off.
    if spec.get("networkPolicy") is not None:
        yield "spec.networkPolicy requires the RayClusterNetworkPolicy feature gate to be enabled"
    if spec.get("tlsOptions") is not None:
        yield "spec.tlsOptions requires the RayClusterMTLS feature gate to be enabled"


def _group(name: str, group: Object) -> Iterator[str]:
    parameters = group.get("rayStartParams") or {}
    if group.get("resources") and any(parameters.get(key) for key in RAY_RESOURCES):
        yield (
            f"resource fields should not be set in both rayStartParams and Resources for {name} group; "
            "please use only one"
        )
    if "labels" in parameters:
        yield (
            f"rayStartParams['labels'] is not supported for {name} group; please use the top-level Labels field instead"
        )


def _workers(group: Object, scaled: bool) -> Iterator[str]:
    name = group["groupName"]
    low, high = group.get("minReplicas"), group.get("maxReplicas")
    if not group["template"].get("spec", {}).get("containers"):
        yield "workerGroupSpec should have at least one container"
    if low is not None and low < 0:
        yield f"worker group {name} has negative minReplicas {low}"
    if high is not None and high < 0:
        yield f"worker group {name} has negative maxReplicas {high}"
    if low is not None and high is not None and low > high:
        yield f"worker group {name} has minReplicas {low} greater than maxReplicas {high}"
    yield from _group(name, group)
    if scaled and group.get("suspend"):
        yield f"worker group {name} cannot be suspended with Autoscaler enabled"


def _autoscaler(cluster: Object, env: dict[str, Any]) -> Iterator[str]:
    version = names.autoscaler_version(cluster)
    if version and AUTOSCALER_V2 in env:
        yield (
            f"both .spec.autoscalerOptions.version and head Pod env var {AUTOSCALER_V2} are set, "
            "please only use the former"
        )
    if version != "v2":
        return
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    if head.get("restartPolicy", "Never") != "Never":
        yield "restartPolicy for head Pod should be Never or unset when using autoscaler V2"
    for group in names.worker_groups(cluster):
        if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            name = group["groupName"]
            yield f"restartPolicy for worker group {name} should be Never or unset when using autoscaler V2"


def _no_autoscaler(env: dict[str, Any]) -> Iterator[str]:
    if env.get(AUTOSCALER_V2) in ("1", "true"):
        yield (
            f"environment variable {AUTOSCALER_V2} cannot be set to '{env[AUTOSCALER_V2]}' when "
            "enableInTreeAutoscaling is false. Please set enableInTreeAutoscaling: true to use autoscaler v2"
        )


def _fault_tolerance(cluster: Object, env: dict[str, Any]) -> Iterator[str]:
    head = cluster["spec"]["headGroupSpec"]
    options = cluster["spec"].get("gcsFaultToleranceOptions")
    if options is not None and names.FT_ENABLED in cluster["metadata"].get("annotations", {}):
        yield (
            f"{names.FT_ENABLED} annotation and GcsFaultToleranceOptions are both set. "
            "Please use only GcsFaultToleranceOptions to configure GCS fault tolerance"
        )
    if "RAY_REDIS_ADDRESS" in env and not names.fault_tolerant(cluster):
        yield (
            "RAY_REDIS_ADDRESS is set which implicitly enables GCS fault tolerance, but GcsFaultToleranceOptions is "
            "not set. Please set GcsFaultToleranceOptions to enable GCS fault tolerance"
        )
    if options is None:
        return
    if (head.get("rayStartParams") or {}).get("redis-password"):
        yield "cannot set `redis-password` in rayStartParams when GcsFaultToleranceOptions is enabled"
    for name in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS"):
        if name in env:
            yield f"cannot set `{name}` env var in head Pod when GcsFaultToleranceOptions is enabled"
    # Alpha, and off.
    if options.get("backend", "redis") == "rocksdb":
        yield "GcsFaultToleranceOptions.Backend: 'rocksdb' requires the GCSFaultToleranceEmbeddedStorage feature gate"


def _token(spec: Object) -> Iterator[str]:
    version = spec.get("rayVersion", "")
    if not version:
        yield "authOptions.mode is 'token' but RayVersion was not specified. Ray version 2.52.0 or later is required"
        return
    numbers = re.match(r"v?(\d+)\.(\d+)(\.\d+)?", version)
    if numbers is None:
        yield f"authOptions.mode is 'token' but RayVersion format is invalid: {version}"
    elif (int(numbers[1]), int(numbers[2])) < (2, 52):
        yield f"authOptions.mode is 'token' but minimum Ray version is 2.52.0, got {version}"
