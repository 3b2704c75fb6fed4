"""The RayCluster of a pipeline: decided when its first spec is accepted, and kept.

What cannot change in a cluster that lives (Ray's version, the head) needs a second one beside it. As long as nothing
ever served, there is nothing to protect: then another cluster simply takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping

from servepipe.api.problem import Problem
from servepipe.api.v1alpha1 import Spec
from servepipe_operator.engine.history import Checkpoint
from servepipe_operator.engine.names import cluster_name
from servepipe_operator.engine.pools import Slot
from servepipe_operator.engine.revisions import digest
from servepipe_operator.engine.state import ClusterDefaults, ClusterPlan, Json
from servepipe_operator.engine.versions import version_problem
from servepipe_operator.engine.wishes import cluster_identity

__all__ = ["cluster_plan", "cluster_problems", "has_served", "replacement_problem", "wanted_cluster"]

_FIELDS = {
    "rayVersion": "spec.rayVersion",
    "head": "spec.cluster.head",
    "grpc": "spec.ingress.grpc",
    "gcsFaultTolerance": "spec.cluster.gcsFaultTolerance",
}


def wanted_cluster(spec: Spec, kept: Json | None, defaults: ClusterDefaults) -> Json:
    """What `Checkpoint.cluster` is to say for ``spec``.

    Args:
        kept: As it stands. Defaults of a newer version of this code count only together with another version of Ray.
    """
    kept = kept or {}
    version = spec.ray_version or kept.get("defaultRayVersion") or defaults.ray_version
    image = kept["image"] if kept.get("rayVersion") == version else defaults.image.format(ray_version=version)
    head = spec.cluster.head if spec.cluster else None
    identity = cluster_identity(spec, version, (head.image if head else None) or image)
    return {
        "rayVersion": version,
        "defaultRayVersion": kept.get("defaultRayVersion") or defaults.ray_version,
        "image": image,
        "identity": identity,
        "revision": kept["revision"] if kept.get("identity") == identity else digest(identity),
    }


def has_served(checkpoint: Checkpoint) -> bool:
    """Whether callers were ever answered."""
    return any(unit.stable for unit in checkpoint.nodes.values())


def cluster_problems(spec: Spec, defaults: ClusterDefaults) -> list[Problem]:
    """What is wrong with the cluster that ``spec`` asks for."""
    what = version_problem(spec.ray_version or defaults.ray_version)
    return [Problem("spec.rayVersion", what)] if what else []


def replacement_problem(spec: Spec, checkpoint: Checkpoint, defaults: ClusterDefaults) -> Problem | None:
    """Why ``spec`` cannot be had in the cluster that serves, or None."""
    kept = checkpoint.cluster
    if kept is None or not has_served(checkpoint):
        return None
    wanted = wanted_cluster(spec, kept, defaults)["identity"]
    if wanted == kept["identity"]:
        return None
    changed = sorted(
        key for key in wanted.keys() | kept["identity"].keys() if wanted.get(key) != kept["identity"].get(key)
    )
    return Problem(
        ", ".join(_FIELDS.get(key, key) for key in changed),
        "this needs a second RayCluster beside the one that serves, which servepipe cannot make yet",
        "Take the change back, or make a pipeline under another name and move the callers there.",
    )


def cluster_plan(
    pipeline: str, uid: str, kept: Mapping[str, str], spec: Spec, slots: tuple[Slot, ...], suspend: bool
) -> ClusterPlan:
    """The plan for the cluster that ``kept`` (`Checkpoint.cluster`) names."""
    return ClusterPlan(
        name=cluster_name(pipeline, uid, kept["revision"]),
        ray_version=kept["rayVersion"],
        image=kept["image"],
        spec=spec,
        slots=slots,
        suspend=suspend,
    )
