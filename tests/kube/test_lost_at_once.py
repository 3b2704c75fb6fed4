"""In the middle of an upgrade status is wiped, the head is lost and the operator is killed, all together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from crash_points import PODS, Operators
from end_objects import PIPELINE
from kuberay.control import KubeRay
from pipelines import Pipelines

Json = dict[str, Any]

NAME = "shop"
OLD, NEW = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"


@pytest.fixture
def operators(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Operators]:
    running = Operators(tmp_path, control_plane)
    yield running
    running.close()


def test_the_same_stable_revisions_come_back_and_the_upgrade_goes_on(
    control_plane: ControlPlane, kuberay: KubeRay, namespace: str, operators: Operators
) -> None:
    path = PIPELINE.format(namespace, NAME)

    def apply(args: list[Any], code: str) -> None:
        nodes = {
            "m1": {"import": "models:Model", "args": args, "code": code},
            "m2": {"import": "models:Model", "args": ["good", 2], "code": OLD},
        }
        graph = {
            "steps": [{"name": f"{node}-out", "node": node, "args": [{"$input": []}]} for node in nodes],
            "output": [{"$step": f"{node}-out"} for node in nodes],
        }
        body = {"apiVersion": "servepipe.dev/v1alpha1", "kind": "ServePipeline", "metadata": {"name": NAME}}
        content = {"image": "shop/models:1", "graph": graph, "nodes": nodes}
        control_plane.api.apply(path, {**body, "spec": content}, force=True)

    def live() -> Json:
        operators.must_run("first", "second")
        return control_plane.api.get(path)

    def told() -> str:
        return json.dumps(control_plane.api.get(path).get("status"), indent=1) + operators.tail("second")

    def settled() -> Json | None:
        found = live()
        ready = Pipelines.condition(found, "Ready")
        current = ready.get("observedGeneration") == found["metadata"]["generation"]
        done = current and ready.get("status") == "True" and not Pipelines.condition(found, "Reconciling")
        return found if done else None

    apply(["good", 1], OLD)
    operators.start("first", namespace)
    before = wait_for("the pipeline to be ready", settled, 60, told)
    assert before is not None
    cluster = before["status"]["clusters"][0]["name"]
    stable = {name: node["revision"] for name, node in before["status"]["nodes"].items()}

    # A candidate that takes long: it never gets ready.
    apply(["hangs", 2], NEW)

    def applications() -> set[str]:
        return {name for name, one in kuberay.look(namespace, cluster)["applications"].items() if not one["deleting"]}

    def under_way() -> str:
        candidate = live()["status"]["nodes"]["m1"].get("candidate") or {}
        revision = str(candidate.get("revision", ""))
        return revision if f"m1--{revision}" in applications() else ""

    candidate = wait_for("the upgrade to be under way", under_way, 60, told)

    operators.stop("first")
    control_plane.api.merge(f"{path}/status", {"status": None})
    assert not control_plane.api.get(path).get("status")
    lost = kuberay.look(namespace, cluster)["head"]
    control_plane.api.delete(f"{PODS.format(namespace)}/{lost['pod']}")

    def another_head() -> bool:
        head = kuberay.look(namespace, cluster)["head"]
        return head is not None and head["uid"] != lost["uid"] and not applications()

    wait_for("another head, without applications", another_head, 60)
    puts = kuberay.puts(namespace, cluster)
    operators.start("second", namespace)

    def serves() -> Json | None:
        found = live()
        nodes = found.get("status", {}).get("nodes", {})
        same = {name: node.get("revision") for name, node in nodes.items()} == stable
        available = Pipelines.condition(found, "Available").get("status") == "True"
        return found if same and available and f"m1--{candidate}" in applications() else None

    back = wait_for("the stable revisions to answer and the upgrade to go on", serves, 90, told)
    assert back is not None
    assert back["status"]["nodes"]["m1"]["candidate"]["revision"] == candidate
    sent = [put.config for put in kuberay.last_puts(namespace, cluster)][puts - kuberay.puts(namespace, cluster) :]
    first = {one["name"]: one for one in sent[0]["applications"]}
    # What answered before comes first, with its old code and arguments, and gets all requests.
    assert set(first) == {"ingress", *(f"{name}--{revision}" for name, revision in stable.items())}
    args = first[f"m1--{stable['m1']}"]["args"]
    assert (args["args"], args["code"]) == (["good", 1], OLD)
    for config in sent:
        (ingress,) = [one for one in config["applications"] if one["name"] == "ingress"]
        routes = ingress["deployments"][0]["user_config"]["nodes"]["m1"]["routes"]
        assert [one["revision"] for one in routes if one["weight"]] in ([], [stable["m1"]])

    apply(["good", 3], NEW)
    after = wait_for("the next change to be ready", settled, 90, told)
    assert after is not None
    assert after["status"]["nodes"]["m2"]["revision"] == stable["m2"]
    assert after["status"]["nodes"]["m1"]["revision"] not in (stable["m1"], candidate)
    assert kuberay.look(namespace, cluster)["problems"] == []
    operators.stop("second")
