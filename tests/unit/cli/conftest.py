import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from servepipe.cli import main

DIAMOND = """\
from servepipe import ServeInputNode, build, remote


@remote
class Model:
    def __init__(self, val):
        self.val = val

    def forward(self, x):
        return self.val * x


@remote
def ensemble(a, b, c):
    return a + b + c


with ServeInputNode() as dag_input:
    m1 = Model.bind(1)
    m2 = Model.bind(2)
    m1_output = m1.forward.bind(dag_input[0])
    m2_output = m2.forward.bind(dag_input[1])
    ray_dag = ensemble.bind(m1_output, m2_output, dag_input[2])

app = build(ray_dag, name="diamond")
"""


@dataclass
class Ran:
    status: int
    out: str
    err: str


Run = Callable[..., Ran]
Write = Callable[[str, str], Path]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def run(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Ran(status, *capsys.readouterr())

    return run


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file into the working folder, which is empty at the start."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content))
        return path

    return write


@pytest.fixture
def diamond(write: Write) -> Path:
    return write("diamond.py", DIAMOND)
