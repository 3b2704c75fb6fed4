"""What KubeRay puts into the environment of a pod's containers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kuberay import names

Object = dict[str, Any]

#: From the pod itself, whatever the template says.
FROM_POD = {
    "RAY_CLUSTER_NAME": f"metadata.labels['{names.CLUSTER}']",
    "RAY_CLUSTER_NAMESPACE": "metadata.namespace",
    "RAY_CLOUD_INSTANCE_ID": "metadata.name",
    "RAY_NODE_TYPE_NAME": f"metadata.labels['{names.GROUP}']",
}
FOR_RAYSERVICE = {
    "RAY_timeout_ms_task_wait_for_death_info": "0",
    "RAY_gcs_server_request_timeout_seconds": "5",
    "RAY_SERVE_KV_TIMEOUT_S": "5",
}
RECONNECT_S = "600"


def has(container: Object, name: str) -> bool:
    return any(one["name"] == name for one in container.get("env", []))


def add(container: Object, values: Mapping[str, Any], *, always: bool = False) -> None:
    """Args:
    values: Strings, or what stands at ``valueFrom``.
    always: Also those that the container has already: the last one counts.
    """
    for name, value in values.items():
        if always or not has(container, name):
            content = {"value": value} if isinstance(value, str) else {"valueFrom": value}
            container.setdefault("env", []).append({"name": name, **content})


def add_token(cluster: Object, container: Object) -> None:
    secret = cluster["spec"]["authOptions"].get("secretName") or names.own_name(cluster["metadata"]["name"])
    reference = {"secretKeyRef": {"name": secret, "key": "auth_token"}}
    add(container, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": reference})


def add_head_address(cluster: Object, container: Object) -> None:
    values = {"FQ_RAY_IP": names.head_host(cluster), "RAY_IP": names.head_service(cluster)}
    add(container, values, always=True)


def of_autoscaler(command: str) -> dict[str, Any]:
    keys = ("RAY_CLUSTER_NAME", "RAY_CLUSTER_NAMESPACE")
    fields = {**{key: FROM_POD[key] for key in keys}, "RAY_HEAD_POD_NAME": "metadata.name"}
    return _fields(fields) | {"KUBERAY_CRD_VER": "v1", "KUBERAY_GEN_AUTOSCALER_START_CMD": command}


def complete(cluster: Object, ray: Object, command: str, *, head: bool) -> None:
    """Of Ray's container, after the template's, fault tolerance's and the token's."""
    if not head:
        add_head_address(cluster, ray)
    add(ray, {**_fields(FROM_POD), "KUBERAY_GEN_RAY_START_CMD": command}, always=True)
    add(ray, {"RAY_PORT": names.gcs_port(cluster)})
    if names.creator(cluster) == "RayService":
        add(ray, FOR_RAYSERVICE)
    here = f"127.0.0.1:{names.gcs_port(cluster)}"
    add(ray, {"RAY_ADDRESS": here if head else names.gcs_address(cluster), "RAY_USAGE_STATS_KUBERAY_IN_USE": "1"})
    if head:
        tags = f"kuberay_version={names.KUBERAY_VERSION};kuberay_crd={names.creator(cluster)}"
        add(ray, {"RAY_USAGE_STATS_EXTRA_TAGS": tags}, always=True)
    add(ray, {"RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1"})


def add_fault_tolerance(cluster: Object, ray: Object, *, head: bool) -> None:
    """Where GCS keeps its state; on workers, how long they wait for it to come back."""
    if not names.fault_tolerant(cluster):
        return
    if not head:
        add(ray, {"RAY_gcs_rpc_server_reconnect_timeout_s": RECONNECT_S})
    else:
        add(ray, {"RAY_external_storage_namespace": storage_namespace(cluster)})
        _add_redis(cluster, ray)


def storage_namespace(cluster: Object) -> str:
    """Under which GCS keeps its state in Redis."""
    options = cluster["spec"].get("gcsFaultToleranceOptions") or {}
    annotated = cluster["metadata"].get("annotations", {}).get(names.STORAGE_NAMESPACE)
    named: str = options.get("externalStorageNamespace") or annotated or cluster["metadata"]["uid"]
    return named


def _add_redis(cluster: Object, ray: Object) -> None:
    options = cluster["spec"].get("gcsFaultToleranceOptions")
    if options is None:
        # Only annotated: the template has the rest, but a password among Ray's flags.
        given = cluster["spec"]["headGroupSpec"].get("rayStartParams") or {}
        add(ray, {"REDIS_PASSWORD": given["redis-password"]} if "redis-password" in given else {})
        return
    add(ray, {"RAY_REDIS_ADDRESS": options.get("redisAddress", "")}, always=True)
    for key, name in {"redisUsername": "REDIS_USERNAME", "redisPassword": "REDIS_PASSWORD"}.items():
        if options.get(key):
            add(ray, {name: options[key].get("valueFrom") or options[key].get("value", "")}, always=True)


def _fields(paths: Mapping[str, str]) -> dict[str, Any]:
    return {name: {"fieldRef": {"fieldPath": path}} for name, path in paths.items()}
