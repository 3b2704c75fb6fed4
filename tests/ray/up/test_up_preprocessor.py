"""New code, or another function, that adapts requests: the ingress is replaced under load, and nothing else moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

FILES = {
    "model.py": """
from servepipe import remote

@remote
class Model:
    async def forward(self, x, adapted): return {"value": 2 * x, "adapted": adapted}
""",
    "adapt.py": """
VERSION = "one"

async def inputs(request):
    return {"x": await request.json(), "adapted": VERSION}

def other(request):
    return {"x": 5, "adapted": "other"}
""",
    "pipeline.py": """
import adapt
from model import Model
from servepipe import ServeInputNode, build

with ServeInputNode(preprocessor=adapt.inputs) as dag_input:
    model = Model.bind()
    dag = model.forward.bind(dag_input["x"], dag_input["adapted"])

app = build(dag, name="adapted")
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def up(new_up: Callable[[str], Any], folder: Path) -> Any:
    up = new_up("adapted")
    up.start(folder / "pipeline.py")
    up.wait_settled("the pipeline to be ready")
    return up


@pytest.mark.parametrize(
    ("file", "old", "new", "was", "becomes"),
    [
        ("adapt.py", 'VERSION = "one"', 'VERSION = "two"', "one", "two"),
        ("pipeline.py", "adapt.inputs", "adapt.other", "two", "other"),
    ],
    ids=["code", "import"],
)
def test_a_changed_preprocessor_replaces_the_ingress_only(
    up: Any, tools: Any, folder: Path, file: str, old: str, new: str, was: str, becomes: str
) -> None:
    before = up.wait_settled("a settled pipeline")
    with tools.Load(before["url"], 5, clients=20, check=lambda answer: answer["value"] == 10) as clients:
        clients.wait_for_more(100)
        text = (folder / file).read_text(encoding="utf-8")
        assert old in text
        (folder / file).write_text(text.replace(old, new), encoding="utf-8")
        up.run("apply", str(folder / "pipeline.py"))
        up.wait(
            "another replica of the ingress",
            lambda s: (
                (now := tools.replicas(s).get("ingress")) and now.keys().isdisjoint(tools.replicas(before)["ingress"])
            ),
        )
        after = up.wait_settled("the change to be finished")
        clients.wait_for_more(100)
    assert clients.failures == []
    assert {answer["adapted"] for answer in clients.answers} == {was, becomes}
    assert clients.answers[-1]["adapted"] == becomes
    assert tools.replicas(after)["model"] == tools.replicas(before)["model"]
    assert tools.revisions(after) == tools.revisions(before)
