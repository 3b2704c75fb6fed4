"""Labels, annotations, and the names of what belongs to a RayCluster."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

CLUSTER = "ray.io/cluster"
NODE_TYPE = "ray.io/node-type"
GROUP = "ray.io/group"
IDENTIFIER = "ray.io/identifier"
IS_NODE = "ray.io/is-ray-node"
REPLICA_INDEX = "ray.io/worker-group-replica-index"
REPLICA_NAME = "ray.io/worker-group-replica-name"
HOST_INDEX = "ray.io/replica-host-index"
HEADLESS_LABEL = "ray.io/headless-worker-svc"
APP_NAME, CREATED_BY = "app.kubernetes.io/name", "app.kubernetes.io/created-by"
HEAD_GROUP = "headgroup"

ORIGIN, SERVES = "ray.io/originated-from-crd", "ray.io/serve"
SERVE_SERVICE = "ray.io/enable-serve-service"
RECREATE_HASH = "ray.io/upgrade-strategy-recreate-hash"
KUBERAY_VERSION_KEY = "ray.io/kuberay-version"
FT_ENABLED = "ray.io/ft-enabled"
STORAGE_NAMESPACE = "ray.io/external-storage-namespace"
OVERWRITE_COMMAND = "ray.io/overwrite-container-cmd"
REDIS_FINALIZER = "ray.io/gcs-ft-redis-cleanup-finalizer"
KUBERAY_VERSION = "v1.7.0"

DEFAULT_PORTS = {"client": 10001, "gcs-server": 6379, "dashboard": 8265, "metrics": 8080, "serve": 8000}
METRICS_PORT = 8080
GCS_PORT = "6379"
CREATORS = ("RayCluster", "RayService", "RayJob", "RayCronJob")

LONGEST_PREFIX = 50


def own_name(cluster: str) -> str:
    """Of the ServiceAccount, Role, RoleBinding and Secret: the end of a long name."""
    name = cluster[-LONGEST_PREFIX:]
    return name if name[0].isalpha() else "r" + name[1:]


def service_account(cluster: Object) -> str:
    """The head's: the user's, or one that is made."""
    named: str = cluster["spec"]["headGroupSpec"]["template"].get("spec", {}).get("serviceAccountName", "")
    return named or cluster["metadata"]["name"]


def head_service(cluster: Object) -> str:
    """Of the Service in front of the head."""
    wished = cluster["spec"]["headGroupSpec"].get("headService") or {}
    named: str = wished.get("metadata", {}).get("name", "")
    return named or f"{cluster['metadata']['name']}-head-svc"


def head_host(cluster: Object) -> str:
    """The full DNS name of that Service."""
    return f"{head_service(cluster)}.{cluster['metadata']['namespace']}.svc.cluster.local"


def gcs_port(cluster: Object) -> str:
    port: str = (cluster["spec"]["headGroupSpec"].get("rayStartParams") or {}).get("port", GCS_PORT)
    return port


def gcs_address(cluster: Object) -> str:
    """Where workers find the head."""
    return f"{head_host(cluster)}:{gcs_port(cluster)}"


def head_pod_prefix(cluster: str) -> str:
    return f"{cluster[:LONGEST_PREFIX]}-head-".lower()


def worker_pod_prefix(cluster: str, group: str) -> str:
    return f"{f'{cluster}-{group}'[:LONGEST_PREFIX]}-worker-".lower()


def pod_labels(cluster: str, node_type: str, group: str, wished: dict[str, str]) -> dict[str, str]:
    """Of a pod: the template's labels win, except over what KubeRay finds its pods by."""
    fixed = {CLUSTER: cluster, NODE_TYPE: node_type, GROUP: group}
    defaults = {
        IS_NODE: "yes",
        IDENTIFIER: f"{cluster}-{node_type}"[-63:],
        APP_NAME: "kuberay",
        CREATED_BY: "kuberay-operator",
    }
    return {**defaults, **wished, **fixed}


def head_selector(cluster: str) -> dict[str, str]:
    """Labels and selector of the head Service."""
    return {
        CLUSTER: cluster,
        NODE_TYPE: "head",
        IDENTIFIER: f"{cluster}-head"[-63:],
        APP_NAME: "kuberay",
        CREATED_BY: "kuberay-operator",
    }


def autoscaling(cluster: Object) -> bool:
    return bool(cluster["spec"].get("enableInTreeAutoscaling"))


def autoscaler_version(cluster: Object) -> str:
    """Explicit only; without it Ray decides."""
    version: str = (cluster["spec"].get("autoscalerOptions") or {}).get("version", "")
    return version


def token_auth(cluster: Object) -> bool:
    return (cluster["spec"].get("authOptions") or {}).get("mode") == "token"


def fault_tolerant(cluster: Object) -> bool:
    """Whether GCS keeps its state outside of the head."""
    annotated = cluster["metadata"].get("annotations", {}).get(FT_ENABLED, "")
    return annotated.lower() == "true" or bool(cluster["spec"].get("gcsFaultToleranceOptions"))


def creator(cluster: Object) -> str:
    """The kind that made the RayCluster, "RayCluster" where that was a user."""
    named = cluster["metadata"].get("labels", {}).get(ORIGIN, "")
    return named if named in CREATORS else CREATORS[0]


def worker_groups(cluster: Object) -> list[Object]:
    return cluster["spec"].get("workerGroupSpecs") or []


def desired_pods(group: Object) -> int:
    """How many pods a group is to have: between its bounds, times its hosts."""
    if group.get("suspend"):
        return 0
    low, high = group.get("minReplicas") or 0, group.get("maxReplicas", 2**31 - 1)
    return int(max(low, min(group.get("replicas") or 0, high))) * hosts(group)


def hosts(group: Object) -> int:
    return max(1, int(group.get("numOfHosts", 1)))


def owner_reference(cluster: Object) -> Object:
    metadata = cluster["metadata"]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
