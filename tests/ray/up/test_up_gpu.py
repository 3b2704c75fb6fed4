"""A GPU that this machine does not have: said as such, unless GPUs are left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

# More than any machine has: the test means the same where there is a GPU.
PIPELINE = """
from servepipe import ServeInputNode, build, remote

@remote(num_gpus=64)
class Big:
    def forward(self, x): return x + 1

with ServeInputNode() as dag_input:
    big = Big.bind()
    out = big.forward.bind(dag_input)

app = build(out, name="big")
app.big.set_options(num_replicas=3)
"""


def test_a_gpu_that_is_not_there(new_up: Callable[[str], Any], tmp_path: Path) -> None:
    file = tmp_path / "big.py"
    file.write_text(PIPELINE, encoding="utf-8")
    up = new_up("big")
    up.start(file)

    def waits_for_a_gpu(snapshot: dict[str, Any]) -> bool:
        conditions = snapshot["status"].get("conditions") or ()
        return any(c["reason"] == "InsufficientCapacity" and "GPU: 64 needed" in c["message"] for c in conditions)

    up.wait("the missing GPUs to be said", waits_for_a_gpu)
    up.run("down")
    assert up.wait_ended() == 0

    up.start(file, "--no-gpu", "--replicas-at-most", "1")
    ready = up.wait_settled("the pipeline to be ready without GPUs")
    assert ready["status"]["nodes"]["big"]["replicas"] == 1
    assert up.call(1) == 2
    assert "--replicas-at-most 1" in up.run("scale", "big=2", code=2).stderr
