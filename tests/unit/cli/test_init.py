import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servepipe.cli.init import pipeline_name

Run = Callable[..., Any]
FILES = [".gitignore", "README.md", "pipeline.py", "test_pipeline.py"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_new_project_works(run: Run) -> None:
    ran = run("init", "My_First 1")
    assert ran.status == 0, ran.err
    project = Path("My_First 1")
    assert sorted(path.name for path in project.iterdir()) == FILES
    assert "Next: cd 'My_First 1' && python pipeline.py" in ran.out
    for name in FILES:
        assert f"wrote {project / name}\n" in ran.out
        assert "{{" not in (project / name).read_text()

    compiled = run("compile", project / "pipeline.py")
    assert compiled.status == 0, compiled.err
    assert "metadata: {name: my-first-1}\n" in compiled.out
    assert run("validate", project / "pipeline.py").status == 0

    def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, *arguments], cwd=project, capture_output=True, text=True, env=environment, check=False
        )

    assert python("pipeline.py").stdout == "{'praise': 2, 'blame': 0, 'positive': True}\n"
    tested = python("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert tested.returncode == 0, tested.stdout
    assert "2 passed" in tested.stdout
    for tool in (["check"], ["format", "--check", "--line-length", "120"]):
        checked = python("-m", "ruff", *tool, "--isolated", ".")
        assert checked.returncode == 0, checked.stdout


def test_here_is_the_default(run: Run, tmp_path: Path) -> None:
    ran = run("init")
    assert ran.status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert "Next: python pipeline.py" in ran.out


def test_nothing_is_overwritten(run: Run) -> None:
    Path("README.md").write_text("mine")
    ran = run("init")
    assert ran.status == 2
    assert ran.err == "error: . has README.md already\n  fix:   Name a new or an empty folder.\n"
    assert [path.name for path in Path().iterdir()] == ["README.md"]
    ran = run("init", "README.md")
    assert (ran.status, ran.err.splitlines()[0]) == (2, "error: README.md is not a folder")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("hello", "hello"),
        ("Hello World", "hello-world"),
        ("my__pipe.line", "my-pipe-line"),
        ("2nd", "nd"),
        ("été", "t"),
        ("123", "hello"),
        ("", "hello"),
        ("x" * 39 + "-yz", "x" * 39),
    ],
)
def test_the_pipeline_is_named_after_its_folder(folder: str, name: str) -> None:
    assert pipeline_name(folder) == name
