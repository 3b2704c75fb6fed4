"""The pods of a RayCluster, built from its templates: what really runs Ray where there are nodes. Pure."""

from __future__ import annotations

import copy
from typing import Any

from kuberay import commands, environment, names, probes

Object = dict[str, Any]

SMALL = {"cpu": "200m", "memory": "256Mi"}
AUTOSCALER_SIZE = {"cpu": "500m", "memory": "512Mi"}
OVERRIDES = ("image", "imagePullPolicy", "resources", "securityContext", "command", "args")
EXTENSIONS = ("env", "envFrom", "volumeMounts")
WAITING = "wait-gcs-ready"


def head_pod(cluster: Object, spec_hash: str) -> Object:
    """A body to create; the API server completes its name."""
    group = cluster["spec"]["headGroupSpec"]
    pod = _from_template(cluster, group, "head", names.HEAD_GROUP, names.head_pod_prefix(cluster["metadata"]["name"]))
    annotations = pod["metadata"]["annotations"]
    annotations |= {
        names.RECREATE_HASH: spec_hash,
        names.KUBERAY_VERSION_KEY: names.KUBERAY_VERSION,
        names.FT_ENABLED: str(names.fault_tolerant(cluster)).lower(),
    }
    if names.fault_tolerant(cluster):
        annotations[names.STORAGE_NAMESPACE] = environment.storage_namespace(cluster)
    spec, ray = pod["spec"], pod["spec"]["containers"][0]
    beside: list[Object] = []
    if names.autoscaling(cluster):
        spec["serviceAccountName"] = names.own_name(names.service_account(cluster))
        beside = [_autoscaler(cluster, ray["image"])]
        spec["containers"] += beside
        version = names.autoscaler_version(cluster)
        if version:
            value = str(version == "v2").lower()
            environment.add(ray, {"RAY_enable_autoscaler_v2": value}, always=True)
    _finish(cluster, pod, group, head=True)
    for container in (ray, *beside) if beside else ():
        _mount_empty(spec, container, "ray-logs", "/tmp/ray", {})
    return pod


def worker_pod(cluster: Object, group: Object, index: int, replica: str = "", host: int = 0) -> Object:
    """A body to create.

    Args:
        index: Of the replica in its group.
        replica: Name of the replica where it is several hosts.
        host: Index in that replica.
    """
    prefix = names.worker_pod_prefix(cluster["metadata"]["name"], group["groupName"])
    pod = _from_template(cluster, group, "worker", group["groupName"], prefix)
    labels = pod["metadata"]["labels"]
    labels[names.REPLICA_INDEX] = str(index)
    if names.hosts(group) > 1:
        labels |= {names.REPLICA_NAME: replica, names.HOST_INDEX: str(host)}
    ray = pod["spec"]["containers"][0]
    # It waits until the head answers, so that no worker registers with a head that is gone.
    copied = ("image", "imagePullPolicy", "env", "securityContext", "volumeMounts")
    waiting = {
        "name": WAITING,
        "command": list(commands.SHELL),
        "args": [commands.wait_for_gcs(names.gcs_address(cluster))],
        "resources": {"limits": dict(SMALL), "requests": dict(SMALL)},
        **{key: copy.deepcopy(ray[key]) for key in copied if key in ray},
    }
    pod["spec"].setdefault("initContainers", []).append(waiting)
    _finish(cluster, pod, group, head=False)
    return pod


def _from_template(cluster: Object, group: Object, node_type: str, group_name: str, prefix: str) -> Object:
    template = copy.deepcopy(group["template"])
    name = cluster["metadata"]["name"]
    wished = {**template.get("metadata", {}).get("labels", {}), **(group.get("labels") or {})}
    serves = {names.SERVES: str(node_type == "worker").lower()}
    metadata = {
        **{key: value for key, value in template.get("metadata", {}).items() if key != "name"},
        "generateName": prefix,
        "namespace": cluster["metadata"]["namespace"],
        "labels": names.pod_labels(name, node_type, group_name, wished)
        | (serves if names.creator(cluster) == "RayService" else {}),
        "ownerReferences": [names.owner_reference(cluster)],
    }
    metadata.setdefault("annotations", {})
    if cluster["metadata"].get("annotations", {}).get(names.OVERWRITE_COMMAND, "").lower() == "true":
        metadata["annotations"][names.OVERWRITE_COMMAND] = "true"
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _finish(cluster: Object, pod: Object, group: Object, *, head: bool) -> None:
    """What heads and workers have in common, in KubeRay's order: the last of two equal names in an env counts."""
    spec, ray = pod["spec"], pod["spec"]["containers"][0]
    if names.autoscaling(cluster) and names.autoscaler_version(cluster) == "v2":
        spec["restartPolicy"] = "Never"
    environment.add_fault_tolerance(cluster, ray, head=head)
    ports = ray.setdefault("ports", [])
    if not any(port.get("name") == "metrics" for port in ports):
        ports.append({"name": "metrics", "containerPort": names.METRICS_PORT})
    if names.token_auth(cluster):
        for container in (ray, *(one for one in spec.get("initContainers", []) if one["name"] == WAITING)):
            environment.add_token(cluster, container)
    flags = commands.parameters(cluster, group, head=head)
    if "plasma-directory" not in flags:
        resources = ray.get("resources") or {}
        size = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}.get("memory")
        _mount_empty(spec, ray, "shared-mem", "/dev/shm", {"medium": "Memory", **({"sizeLimit": size} if size else {})})
    started = commands.ray_start(flags, head=head)
    overwritten = pod["metadata"]["annotations"].get(names.OVERWRITE_COMMAND, "").lower() == "true"
    commands.run(ray, started, overwritten=overwritten)
    for container in spec.get("initContainers", []):
        environment.add_head_address(cluster, container)
    environment.complete(cluster, ray, started, head=head)
    probes.add(cluster, ray, flags, head=head)


def _autoscaler(cluster: Object, image: str) -> Object:
    """Ray's autoscaler, which asks the head what is missing and edits the RayCluster."""
    options = cluster["spec"].get("autoscalerOptions") or {}
    container: Object = {
        "name": "autoscaler",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(commands.SHELL),
        "args": [commands.AUTOSCALER],
        "resources": {"limits": dict(AUTOSCALER_SIZE), "requests": dict(AUTOSCALER_SIZE)},
    }
    environment.add(container, environment.of_autoscaler(commands.AUTOSCALER))
    if names.token_auth(cluster):
        environment.add_token(cluster, container)
    container |= {key: copy.deepcopy(options[key]) for key in OVERRIDES if options.get(key)}
    for key in EXTENSIONS:
        if options.get(key):
            container[key] = [*container.get(key, []), *copy.deepcopy(options[key])]
    return container


def _mount_empty(spec: Object, container: Object, name: str, path: str, content: Object) -> None:
    mounts = container.setdefault("volumeMounts", [])
    if any(mount["mountPath"] == path for mount in mounts):
        return
    mounts.append({"name": name, "mountPath": path})
    volumes = spec.setdefault("volumes", [])
    if not any(volume["name"] == name for volume in volumes):
        volumes.append({"name": name, "emptyDir": content})
