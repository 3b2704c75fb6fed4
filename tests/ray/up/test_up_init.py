"""What `servepipe init` writes is run by `servepipe up`, and the commands that its README names work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray


def test_the_new_project_runs(new_up: Callable[[str], Any], tmp_path: Path) -> None:
    project = tmp_path / "hello"
    up = new_up("hello")
    up.run("init", str(project))
    up.start(project / "pipeline.py")
    snapshot = up.wait_settled("the new project to be ready")
    assert set(snapshot["status"]["nodes"]) == {"praise", "blame", "judge"}
    answer = up.run("call", '{"text": "A great start."}').stdout
    assert json.loads(answer) == {"praise": 1, "blame": 0, "positive": True}
    assert up.call({"text": "Broken!"}) == {"praise": 0, "blame": 1, "positive": False}
    up.run("down")
    assert up.wait_ended() == 0
