"""Graphs of Ray's own objects keep running on Ray, and give there what they give when they are compiled."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What Ray answers to `code/input_kinds.py`, in a process and a Ray of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "examples" / "diamond")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/ray/code/input_kinds.py"), str(ROOT / "examples" / "diamond")],
        cwd=tmp_path_factory.mktemp("rays"),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.ray
def test_the_diamond_of_genuine_objects_is_8_on_ray(answers):
    assert answers["diamond"] == 8


@pytest.mark.ray
def test_each_kind_of_input_that_ray_accepts_is_read_alike(answers):
    table = runpy.run_path(str(ROOT / "tests/ray/code/input_kinds.py"))
    rows = [row for row in table["ROWS"] if row.ray]
    assert len(rows) >= 15
    for row in rows:
        assert answers[row.name] == json.loads(json.dumps(row.expected)), row.name
        assert answers[f"{row.name}, compiled"] == json.loads(json.dumps(row.expected)), row.name


@pytest.mark.ray
def test_an_actor_that_runs_already_is_no_node(answers):
    assert "is called on an actor that runs already" in answers["actor"]
