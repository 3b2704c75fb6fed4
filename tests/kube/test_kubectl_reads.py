"""What kubectl shows of a pipeline reads well."""

from bed.control_plane import ControlPlane
from crd_cases import FULL

STATUS = {
    "conditions": [
        {"type": kind, "status": status, "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind, status in (("Ready", "False"), ("Available", "True"))
    ],
    "nodesReady": "1/2",
    "upgrading": "m1 (25 %)",
    "url": "http://triage.shop:8000/",
}


def test_the_columns_show_the_status(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/apis/servepipe.dev/v1alpha1/namespaces/{namespace}/servepipelines"
    metadata = {"name": "triage"}
    control_plane.api.create(path, {**FULL, "apiVersion": "servepipe.dev/v1alpha1", "metadata": metadata})
    assert control_plane.kubectl("get", "svp", "-n", namespace).stdout.splitlines()[1].split()[0] == "triage"
    control_plane.api.merge(f"{path}/triage/status", {"status": STATUS})
    head, row = control_plane.kubectl("get", "svp", "-n", namespace).stdout.splitlines()
    assert head.split() == ["NAME", "AVAILABLE", "READY", "NODES", "UPGRADING", "URL", "AGE"]
    assert row.split()[:-1] == ["triage", "True", "False", "1/2", "m1", "(25", "%)", "http://triage.shop:8000/"]


def test_explain_describes_the_spec_and_its_nodes(control_plane: ControlPlane) -> None:
    whole = control_plane.kubectl("explain", "svp", "--recursive").stdout
    for field in ("spec", "graph", "nodes", "replicas", "autoscaling", "status", "conditions"):
        assert f"{field}\t<" in whole
    node = control_plane.kubectl("explain", "svp.spec.nodes").stdout
    assert "<no description>" not in node, node
    assert "<no description>" not in control_plane.kubectl("explain", "svp.spec").stdout
