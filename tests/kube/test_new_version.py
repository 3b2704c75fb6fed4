"""A new version of the operator, with other defaults, does nothing to pipelines that nobody changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import other_build
import pytest
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from crash_points import Operators
from end_objects import PIPELINE, end_objects
from kuberay.control import KubeRay
from pipelines import Pipelines

Json = dict[str, Any]

NAME = "kept"
LOOKS = 10


@pytest.fixture
def operators(control_plane: ControlPlane, tmp_path: Any) -> Iterator[Operators]:
    running = Operators(tmp_path, control_plane)
    yield running
    running.close()


def spec() -> Json:
    """Whatever has a default somewhere."""
    nodes: Json = {
        "plain": {"import": "models:Model", "args": ["good"]},
        "elastic": {"import": "models:Model", "autoscaling": {"maxReplicas": 4}},
        "checked": {"import": "models:Model", "healthCheck": {"timeoutSeconds": 7}, "upgrade": {"retryToken": "a"}},
        "own": {"import": "models:Model", "image": "shop/own:1"},
        "sized": {"import": "models:Model", "env": [{"name": "A", "value": "1"}], "resources": {"cpu": "500m"}},
        "off": {"import": "models:Model", "replicas": 0},
        "held": {"import": "models:Model", "args": ["good", {"$node": "plain"}]},
        "inline": {"import": "models:function", "placement": "Inline"},
    }
    graph = {
        "steps": [{"name": f"{node}-out", "node": node, "args": [{"$input": []}]} for node in nodes],
        "output": [{"$step": f"{node}-out"} for node in nodes],
    }
    return {"image": "shop/models:1", "graph": graph, "nodes": nodes, "ingress": {}, "cluster": {"head": {}}}


def test_other_defaults_restart_nothing_and_write_nothing(
    control_plane: ControlPlane, kuberay: KubeRay, namespace: str, operators: Operators, summary: list[str]
) -> None:
    path = PIPELINE.format(namespace, NAME)
    body: Json = {"apiVersion": "servepipe.dev/v1alpha1", "kind": "ServePipeline", "metadata": {"name": NAME}}
    control_plane.api.apply(path, {**body, "spec": spec()}, force=True)

    def settled() -> Json | None:
        operators.must_run("this-build", "other-build")
        live = control_plane.api.get(path)
        ready = Pipelines.condition(live, "Ready")
        current = ready.get("observedGeneration") == live["metadata"]["generation"]
        done = current and ready.get("status") == "True" and not Pipelines.condition(live, "Reconciling")
        return live if done else None

    def told() -> str:
        return json.dumps(control_plane.api.get(path).get("status"), indent=1) + operators.tail("other-build")

    operators.start("this-build", namespace)
    live = wait_for("the pipeline to be ready", settled, 60, told)
    assert live is not None
    cluster = live["status"]["clusters"][0]["name"]
    seen: list[Json] = [{}]

    def quiet() -> bool:
        seen.append(_all(control_plane, kuberay, namespace, cluster))
        return seen[-1] == seen[-2] and not seen[-1]["idle pods"]

    wait_for("nothing to change any more", quiet, 60, told, pause=1.0)
    operators.stop("this-build")
    before = seen[-1]
    puts, gets = kuberay.puts(namespace, cluster), kuberay.look(namespace, cluster)["gets"]

    more = {**other_build.SETTINGS, "SERVEPIPE_STEADY_S": "0.3", "SERVEPIPE_RESYNC_S": "1"}
    operators.start("other-build", namespace, program="other_build:exchange", more=more)

    def looked() -> bool:
        operators.must_run("other-build")
        return bool(kuberay.look(namespace, cluster)["gets"] >= gets + LOOKS)

    wait_for(f"{LOOKS} looks of the other build", looked, 60, lambda: operators.tail("other-build"))
    assert operators.writes("other-build") == []
    assert kuberay.puts(namespace, cluster) == puts
    assert _all(control_plane, kuberay, namespace, cluster) == before

    # It is another build: what is new comes with its defaults, in the RayCluster that lives.
    changed = spec()
    for name, node in changed["nodes"].items():
        # What the other defaults would make of them is not valid for some.
        node |= {"placement": "Inline" if name == "inline" else "Dedicated"}
        node["upgrade"] = {"strategy": "BlueGreen", **node.get("upgrade", {})}
    changed["nodes"]["plain"]["args"] = ["good", 2]
    changed["nodes"]["late"] = {"import": "models:Model", "image": "shop/late:1", "placement": "Dedicated"}
    control_plane.api.apply(path, {**body, "spec": changed}, force=True)
    wait_for("the changed pipeline to be ready", settled, 60, told)
    after = _all(control_plane, kuberay, namespace, cluster)
    groups = {group["groupName"]: group for group in after["RayCluster CLUSTER"]["spec"]["workerGroupSpecs"]}
    head = after["RayCluster CLUSTER"]["spec"]["headGroupSpec"]
    assert head == before["RayCluster CLUSTER"]["spec"]["headGroupSpec"]
    assert after["RayCluster CLUSTER"]["spec"]["rayVersion"] == before["RayCluster CLUSTER"]["spec"]["rayVersion"]
    (container,) = groups["late-a"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] != "4Gi", "the other build's defaults are not in force"
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1", "pods of one cluster must have the same flags"
    assert "RAY_SERVE_OF_ANOTHER_RELEASE" not in environment
    # With another number of replicas some are added; those that were there stay.
    stayed = _replicas(after)
    replaced = {name for name, ids in _replicas(before).items() if not set(ids) <= set(stayed.get(name, ()))}
    assert {name.partition("--")[0] for name in replaced} == {"plain"}
    assert kuberay.look(namespace, cluster)["problems"] == []
    operators.stop("other-build")
    summary.append(f"a build with other defaults looked {LOOKS} times and wrote nothing")


def _all(plane: ControlPlane, kuberay: KubeRay, namespace: str, cluster: str) -> Json:
    """What there is, with the names of the replicas and the versions of the objects."""
    found = end_objects(plane, kuberay, namespace, NAME)
    seen = kuberay.look(namespace, cluster)
    found["ids"] = {name: [one["id"] for one in app["replicas"]] for name, app in seen["applications"].items()}
    return found


def _replicas(objects: Json) -> dict[str, list[str]]:
    replicas: dict[str, list[str]] = objects["ids"]
    return replicas
