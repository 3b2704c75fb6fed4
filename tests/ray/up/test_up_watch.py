"""`--watch`: what is saved is what runs, but for what is settled when Ray starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

MODELS = """
from servepipe import remote

@remote
class Add:
    def __init__(self, by): self.by = by
    def forward(self, x): return x + self.by + 0
"""
OTHER = """
from servepipe import remote

@remote
class Twice:
    def forward(self, x): return 2 * x
"""
PIPELINE = """
from models import Add
from other import Twice
from servepipe import ServeInputNode, build

with ServeInputNode() as dag_input:
    add = Add.bind(1)
    twice = Twice.bind()
    out = twice.forward.bind(add.forward.bind(dag_input))

app = build(out, name="watched")
"""
OVERLAY = """
spec:
  cluster:
    head:
      template: {spec: {containers: [{name: ray-head, env: [{name: SERVEPIPE_CHANNEL, value: "off"}]}]}}
"""


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    for name, text in {"models.py": MODELS, "other.py": OTHER, "pipeline.py": PIPELINE}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_yaml_file_and_the_modules_of_its_nodes_are_followed(
    new_up: Callable[[str], Any], tools: Any, project: Path
) -> None:
    up = new_up("watched")
    file = project / "pipeline.yaml"
    overlay = project / "overlay.yaml"
    overlay.write_text(OVERLAY, encoding="utf-8")
    up.run("compile", str(project / "pipeline.py"), "-f", str(overlay), "-o", str(file))
    change(project / "models.py", "+ 0", "+ 10")
    refused = up.run("up", str(file), code=2)
    assert "spec.nodes.add.code" in refused.stderr
    assert up.run_json() is None

    up.start(file, "--watch")
    before = up.wait_settled("the pipeline to be ready")
    assert "spec.nodes.add: models has changed since the file was compiled" in up.output(100_000)
    assert up.call(5) == 32

    change(project / "models.py", "+ 10", "+ 100")
    up.wait("the changed module", lambda s: tools.revisions(s)["add"] != tools.revisions(before)["add"])
    second = up.wait_settled("the changed module to serve")
    assert up.call(5) == 212
    assert tools.replicas(second)["twice"] == tools.replicas(before)["twice"]

    change(project / "models.py", "return x", "return x +* y")
    change(file, "args: [1]", "args: [2]")
    up.wait("the changed file", lambda s: s["generation"] > second["generation"])
    change(project / "models.py", "return x +* y", "return x")
    up.wait("a revision with both", lambda s: tools.revisions(s)["add"] not in ("", tools.revisions(second)["add"]))
    third = up.wait_settled("both changes to serve")
    assert up.call(5) == 214
    assert tools.replicas(third)["twice"] == tools.replicas(before)["twice"]

    change(file, 'value: "off"', 'value: "on"')
    tools.wait_for("the refusal", lambda: "environment of Ray is settled" in up.output(100_000), why=up.why)
    assert up.call(5) == 214
    # Neither the line above nor what was done to revisions since has brought channels back.
    tools.wait_for("the calls to be counted", lambda: sum(up.node_calls().values()) >= 2 * 4, why=up.why)
    assert set(up.node_calls()) == {"off"}
    assert "Note: spec.cluster.head.template sets SERVEPIPE_CHANNEL=off" in up.output(100_000)
