"""The Job that takes a RayCluster's state out of Redis, before KubeRay lets go of the RayCluster. Pure."""

from __future__ import annotations

from typing import Any

from kuberay import commands, environment, names, pods

Object = dict[str, Any]

DEADLINE_S = 300
LONGEST_NAME = 63
PROGRAM = """\
import os, sys
from urllib.parse import urlsplit
from ray._private.gcs_utils import cleanup_redis_storage
first = os.environ["RAY_REDIS_ADDRESS"].split(",")[0]
redis = urlsplit(first if "://" in first else "redis://" + first)
who = {"username": os.environ["REDIS_USERNAME"]} if "REDIS_USERNAME" in os.environ else {}
emptied = cleanup_redis_storage(
    host=redis.hostname,
    port=redis.port,
    password=os.environ.get("REDIS_PASSWORD", redis.password or ""),
    use_ssl=redis.scheme == "rediss",
    storage_namespace=os.environ["RAY_external_storage_namespace"],
    **who,
)
sys.exit(0 if emptied else 1)
"""


def job(cluster: Object) -> Object:
    """A body to create: the head's pod, with only Ray's container and another program in it."""
    pod = pods.head_pod(cluster, "")
    metadata, spec = pod["metadata"], pod["spec"]
    metadata["labels"][names.NODE_TYPE] = "redis-cleanup"
    ray = spec["containers"][0]
    size = dict(pods.SMALL)
    ray |= {"command": list(commands.SHELL), "args": [f"python - <<'END'\n{PROGRAM}END\n"]}
    ray["resources"] = {"limits": size, "requests": dict(size)}
    for probe in ("livenessProbe", "readinessProbe"):
        ray.pop(probe, None)
    # A Redis that cannot be reached has a minute to come back.
    environment.add(ray, {"RAY_redis_db_connect_retries": "120", "RAY_redis_db_connect_wait_milliseconds": "500"})
    spec |= {"containers": [ray], "restartPolicy": "Never"}
    kept = {key: metadata[key] for key in ("labels", "annotations")}
    return {
        "metadata": {
            "name": f"{cluster['metadata']['name']}-redis-cleanup"[:LONGEST_NAME].rstrip("-"),
            "namespace": cluster["metadata"]["namespace"],
            "ownerReferences": [names.owner_reference(cluster)],
            **kept,
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": DEADLINE_S,
            "template": {"metadata": kept, "spec": spec},
        },
    }


def ended(found: Object) -> bool:
    conditions = found.get("status", {}).get("conditions", [])
    return any(one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions)
