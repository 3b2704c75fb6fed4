"""Changed sources: of the preprocessor while requests run, and of a model between two runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

HOOKS = """
async def numbers(request):
    body = await request.json()
    return {"value": body["value"], "hooks": "one"}
"""
MODELS = """
from servepipe import remote

VERSION = "one"

@remote
class Model:
    def __init__(self): self.ready = True
    def forward(self, x): return {**x, "model": VERSION}
"""
PIPELINE = """
from hooks import numbers
from models import Model
from servepipe import ServeInputNode, build

with ServeInputNode(preprocessor=numbers) as dag_input:
    model = Model.bind()
    out = model.forward.bind(dag_input)

app = build(out, name="sources")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project") / "sources"
    folder.mkdir()
    for name, text in {"hooks.py": HOOKS, "models.py": MODELS, "pipeline.py": PIPELINE}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def up(new_up: Callable[[str], Any], project: Path) -> Any:
    up = new_up("sources")
    up.start(project / "pipeline.py")
    up.wait_settled("the pipeline to be ready")
    return up


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_a_changed_preprocessor_replaces_the_ingress_and_nothing_else(up: Any, tools: Any, project: Path) -> None:
    before = up.wait_settled("a settled pipeline")
    old = tools.replicas(before)["ingress"].keys()

    def replaced(snapshot: dict[str, Any]) -> bool:
        running = tools.replicas(snapshot).get("ingress", {}).keys()
        return bool(running) and running.isdisjoint(old)

    def whole(answer: Any) -> bool:
        return bool(answer["value"] == 1 and answer["model"] == "one")

    with tools.Load(before["url"], {"value": 1}, clients=20, check=whole) as clients:
        clients.wait_for_more(100)
        change(project / "hooks.py", '"one"', '"two"')
        up.run("apply", str(project / "pipeline.py"))
        up.wait("another ingress", replaced)
        after = up.wait_settled("the new ingress to have taken over")
        clients.answers.clear()
        clients.wait_for_more(100)
        late = list(clients.answers)
    assert clients.failures == []
    assert late[-1]["hooks"] == "two"
    assert tools.replicas(after)["model"] == tools.replicas(before)["model"]


def test_the_stable_revision_comes_back_with_its_own_code_after_a_restart(up: Any, tools: Any, project: Path) -> None:
    before = up.wait_settled("a settled pipeline")
    stable = tools.revisions(before)["model"]
    up.run("down")
    assert up.wait_ended() == 0
    change(project / "models.py", 'VERSION = "one"', 'VERSION = "two"')
    # The new revision takes so long to start that the old one is asked first.
    change(project / "models.py", "self.ready = True", "import time; time.sleep(8)")
    up.start(project / "pipeline.py")
    back = up.wait(
        "the stable revision to answer",
        lambda s: tools.conditions_of(s).get("Available") == "True" and tools.revisions(s)["model"] == stable,
    )
    assert tools.ask(back["url"], {"value": 2}) == {"value": 2, "hooks": "two", "model": "one"}
    up.wait("the new revision", lambda s: tools.revisions(s)["model"] != stable)
    after = up.wait_settled("the upgrade to be finished")
    assert tools.ask(after["url"], {"value": 3}) == {"value": 3, "hooks": "two", "model": "two"}
