"""The objects beside the pods: Services, the autoscaler's rights, the token's Secret."""

from __future__ import annotations

import base64
import secrets
from typing import Any

from kuberay import names

Object = dict[str, Any]


def head_ports(cluster: Object) -> dict[str, int]:
    """By name: those that the head's first container lists or, if it lists none, Ray's; and always the metrics."""
    listed = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0].get("ports") or []
    ports = {port.get("name") or f"{port['containerPort']}-port": port["containerPort"] for port in listed}
    return {"metrics": names.METRICS_PORT, **(ports or names.DEFAULT_PORTS)}


def head_service(cluster: Object) -> Object:
    """Headless unless the user says another type: it is the head's DNS name."""
    group = cluster["spec"]["headGroupSpec"]
    labels = names.head_selector(cluster["metadata"]["name"])
    wished = group["template"].get("metadata", {}).get("labels", {})
    labels |= {names.APP_NAME: wished[names.APP_NAME]} if names.APP_NAME in wished else {}
    ports = [{"name": name, "port": port, "appProtocol": "tcp"} for name, port in sorted(head_ports(cluster).items())]
    custom = group.get("headService")
    kind = group.get("serviceType", "")
    if custom:
        spec = {**custom.get("spec", {}), "selector": labels}
        spec["ports"] = [*custom.get("spec", {}).get("ports", []), *ports]
        if kind:
            spec.setdefault("type", kind)
        labels = {**custom.get("metadata", {}).get("labels", {}), **labels}
        annotations = custom.get("metadata", {}).get("annotations", {})
    else:
        spec = {"selector": labels, "ports": ports, **({"type": kind} if kind else {})}
        if kind in ("", "ClusterIP"):
            spec |= {"clusterIP": "None", "publishNotReadyAddresses": True}
        annotations = {}
    annotations = {**annotations, **cluster["spec"].get("headServiceAnnotations", {})}
    return _owned(cluster, names.head_service(cluster), labels, {"spec": spec}, annotations)


def serve_service(cluster: Object) -> Object:
    """Raises ValueError where no port of the head is named for Serve."""
    name = cluster["metadata"]["name"]
    ports = [
        {"name": port, "port": number}
        for port, number in sorted(head_ports(cluster).items())
        if port == "serve" or port.startswith("serve-")
    ]
    if not ports:
        raise ValueError(
            "Please specify a port named 'serve' (or with the prefix 'serve-', e.g. 'serve-grpc') in the Ray head "
            "container; otherwise, the Kubernetes service for Ray Serve will not be created."
        )
    labels = {
        "ray.io/originated-from-cr-name": name,
        "ray.io/originated-from-crd": "RayCluster",
        "ray.io/serve": f"{name}-serve",
    }
    spec: Object = {"selector": {names.CLUSTER: name}, "ports": ports}
    kind = cluster["spec"]["headGroupSpec"].get("serviceType")
    return _owned(cluster, f"{name}-serve-svc", labels, {"spec": spec | ({"type": kind} if kind else {})})


def headless_service(cluster: Object) -> Object:
    """For groups whose replicas are several hosts."""
    name = cluster["metadata"]["name"]
    spec = {
        "clusterIP": "None",
        "type": "ClusterIP",
        "selector": {names.CLUSTER: name, names.NODE_TYPE: "worker"},
        "publishNotReadyAddresses": True,
    }
    return _owned(cluster, f"{name}-headless", {names.HEADLESS_LABEL: name}, {"spec": spec})


def service_account(cluster: Object) -> Object:
    return _owned(cluster, names.own_name(names.service_account(cluster)), _labels(cluster), {})


def role(cluster: Object) -> Object:
    """What the autoscaler in the head may do."""
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": [""], "resources": ["pods/resize"], "verbs": ["patch"]},
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]},
    ]
    return _owned(cluster, names.own_name(cluster["metadata"]["name"]), _labels(cluster), {"rules": rules})


def role_binding(cluster: Object) -> Object:
    name = names.own_name(cluster["metadata"]["name"])
    account = names.own_name(names.service_account(cluster))
    content = {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": cluster["metadata"]["namespace"]}],
    }
    return _owned(cluster, name, _labels(cluster), content)


def token_secret(cluster: Object) -> Object:
    token = base64.b64encode(secrets.token_bytes(32)).decode()
    labels = {names.CLUSTER: cluster["metadata"]["name"]}
    content = {"stringData": {"auth_token": token}}
    return _owned(cluster, names.own_name(cluster["metadata"]["name"]), labels, content)


def _labels(cluster: Object) -> dict[str, str]:
    return {
        names.CLUSTER: cluster["metadata"]["name"],
        names.APP_NAME: "kuberay",
        names.CREATED_BY: "kuberay-operator",
    }


def _owned(
    cluster: Object, name: str, labels: dict[str, str], content: Object, annotations: dict[str, str] | None = None
) -> Object:
    metadata = {
        "name": name,
        "namespace": cluster["metadata"]["namespace"],
        "labels": labels,
        "annotations": annotations or {},
        "ownerReferences": [names.owner_reference(cluster)],
    }
    return {"metadata": metadata, **content}
