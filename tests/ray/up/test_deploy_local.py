"""`app.deploy()`: the engine in a child of the caller's process, and a Serve handle to the ingress."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

DIAMOND = Path(__file__).parents[3] / "examples" / "diamond"

MAIN = """

def main():
    import json, os, sys
    from pathlib import Path

    handle = app.deploy()
    print(json.dumps(handle.remote(1, 2, 3).result(timeout_s=60)), flush=True)
    # Applied to what runs, in the same child.
    app.m2.set_options(num_replicas=2)
    run = json.loads(Path(sys.argv[1]).read_text())
    handle = app.deploy()
    print(json.dumps(handle.remote(1, 2, 3).result(timeout_s=60)), flush=True)
    same = json.loads(Path(sys.argv[1]).read_text())["supervisor"] == run["supervisor"]
    print(json.dumps(same), flush=True)
    if sys.argv[2] == "wait":
        sys.stdin.read()
    if sys.argv[2] == "shutdown":
        app.shutdown()
        app.shutdown()
        import ray

        print(json.dumps([ray.is_initialized(), Path(sys.argv[1]).exists()]), flush=True)


if __name__ == "__main__":
    main()
"""

OTHER_RAY = """

if __name__ == "__main__":
    import ray

    from servepipe.errors import RunError

    ray.init(address="local", include_dashboard=False, num_cpus=1, log_to_driver=False)
    try:
        app.deploy()
    except RunError as error:
        print(error)
    ray.shutdown()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "diamond"
    shutil.copytree(DIAMOND, folder, ignore=shutil.ignore_patterns("__pycache__"))
    source = (folder / "diamond.py").read_text(encoding="utf-8").partition("\nif __name__")[0]
    source = source.replace("num_replicas=3", "num_replicas=1").replace("num_replicas=2", "num_replicas=1")
    (folder / "diamond.py").write_text(source, encoding="utf-8")
    return folder


def start(project: Path, state: Path, main: str, *words: str) -> subprocess.Popen[str]:
    file = project / "diamond.py"
    file.write_text(file.read_text(encoding="utf-8") + main, encoding="utf-8")
    run = state / "servepipe" / "runs" / "diamond" / "run.json"
    return subprocess.Popen(
        [sys.executable, str(file), str(run), *words],
        env=os.environ | {"XDG_STATE_HOME": str(state)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def read(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def processes(state: Path, tools: Any) -> list[Any]:
    run = json.loads((state / "servepipe/runs/diamond/run.json").read_text(encoding="utf-8"))
    return [tools.Process(**p) for p in [*run["processes"], run["supervisor"]]]


def test_the_diamond_gives_8_twice_and_leaves_nothing(project: Path, tmp_path: Path) -> None:
    with start(project, tmp_path, MAIN, "shutdown") as process:
        assert [read(process) for _ in range(3)] == [8, 8, True]
        assert read(process) == [False, False]
        assert process.wait(60) == 0


def test_it_ends_with_its_parent_however_that_ends(project: Path, tmp_path: Path, tools: Any) -> None:
    with start(project, tmp_path, MAIN, "wait") as process:
        assert [read(process) for _ in range(3)] == [8, 8, True]
        started = processes(tmp_path, tools)
        process.send_signal(signal.SIGKILL)
        process.wait()
        tools.wait_for("everything to end", lambda: not any(p.alive() for p in started))


def test_a_process_that_is_connected_to_another_ray_is_refused(project: Path, tmp_path: Path) -> None:
    with start(project, tmp_path, OTHER_RAY) as process:
        output, _ = process.communicate(timeout=120)
    assert "connected to another Ray" in output
    assert not (tmp_path / "servepipe" / "runs" / "diamond" / "run.json").exists()
