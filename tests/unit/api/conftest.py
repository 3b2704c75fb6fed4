from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from servepipe import api
from servepipe.api.v1alpha1 import ServePipeline

DIAMOND = """\
apiVersion: servepipe.dev/v1alpha1
kind: ServePipeline
metadata: {name: diamond}
spec:
  rayVersion: 2.60.0
  image: ghcr.io/acme/diamond:1.4.0
  graph:
    input: {preprocessor: "diamond:request_to_inputs"}
    steps:
    - {name: m1-output, node: m1, method: forward, args: [{$input: [0]}]}
    - {name: m2-output, node: m2, method: forward, args: [{$input: [1]}]}
    - {name: ray-dag, node: ensemble, args: [{$step: m1-output}, {$step: m2-output}, {$input: [2]}]}
    output: {$step: ray-dag}
  nodes:
    m1:
      import: diamond:Model
      args: [1]
      resources: {cpu: 500m, memory: 1Gi, gpu: "1"}
      replicas: 3
      userConfig: {}
      upgrade: {strategy: Canary, steps: [{weight: 10, holdSeconds: 60}, {weight: 50, holdSeconds: 60}]}
    m2: {import: "diamond:Model", args: [2]}
    ensemble: {import: "diamond:ensemble", placement: Inline}
  ingress: {replicas: 10, route: /, service: {type: ClusterIP, port: 8000}}
  cluster: {workers: {minReplicas: 1, maxReplicas: 10, resources: {cpu: "4", memory: 16Gi}}, head: {}}
"""


@pytest.fixture
def diamond_text() -> str:
    """The canonical text of the diamond, as design and documentation show it."""
    return DIAMOND


@pytest.fixture
def diamond() -> ServePipeline:
    return api.read(DIAMOND)


@pytest.fixture
def document() -> dict[str, Any]:
    """The diamond as JSON, to change."""
    content: dict[str, Any] = api.load_yaml(DIAMOND)
    return content


@pytest.fixture
def crd_file() -> Path:
    return Path(__file__).parents[3] / "crds" / "servepipelines.servepipe.dev.yaml"
