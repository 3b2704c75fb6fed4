"""A pipeline, its owner, and the real schema of RayClusters where there is one."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from servepipe_operator.objects.names import Owner


@pytest.fixture
def owner() -> Owner:
    return Owner("diamond", "shop", "uid-1", "main")


@pytest.fixture(scope="session")
def kuberay_schema() -> dict[str, Any]:
    """Of ray.io/v1, closed: a field that it does not know would be dropped silently."""
    path = os.environ.get("KUBERAY_CRD")
    if not path:
        pytest.skip("KUBERAY_CRD does not name KubeRay's CRD of RayClusters: bodies are not checked against it")
    crd = yaml.safe_load(Path(path).read_text())
    version = next(one for one in crd["spec"]["versions"] if one["name"] == "v1")
    return closed(copy.deepcopy(version["schema"]["openAPIV3Schema"]))


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    for child in schema.get("properties", {}).values():
        child.update(closed(child))
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = closed(schema[key])
    if schema.get("properties") and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema
