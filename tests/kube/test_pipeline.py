"""`kubectl apply` of a pipeline, and what becomes of it: the operator as a process, KubeRay's stand-in."""

from __future__ import annotations

from pipelines import Pipelines


def test_an_applied_pipeline_becomes_ready(pipelines: Pipelines) -> None:
    pipelines.apply(pipelines.resource("diamond", {"m1": ["good"], "m2": ["good", 2]}))

    live = pipelines.wait_for("diamond", "Ready")

    assert live["status"]["nodesReady"] == "2/2"
    assert pipelines.conditions(live) == {
        "Accepted": "True",
        "ClusterReady": "True",
        "NodesReady": "True",
        "Available": "True",
        "Ready": "True",
    }
