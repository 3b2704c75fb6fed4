"""Everything that there is of a pipeline, without what is random or tells times: equal where the same was done."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from typing import Any

import httpx
from bed.control_plane import ControlPlane
from kuberay.control import KubeRay

from servepipe_operator.adapters.revision_history import unpack

Json = dict[str, Any]

CHILDREN = {
    "RayCluster": "/apis/ray.io/v1/namespaces/{}/rayclusters",
    "Service": "/api/v1/namespaces/{}/services",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "Secret": "/api/v1/namespaces/{}/secrets",
}
REVISIONS = "/apis/apps/v1/namespaces/{}/controllerrevisions"
PIPELINE = "/apis/servepipe.dev/v1alpha1/namespaces/{}/servepipelines/{}"
#: Given by the API server, at random or by time.
#: ``scaleStrategy`` is the autoscaler's, with names of pods.
GIVEN = {
    "scaleStrategy",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "managedFields",
    "generation",
    "clusterIP",
    "clusterIPs",
}
TIMES = {"lastTransitionTime", "at", "since", "deadlines", "retryAt"}
PIPELINE_LABEL = "servepipe.dev/pipeline"


def end_objects(plane: ControlPlane, kuberay: KubeRay, namespace: str, name: str) -> Json:
    """By kind and name; see the module. AssertionError while the head does not answer."""
    live = plane.api.get(PIPELINE.format(namespace, name))
    found: Json = {"status": live.get("status", {})}
    random = {namespace: "NAMESPACE", live["metadata"]["uid"]: "UID"}
    for kind, path in CHILDREN.items():
        for one in plane.api.get(path.format(namespace), labelSelector=f"{PIPELINE_LABEL}={name}")["items"]:
            one.pop("status", None)
            if kind == "RayCluster":
                for group in groups_of(one):
                    group.pop("replicas", None)
            found[f"{kind} {one['metadata']['name']}"] = one
            if kind == "RayCluster":
                random[one["metadata"]["name"]] = "CLUSTER"
            if kind == "Secret":
                random |= dict.fromkeys(one.get("data", {}).values(), "TOKEN")
    for one in plane.api.get(REVISIONS.format(namespace))["items"]:
        record = unpack(one)
        assert record is not None, f"ControllerRevision {one['metadata']['name']} cannot be read"
        owner = one["metadata"]["ownerReferences"]
        found[f"{record.kind} {record.name} {record.sequence}"] = {"data": record.data, "owner": owner}
    for cluster in [cluster for cluster, called in random.items() if called == "CLUSTER"]:
        found |= _ray(kuberay, namespace, cluster)
    return _plain(found, random)


def _ray(kuberay: KubeRay, namespace: str, cluster: str) -> Json:
    """What Serve was told, and what runs."""
    seen = kuberay.look(namespace, cluster)
    if seen["head"] is None:
        return {"serve": None, "pods": [], "idle pods": []}
    headers = {"X-Ray-Authorization": f"Bearer {seen['head']['token']}"}
    url = f"http://{seen['head']['ip']}:8265/api/serve/applications/"
    answer = httpx.get(url, headers=headers, trust_env=False, timeout=10).json()
    configs = {one: application["deployed_app_config"] for one, application in answer["applications"].items()}
    replicas = {
        one: sorted(replica["state"] for replica in application["replicas"])
        for one, application in seen["applications"].items()
    }
    used = {replica["node"] for application in seen["applications"].values() for replica in application["replicas"]}
    workers = {name: node["group"] for name, node in seen["nodes"].items() if node["group"] != "headgroup"}
    idle = sorted(group for name, group in workers.items() if name not in used)
    options = {key: answer[key] for key in ("proxy_location", "http_options", "grpc_options")}
    serve = {"configs": configs, "replicas": replicas, "options": options}
    return {"serve": serve, "pods": sorted(workers.values()), "idle pods": idle}


def groups_of(cluster: Json) -> list[Json]:
    """The worker groups of a RayCluster."""
    groups: list[Json] = cluster["spec"].get("workerGroupSpecs") or []
    return groups


def secret_token(plane: ControlPlane, namespace: str, name: str) -> str:
    """The token in the pipeline's Secret, or ""."""
    secret = plane.api.find(f"/api/v1/namespaces/{namespace}/secrets/{name}-token")
    return b64decode(secret["data"]["auth_token"]).decode() if secret else ""


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two of them differ, a line for each place."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            line
            for key in sorted(one.keys() | other.keys())
            for line in differences(one.get(key), other.get(key), f"{where}/{key}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            line for at, pair in enumerate(zip(one, other, strict=True)) for line in differences(*pair, f"{where}/{at}")
        ]
    return [] if one == other else [f"{where}: {json.dumps(one)} is to be {json.dumps(other)}"]


def _plain(value: Any, random: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            _plain(key, random): _plain(one, random)
            for key, one in value.items()
            if key not in GIVEN and key not in TIMES
        }
    if isinstance(value, list):
        return [_plain(one, random) for one in value]
    if isinstance(value, str):
        return re.sub("|".join(map(re.escape, random)), lambda found: random[found[0]], value)
    return value
