"""The operator's shell around a reconciler that only looks, and what it has seen."""

import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bed.control_plane import ControlPlane
from bed.processes import wait_for
from operator_process import OperatorProcess

PIPES = "/apis/servepipe.dev/v1alpha1"
OWN, KUBERAY = "servepipelines.servepipe.dev", "rayclusters.ray.io"
SPEC = {"graph": {"steps": [{"name": "s", "node": "n"}], "output": 1}, "nodes": {"n": {"import": "m:N"}}}
WATCH = ["list", "watch"]
#: All that the shell itself needs; what a reconciler needs comes on top.
LEASES = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
RULES = [
    {"apiGroups": ["servepipe.dev"], "resources": ["servepipelines"], "verbs": WATCH},
    {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": WATCH},
    {"apiGroups": [""], "resources": ["services", "pods", "events"], "verbs": WATCH},
    {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": WATCH},
    {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "verbs": WATCH},
]
FAKE = (sys.executable, str(Path(__file__).parent / "fake_operator.py"))

Start = Callable[..., OperatorProcess]


def make(plane: ControlPlane, namespace: str, name: str, **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "labels": {f"servepipe.dev/{key}": value for key, value in labels.items()}}
    body = {"apiVersion": "servepipe.dev/v1alpha1", "kind": "ServePipeline", "metadata": metadata, "spec": SPEC}
    return plane.api.create(f"{PIPES}/namespaces/{namespace}/servepipelines", body)


def delete(plane: ControlPlane, namespace: str, name: str) -> None:
    plane.api.delete(f"{PIPES}/namespaces/{namespace}/servepipelines/{name}")


def make_service(plane: ControlPlane, namespace: str, name: str, pipeline: str) -> None:
    metadata = {"name": name, "labels": {"servepipe.dev/pipeline": pipeline}}
    plane.api.create(
        f"/api/v1/namespaces/{namespace}/services", {"metadata": metadata, "spec": {"ports": [{"port": 80}]}}
    )


def looks(operator: OperatorProcess, name: str) -> list[str]:
    """What the reconciler saw of a pipeline, look by look."""
    return [record["message"] for record in operator.messages(rf"^looked at [^ ]*/{name}: ")]


def wait_for_look(operator: OperatorProcess, name: str, pattern: str, timeout: float = 120.0) -> None:
    def seen() -> bool:
        operator.must_run()
        return bool((found := looks(operator, name)) and re.search(pattern, found[-1]))

    wait_for(f"a look at {name} that sees {pattern!r}", seen, timeout, operator.tail)


def used(plane: ControlPlane, user: str) -> Counter[tuple[str, str, str, str, int]]:
    """(group, resource, subresource, verb, code) of each request of a service account."""
    counts: Counter[tuple[str, str, str, str, int]] = Counter()
    for event in plane.audit(user):
        if what := event.get("objectRef"):
            group, kind, sub = what.get("apiGroup", ""), what["resource"], what.get("subresource", "")
            counts[group, kind, sub, event["verb"], event["responseStatus"]["code"]] += 1
    return counts


def allowed(rules: list[dict[str, Any]]) -> set[tuple[str, str, str, str]]:
    return {
        (g, r, "", v) for rule in rules for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]
    }


def seen_map(plane: ControlPlane, namespace: str) -> dict[str, Any]:
    found = plane.api.find(f"/api/v1/namespaces/{namespace}/configmaps/one-seen")
    assert found is not None
    return found


def written_by(plane: ControlPlane, namespace: str) -> str:
    return str(seen_map(plane, namespace)["data"]["by"])
