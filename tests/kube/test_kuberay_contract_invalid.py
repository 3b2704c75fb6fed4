"""KubeRay's contract, part 2: what it refuses leaves an Event and nothing else, neither a status nor objects."""

from __future__ import annotations

from typing import Any

import pytest
from kuberay.samples import autoscaled, group, raycluster, template
from kuberay_contract import Object, World

SPEC, METADATA = "InvalidRayClusterSpec", "InvalidRayClusterMetadata"


def pod(**spec: Any) -> Object:
    return {"spec": {**template()["spec"], **spec}}


def head(**fields: Any) -> Object:
    return {"rayStartParams": {}, "template": template(), **fields}


REDIS = {"redisAddress": "redis:6379"}
V2_ENV = [{"name": "RAY_enable_autoscaler_v2", "value": "1"}]
ROWS: dict[str, tuple[Object, str, str]] = {
    "a name of 54 characters": (raycluster("c" * 54), METADATA, "no more than 53 characters"),
    "a name that begins with a digit": (raycluster("1c"), METADATA, "DNS1035"),
    "a head without containers": (
        raycluster("c", headGroupSpec=head(template={"spec": {"containers": []}})),
        SPEC,
        "headGroupSpec should have at least one container",
    ),
    "a worker without containers": (
        raycluster("c", group("g", template={"spec": {"containers": []}})),
        SPEC,
        "workerGroupSpec should have at least one container",
    ),
    "resources twice": (
        raycluster("c", group("g", rayStartParams={"num-cpus": "1"}, resources={"x": "1"})),
        SPEC,
        "should not be set in both rayStartParams and Resources for g group",
    ),
    "resources twice in the head": (
        raycluster("c", headGroupSpec=head(rayStartParams={"memory": "1"}, resources={"x": "1"})),
        SPEC,
        "should not be set in both rayStartParams and Resources for Head group",
    ),
    "labels as a parameter of ray start": (
        raycluster("c", group("g", rayStartParams={"labels": "a=b"})),
        SPEC,
        "rayStartParams['labels'] is not supported for g group",
    ),
    "an idle time-out without autoscaler version 2": (
        raycluster("c", group("g", idleTimeoutSeconds=5)),
        SPEC,
        "idleTimeoutSeconds",
    ),
    "fault tolerance told twice": (
        raycluster("c", gcsFaultToleranceOptions=REDIS, metadata={"annotations": {"ray.io/ft-enabled": "true"}}),
        SPEC,
        "are both set",
    ),
    "Redis' password as a parameter of ray start": (
        raycluster("c", gcsFaultToleranceOptions=REDIS, headGroupSpec=head(rayStartParams={"redis-password": "p"})),
        SPEC,
        "redis-password",
    ),
    "Redis' address in the environment too": (
        raycluster(
            "c",
            gcsFaultToleranceOptions=REDIS,
            headGroupSpec=head(template=template(env=[{"name": "RAY_REDIS_ADDRESS", "value": "r:1"}])),
        ),
        SPEC,
        "RAY_REDIS_ADDRESS",
    ),
    "fault tolerance without Redis": (
        raycluster("c", gcsFaultToleranceOptions={"backend": "rocksdb"}),
        SPEC,
        "GCSFaultToleranceEmbeddedStorage",
    ),
    "a minimum above the maximum": (
        raycluster("c", group("g", minReplicas=3, maxReplicas=2)),
        SPEC,
        "minReplicas 3 greater than maxReplicas 2",
    ),
    "a token without a version of Ray": (
        raycluster("c", rayVersion="", authOptions={"mode": "token"}),
        SPEC,
        "RayVersion was not specified",
    ),
    "a token with Ray 2.51": (
        raycluster("c", rayVersion="2.51.0", authOptions={"mode": "token"}),
        SPEC,
        "minimum Ray version is 2.52.0, got 2.51.0",
    ),
    "a head that restarts, with autoscaler version 2": (
        autoscaled("c", headGroupSpec=head(template=pod(restartPolicy="Always"))),
        SPEC,
        "restartPolicy for head Pod should be Never or unset",
    ),
    "workers that restart, with autoscaler version 2": (
        autoscaled("c", group("g", template=pod(restartPolicy="OnFailure"))),
        SPEC,
        "restartPolicy for worker group g should be Never or unset",
    ),
    "a suspended group with the autoscaler": (
        autoscaled("c", group("g", suspend=True)),
        SPEC,
        "worker group g cannot be suspended with Autoscaler enabled",
    ),
    "autoscaler version 2 by environment, without autoscaler": (
        raycluster("c", headGroupSpec=head(template=template(env=V2_ENV))),
        SPEC,
        "when enableInTreeAutoscaling is false",
    ),
    "the autoscaler's version in two places": (
        autoscaled("c", headGroupSpec=head(template=template(env=V2_ENV))),
        SPEC,
        "please only use the former",
    ),
    "Redis by environment": (
        raycluster("c", headGroupSpec=head(template=template(env=[{"name": "RAY_REDIS_ADDRESS", "value": "r:1"}]))),
        SPEC,
        "GcsFaultToleranceOptions is not set",
    ),
    "an upgrade strategy on a RayService's cluster": (
        raycluster(
            "c",
            upgradeStrategy={"type": "Recreate"},
            metadata={"labels": {"ray.io/originated-from-crd": "RayService"}},
        ),
        SPEC,
        "upgradeStrategy cannot be set when RayCluster is created by RayService",
    ),
    "a NetworkPolicy without its feature gate": (
        raycluster("c", networkPolicy={"mode": "DenyAll"}),
        SPEC,
        "requires the RayClusterNetworkPolicy feature gate",
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_an_invalid_spec_gives_only_a_warning(world: World, row: str) -> None:
    body, reason, message = ROWS[row]
    event = world.refused(body)
    assert (event["reason"], event["type"]) == (reason, "Warning")
    assert message in event["note"]
    name = body["metadata"]["name"]
    world.passes()
    assert "status" not in world.cluster(name)
    assert world.pods(name) == []
    assert world.find(world.path("services", f"{name}-head-svc")) is None


def test_an_invalid_spec_that_is_corrected_is_taken(world: World) -> None:
    world.refused(raycluster("c", group("g", 1, minReplicas=3, maxReplicas=2)))
    world.json_patch("c", ("replace", "/spec/workerGroupSpecs/0/minReplicas", 1))
    world.wait_pods("c", 2)
    world.wait("a status", lambda: world.status("c").get("desiredWorkerReplicas") == 1)


def test_a_spec_that_becomes_invalid_keeps_what_runs_and_the_old_status(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    world.all_run("c")
    before = world.status("c")
    world.json_patch(
        "c",
        ("replace", "/spec/workerGroupSpecs/0/replicas", 2),
        ("add", "/spec/workerGroupSpecs/0/rayStartParams", {"labels": "a=b"}),
    )
    world.wait("a Warning", lambda: world.events("c", SPEC))
    world.passes()
    assert len(world.pods("c")) == 2
    assert world.status("c") == before


def test_a_cluster_that_another_controller_manages_is_left_alone(world: World) -> None:
    world.given(raycluster("c", managedBy="kueue.x-k8s.io/multikueue"), made=0)
    world.passes()
    assert "status" not in world.cluster("c")
    assert world.events("c") == []
