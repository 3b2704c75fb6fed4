"""What kubectl shows of a pipeline reads well."""

import pytest
from bed.control_plane import ControlPlane
from crd_cases import FULL

DETAILS = {
    "observedGeneration": 1,
    "clusters": [{"name": "triage-x7k2q", "role": "Active"}],
    "nodes": {"m1": {"revision": "6f3a91c2", "replicas": 3, "readyReplicas": 2, "state": "Running"}},
}
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


def test_describe_tells_what_a_person_on_duty_asks(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/apis/servepipe.dev/v1alpha1/namespaces/{namespace}/servepipelines"
    body = {**FULL, "apiVersion": "servepipe.dev/v1alpha1", "metadata": {"name": "triage"}}
    control_plane.api.create(path, body)
    control_plane.api.merge(f"{path}/triage/status", {"status": STATUS | DETAILS})
    control_plane.kubectl("patch", "svp", "triage", "-n", namespace, "--type=merge", "-p", '{"spec":{"paused":true}}')
    text = control_plane.kubectl("describe", "servepipeline", "triage", "-n", namespace).stdout
    rows = [" ".join(line.split()) for line in text.splitlines()]
    for row in ("Paused: true", "Ready Replicas: 2", "Revision: 6f3a91c2", "Name: triage-x7k2q", "Nodes Ready: 1/2"):
        assert row in rows, text
    assert "Managed Fields" not in text


def test_get_wide_and_by_every_name(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/apis/servepipe.dev/v1alpha1/namespaces/{namespace}/servepipelines"
    body = {**FULL, "apiVersion": "servepipe.dev/v1alpha1", "metadata": {"name": "triage"}}
    control_plane.api.create(path, body)
    shown = {
        control_plane.kubectl("get", kind, "-n", namespace, "-o", "name").stdout for kind in ("svp", "servepipelines")
    }
    assert shown == {"servepipeline.servepipe.dev/triage\n"}
    control_plane.api.merge(f"{path}/triage/status", {"status": STATUS})
    widths = [len(line) for line in control_plane.kubectl("get", "svp", "-n", namespace).stdout.splitlines()]
    assert max(widths) <= 120


FIELDS = ["spec.nodes.replicas", "spec.nodes.upgrade", "spec.nodes.autoscaling", "spec.suspend", "spec.paused"]


@pytest.mark.parametrize("field", [*FIELDS, "spec.ingress", "spec.graph.steps", "status", "status.nodes"])
def test_explain_says_what_a_field_is_for(control_plane: ControlPlane, field: str) -> None:
    text = control_plane.kubectl("explain", f"svp.{field}").stdout
    described = text.partition("DESCRIPTION:\n")[2]
    assert described.strip(), text
    assert "<no description>" not in text, text
