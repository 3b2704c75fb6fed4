"""The pods of a RayCluster, built from its templates."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

from kuberay import names, quantity

Object = dict[str, Any]

SMALL = {"cpu": "200m", "memory": "256Mi"}
AUTOSCALER_SIZE = {"cpu": "500m", "memory": "512Mi"}
FROM_POD = {
    "RAY_CLUSTER_NAME": f"metadata.labels['{names.CLUSTER}']",
    "RAY_CLUSTER_NAMESPACE": "metadata.namespace",
    "RAY_CLOUD_INSTANCE_ID": "metadata.name",
    "RAY_NODE_TYPE_NAME": f"metadata.labels['{names.GROUP}']",
}
PARAMETERS = {"CPU": "num-cpus", "GPU": "num-gpus", "memory": "memory"}
FOR_RAYSERVICE = {
    "RAY_timeout_ms_task_wait_for_death_info": "0",
    "RAY_gcs_server_request_timeout_seconds": "5",
    "RAY_SERVE_KV_TIMEOUT_S": "5",
}
OVERRIDES = ("image", "imagePullPolicy", "resources", "securityContext", "command", "args")
EXTENSIONS = ("env", "envFrom", "volumeMounts")


def head_pod(cluster: Object, spec_hash: str) -> Object:
    """A body to create; the API server completes its name."""
    group = cluster["spec"]["headGroupSpec"]
    pod = _from_template(cluster, group, "head", names.HEAD_GROUP, names.head_pod_prefix(cluster["metadata"]["name"]))
    annotations = pod["metadata"].setdefault("annotations", {})
    annotations |= {
        names.RECREATE_HASH: spec_hash,
        names.KUBERAY_VERSION_KEY: names.KUBERAY_VERSION,
        names.FT_ENABLED: str(names.fault_tolerant(cluster)).lower(),
    }
    spec, ray = pod["spec"], pod["spec"]["containers"][0]
    parameters = dict(group.get("rayStartParams") or {})
    if names.autoscaling(cluster):
        parameters["no-monitor"] = "true"
        spec["serviceAccountName"] = names.own_name(names.service_account(cluster))
        spec["containers"].append(_autoscaler(cluster, ray["image"]))
        if names.autoscaler_version(cluster) == "v2":
            ray.setdefault("env", []).append({"name": "RAY_enable_autoscaler_v2", "value": "true"})
            spec["restartPolicy"] = "Never"
    _finish(cluster, pod, group, parameters, "ray start --head")
    if names.autoscaling(cluster):
        for container in (ray, spec["containers"][_index_of(spec, "autoscaler")]):
            _mount_empty(spec, container, "ray-logs", "/tmp/ray", {})
    return pod


def worker_pod(cluster: Object, group: Object, index: int, replica: str = "", host: int = 0) -> Object:
    """A body to create.

    Args:
        index: Of the replica in its group.
        replica: Name of the replica where it is several hosts.
        host: Index in that replica.
    """
    name = cluster["metadata"]["name"]
    prefix = names.worker_pod_prefix(name, group["groupName"])
    pod = _from_template(cluster, group, "worker", group["groupName"], prefix)
    labels = pod["metadata"]["labels"]
    labels[names.REPLICA_INDEX] = str(index)
    if names.hosts(group) > 1:
        labels |= {names.REPLICA_NAME: replica, names.HOST_INDEX: str(host)}
    spec, ray = pod["spec"], pod["spec"]["containers"][0]
    # It waits until the head answers, so that no worker registers with a head that is gone.
    waiting = {key: copy.deepcopy(ray[key]) for key in ("image", "imagePullPolicy", "env") if key in ray}
    waiting |= {key: copy.deepcopy(ray[key]) for key in ("securityContext", "volumeMounts") if key in ray}
    waiting |= {
        "name": "wait-gcs-ready",
        "command": ["/bin/bash", "-c", "--"],
        "args": [f"until ray health-check --address {_head_address(cluster)}; do sleep 5; done"],
        "resources": {"limits": dict(SMALL), "requests": dict(SMALL)},
    }
    spec.setdefault("initContainers", []).append(waiting)
    if names.autoscaling(cluster) and names.autoscaler_version(cluster) == "v2":
        spec["restartPolicy"] = "Never"
    parameters = {"address": _head_address(cluster), **(group.get("rayStartParams") or {})}
    _finish(cluster, pod, group, parameters, "ray start")
    return pod


def ray_resources(group: Object) -> dict[str, float]:
    """What one pod of a group offers to Ray: of its first container limits, overridden by what the group says."""
    ray = group["template"]["spec"]["containers"][0]
    limits = (ray.get("resources") or {}).get("limits") or {}
    requests = (ray.get("resources") or {}).get("requests") or {}
    offered: dict[str, float] = {"CPU": float(math.ceil(quantity.parse(limits.get("cpu", requests.get("cpu", 1)))))}
    if "memory" in limits:
        offered["memory"] = float(quantity.parse(limits["memory"]))
    for key, value in limits.items():
        if key.endswith("gpu"):
            offered["GPU"] = float(value)
    parameters = group.get("rayStartParams") or {}
    for key, parameter in PARAMETERS.items():
        if parameter in parameters:
            offered[key] = float(parameters[parameter])
    custom = json.loads(parameters["resources"].strip("'\"` ").replace('\\"', '"')) if "resources" in parameters else {}
    return offered | {
        key: float(quantity.parse(value)) for key, value in {**custom, **group.get("resources", {})}.items()
    }


def _from_template(cluster: Object, group: Object, node_type: str, group_name: str, prefix: str) -> Object:
    template = copy.deepcopy(group["template"])
    name = cluster["metadata"]["name"]
    wished = {**template.get("metadata", {}).get("labels", {}), **(group.get("labels") or {})}
    serves = {names.SERVES: str(node_type == "worker").lower()}
    rayservice = cluster["metadata"].get("labels", {}).get(names.ORIGIN) == "RayService"
    metadata = {
        **{key: value for key, value in template.get("metadata", {}).items() if key != "name"},
        "generateName": prefix,
        "namespace": cluster["metadata"]["namespace"],
        "labels": names.pod_labels(name, node_type, group_name, wished) | (serves if rayservice else {}),
        "ownerReferences": [names.owner_reference(cluster)],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _finish(cluster: Object, pod: Object, group: Object, parameters: dict[str, str], command: str) -> None:
    """What heads and workers have in common: the token, the metrics port, shared memory, the command."""
    spec, ray = pod["spec"], pod["spec"]["containers"][0]
    if names.token_auth(cluster):
        initial = [one for one in spec.get("initContainers", []) if one["name"] == "wait-gcs-ready"]
        scaler = [one for one in spec["containers"] if one["name"] == "autoscaler"]
        for container in (ray, *initial, *scaler):
            _add_token(cluster, container)
    ports = ray.setdefault("ports", [])
    if not any(port.get("name") == "metrics" for port in ports):
        ports.append({"name": "metrics", "containerPort": names.METRICS_PORT})
    limits = (ray.get("resources") or {}).get("limits") or {}
    if "cpu" in limits:
        parameters.setdefault("num-cpus", str(math.ceil(quantity.parse(limits["cpu"]))))
    if "memory" in limits:
        parameters.setdefault("memory", str(int(quantity.parse(limits["memory"]))))
    if group.get("resources"):
        offered = {name: float(quantity.parse(value)) for name, value in group["resources"].items()}
        named = {name: offered.pop(name) for name in ("CPU", "GPU", "memory") if name in offered}
        for name, parameter in PARAMETERS.items():
            if name in named:
                parameters[parameter] = f"{named[name]:g}"
        if offered:
            parameters["resources"] = f"'{json.dumps(offered)}'"
    if "plasma-directory" not in parameters:
        memory = {"medium": "Memory", **({"sizeLimit": limits["memory"]} if "memory" in limits else {})}
        _mount_empty(spec, ray, "shared-mem", "/dev/shm", memory)
    started = " ".join([command, *(f"--{key}={value}" for key, value in sorted(parameters.items()))])
    worker = pod["metadata"]["labels"][names.NODE_TYPE] == "worker"
    _probe(cluster, ray, worker=worker)
    before = " ".join([*ray.get("command", []), *ray.get("args", [])])
    ray["command"] = ["/bin/bash", "-c", "--"]
    ray["args"] = [f"{before} && {started} --block" if before else f"{started} --block"]
    present = {one["name"] for one in ray.setdefault("env", [])}
    added = _environment(cluster, f"{started} --block", worker=worker)
    ray["env"].extend(one for one in added if one["name"] not in present)


def _environment(cluster: Object, command: str, *, worker: bool) -> list[Object]:
    """Of the first container, after the template's and the token's."""
    address = _head_address(cluster)
    plain = {"FQ_RAY_IP": address.partition(":")[0], "RAY_IP": names.head_service(cluster)} if worker else {}
    fields = {name: {"fieldRef": {"fieldPath": path}} for name, path in FROM_POD.items()}
    late = {
        "KUBERAY_GEN_RAY_START_CMD": command,
        "RAY_PORT": "6379",
        "RAY_ADDRESS": address if worker else "127.0.0.1:6379",
        "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
    }
    return [
        *({"name": name, "value": value} for name, value in plain.items()),
        *({"name": name, "valueFrom": source} for name, source in fields.items()),
        *({"name": name, "value": value} for name, value in late.items()),
    ]


def _probe(cluster: Object, ray: Object, *, worker: bool) -> None:
    """Ray's own health, on workers too: only for a RayService they also ask Serve's proxy."""
    health: Object = {"httpGet": {"path": "/api/healthz", "port": 52365}}
    health |= {"timeoutSeconds": 2 if worker else 5, "periodSeconds": 5}
    ray.setdefault("livenessProbe", {**health, "initialDelaySeconds": 30, "failureThreshold": 120})
    if cluster["metadata"].get("labels", {}).get(names.ORIGIN) != "RayService":
        ray.setdefault("readinessProbe", {**health, "initialDelaySeconds": 10, "failureThreshold": 10})
        return
    asked = "wget -q -O- localhost:52365/api/healthz && wget -q -O- localhost:8000/-/healthz"
    serves: Object = {"exec": {"command": ["bash", "-c", asked]}} if worker else health
    ray.setdefault("readinessProbe", {**serves, "initialDelaySeconds": 10, "failureThreshold": 1})
    ray.setdefault("env", []).extend({"name": name, "value": value} for name, value in FOR_RAYSERVICE.items())


def _autoscaler(cluster: Object, image: str) -> Object:
    options = cluster["spec"].get("autoscalerOptions") or {}
    container: Object = {
        "name": "autoscaler",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/bash", "-c", "--"],
        "args": ["ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME)"],
        "env": [
            {"name": name, "valueFrom": {"fieldRef": {"fieldPath": FROM_POD[name]}}}
            for name in ("RAY_CLUSTER_NAME", "RAY_CLUSTER_NAMESPACE")
        ],
        "resources": {"limits": dict(AUTOSCALER_SIZE), "requests": dict(AUTOSCALER_SIZE)},
    }
    container |= {key: copy.deepcopy(options[key]) for key in OVERRIDES if options.get(key)}
    for key in EXTENSIONS:
        if options.get(key):
            container[key] = [*container.get(key, []), *copy.deepcopy(options[key])]
    return container


def _add_token(cluster: Object, container: Object) -> None:
    secret = cluster["spec"]["authOptions"].get("secretName") or names.own_name(cluster["metadata"]["name"])
    env = container.setdefault("env", [])
    reference = {"secretKeyRef": {"name": secret, "key": "auth_token"}}
    wanted = [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", "valueFrom": reference}]
    present = {one["name"] for one in env}
    env.extend(one for one in wanted if one["name"] not in present)


def _mount_empty(spec: Object, container: Object, name: str, path: str, content: Object) -> None:
    mounts = container.setdefault("volumeMounts", [])
    if any(mount["mountPath"] == path or mount["name"] == name for mount in mounts):
        return
    mounts.append({"name": name, "mountPath": path})
    volumes = spec.setdefault("volumes", [])
    if not any(volume["name"] == name for volume in volumes):
        volumes.append({"name": name, "emptyDir": content})


def _index_of(spec: Object, name: str) -> int:
    return next(index for index, container in enumerate(spec["containers"]) if container["name"] == name)


def _head_address(cluster: Object) -> str:
    metadata = cluster["metadata"]
    return f"{names.head_service(cluster)}.{metadata['namespace']}.svc.cluster.local:6379"
