"""The commands, from the command line to a run that another thread plays."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servepipe.cli.trouble import report
from servepipe.errors import RunError, ServePipeError
from servepipe_operator.adapters.processes import Process
from servepipe_operator.commands import register
from servepipe_operator.local import supervisor
from servepipe_operator.local.control import ControlServer
from servepipe_operator.local.run_folder import Run, RunFolder

STATUS = {
    "nodes": {"m1": {"revision": "aaaa", "replicas": 2, "readyReplicas": 1}},
    "conditions": [{"type": "Ready", "status": "False", "reason": "Scaling", "message": "m1 1/2"}],
}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def servepipe(*words: str) -> int:
    parser = argparse.ArgumentParser(prog="servepipe")
    register(parser.add_subparsers(required=True))
    arguments = parser.parse_args(words)
    code: int = arguments.run(arguments)
    return code


class Player:
    """A run of ``name``: its folder, and a control server in a thread of its own."""

    def __init__(self, name: str) -> None:
        self.calls: list[Any] = []
        self.folder = RunFolder.of(name)
        self.folder.take()
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._server = ControlServer(self, "secret")
        url = self._loop.run_until_complete(self._server.start())
        self.folder.write(Run(name, "Running", "http://127.0.0.1:1/", url, "secret", Process(1, "x")))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def snapshot(self) -> dict[str, Any]:
        return {"pipeline": self._name, "url": "http://127.0.0.1:1/", "status": STATUS}

    async def apply(self, document: str, folder: str) -> dict[str, Any]:
        self.calls.append(("apply", folder))
        return {}

    async def scale(self, node: str, replicas: int) -> dict[str, Any]:
        if node == "m9":
            raise ServePipeError("There is no node 'm9'")
        self.calls.append(("scale", node, replicas))
        return {}

    async def logs(self, node: str, follow: bool, previous: bool) -> AsyncIterator[str]:
        yield f"{node} said so" + (", and ended" if previous else "")

    def stop(self) -> None:
        self.calls.append("stop")
        self.folder.release()
        self.folder.forget()

    def end(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.folder.release()


@pytest.fixture
def play() -> Iterator[Callable[[str], Player]]:
    players: list[Player] = []

    def start(name: str = "diamond") -> Player:
        players.append(Player(name))
        return players[-1]

    yield start
    for player in players:
        player.end()


Play = Callable[..., Player]


def test_status(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    play()
    assert servepipe("status") == 0
    target, headings, row, condition = capsys.readouterr().out.splitlines()
    assert target == "diamond on this machine (http://127.0.0.1:1/)"
    assert headings.split() == ["NODE", "REVISION", "READY", "WEIGHT", "STATE"]
    assert row.split() == ["m1", "aaaa", "1/2", "100%", "stable"]
    assert condition == "Ready=False Scaling: m1 1/2"


def test_status_for_programs_has_the_target_elsewhere(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    play()
    for output in ("json", "yaml"):
        assert servepipe("status", "-o", output) == 0
        captured = capsys.readouterr()
        assert "diamond on this machine" in captured.err
        if output == "json":
            assert json.loads(captured.out)["status"] == STATUS
        else:
            assert "pipeline: diamond" in captured.out


def test_scale(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    player = play()
    assert servepipe("scale", "m1=3", "m2=0") == 0
    assert player.calls == [("scale", "m1", 3), ("scale", "m2", 0)]
    assert capsys.readouterr().out.splitlines()[1:] == ["m1 scaled to 3", "m2 scaled to 0"]
    with pytest.raises(ServePipeError, match="no node 'm9'"):
        servepipe("scale", "m9=1")


@pytest.mark.parametrize("word", ["m1", "m1=", "=3", "m1=-1", "m1=x", "m1=1.5"])
def test_scale_without_sense(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        servepipe("scale", word)
    assert caught.value.code == 2
    assert "NODE=N" in capsys.readouterr().err


def test_logs(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    play()
    assert servepipe("logs", "m1", "-f") == 0
    assert capsys.readouterr().out == "m1 said so\n"


def test_down_waits_until_the_run_is_gone(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    player = play()
    assert servepipe("down") == 0
    assert player.calls == ["stop"]
    assert capsys.readouterr().out.endswith("diamond stopped\n")


def test_down_takes_a_name(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = play("one"), play("two")
    assert servepipe("down", "two") == 0
    assert (first.calls, second.calls) == ([], ["stop"])
    with pytest.raises(ServePipeError, match="'two' and 'one' are two"):
        servepipe("down", "one", "-p", "two")


def test_several_runs_need_a_name(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = play("one"), play("two")
    with pytest.raises(RunError, match="2 pipelines run"):
        servepipe("down")
    assert servepipe("scale", "-p", "two", "m1=1") == 0
    assert (first.calls, second.calls) == ([], [("scale", "m1", 1)])
    assert capsys.readouterr().out.startswith("two on this machine")


@pytest.mark.parametrize(
    "words", [["status"], ["scale", "a=1"], ["apply", "f.yaml"], ["logs", "m"], ["call", "1"], ["down"]]
)
def test_no_run(words: list[str]) -> None:
    with pytest.raises(RunError, match="Nothing runs on this machine"):
        servepipe(*words)


def test_down_cleans_up_after_a_run_that_died(capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder.of("diamond")
    folder.take()
    folder.write(Run("diamond", "Running", "", "", "", Process(2**22 + 3, "x"), processes=(Process(2**22 + 4, "y"),)))
    folder.release()
    assert servepipe("down", "-p", "diamond") == 0
    assert "ended 0 processes" in capsys.readouterr().out
    assert folder.read() is None


def test_call_with_what_is_not_json(play: Play) -> None:
    play()
    with pytest.raises(ServePipeError, match="not JSON"):
        servepipe("call", "[1, 2")
    with pytest.raises(ServePipeError, match="cannot be read"):
        servepipe("call", "@/nowhere/at/all.json")


def test_an_error_of_a_command_has_no_traceback_of_the_library_that_it_called(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    play("diamond")
    for words in (["call", "{"], ["call", "1"]):
        with pytest.raises(ServePipeError) as caught:
            servepipe(*words)
        capsys.readouterr()
        assert report(caught.value) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: "), err


def test_call_where_nothing_answers(play: Play) -> None:
    play()
    with pytest.raises(RunError, match="Nothing answers"):
        servepipe("call", "[1, 2, 3]")


PIPELINE = """
from servepipe import ServeInputNode, build, remote

@remote
class Model:
    def forward(self, x): return x

with ServeInputNode() as dag_input:
    model = Model.bind()
    dag = model.forward.bind(dag_input)

app = build(dag, name="small")
"""


def test_apply_compiles_here_and_leaves_the_copies_to_the_run(
    play: Play, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    player = play("small")
    project = tmp_path / "project"
    project.mkdir()
    (project / "pipeline.py").write_text(PIPELINE, encoding="utf-8")
    assert servepipe("apply", str(project / "pipeline.py")) == 0
    assert player.calls == [("apply", str(project))]
    assert not player.folder.code.exists()
    (project / "pipeline.py").write_text(PIPELINE.replace("model.forward", "model.backward"), encoding="utf-8")
    with pytest.raises(ServePipeError) as caught:
        servepipe("apply", str(project / "pipeline.py"))
    assert caught.value.where == f"{project / 'pipeline.py'}:10"
    assert len(player.calls) == 1


def test_the_file_says_which_of_several_runs_it_is_for(play: Play, tmp_path: Path) -> None:
    small, other = play("small"), play("other")
    (tmp_path / "pipeline.py").write_text(PIPELINE, encoding="utf-8")
    assert servepipe("apply", str(tmp_path / "pipeline.py")) == 0
    assert (small.calls, other.calls) == ([("apply", str(tmp_path))], [])
    (tmp_path / "pipeline.py").write_text(PIPELINE.replace('name="small"', 'name="another"'), encoding="utf-8")
    with pytest.raises(RunError, match="'another' does not run on this machine"):
        servepipe("apply", str(tmp_path / "pipeline.py"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"gpus": True, "replicas_at_most": None, "port": None}),
        (
            ["--no-gpu", "--replicas-at-most", "2", "--port", "8123"],
            {"gpus": False, "replicas_at_most": 2, "port": 8123},
        ),
    ],
)
def test_the_options_of_up_arrive(
    words: list[str], expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[supervisor.Options] = []

    class NoRun:
        def __init__(self, compiled: Any, options: supervisor.Options, view: Any) -> None:
            given.append(options)

        async def run(self) -> int:
            return 7

    monkeypatch.setattr(supervisor, "Supervisor", NoRun)
    (tmp_path / "pipeline.py").write_text(PIPELINE, encoding="utf-8")
    assert servepipe("up", str(tmp_path / "pipeline.py"), *words) == 7
    (options,) = given
    assert {name: getattr(options, name) for name in expected} == expected
    assert (options.source, options.reload) == (str(tmp_path / "pipeline.py"), None)


@pytest.mark.parametrize(
    "words", [["up", "f", "--port", "0"], ["up", "f", "--port", "http"], ["up", "f", "--replicas-at-most", "0"], ["up"]]
)
def test_up_without_sense(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        servepipe(*words)


def test_asking_what_runs_imports_nothing_heavy(state: Path) -> None:
    script = """if True:
        import sys
        from servepipe.cli import main
        assert main(["status"]) == 2
        assert main(["call", "1"]) == 2
        import servepipe_operator.local.client, servepipe_operator.view
        heavy = {"ray", "numpy", "pydantic", "aiohttp", "kubernetes"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
