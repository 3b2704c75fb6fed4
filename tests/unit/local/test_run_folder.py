"""Run folders: who owns one, and what is found of others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from servepipe.errors import RunError
from servepipe_operator.adapters.processes import Process, identify
from servepipe_operator.local.run_folder import Run, RunFolder, find_run, live_runs, ports_locked, runs_root

DEAD = Process(2**22 + 9, "boot:1", "gone")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def sleeper() -> Iterator[Process]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    found = identify(child.pid)
    assert found is not None
    yield found
    child.kill()
    child.wait()


def run_of(name: str, **changes: object) -> Run:
    run = Run(name, "Running", "http://127.0.0.1:8000/", "http://127.0.0.1:1", "token", DEAD, ports={"http": 8000})
    return replace(run, **changes)  # type: ignore[arg-type]


def living(name: str, **changes: object) -> RunFolder:
    folder = RunFolder.of(name)
    folder.take()
    folder.write(run_of(name, **changes))
    return folder


def test_a_relative_state_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert runs_root() == tmp_path / "home/.local/state/servepipe/runs"


def test_what_is_written_is_read_and_private() -> None:
    folder = living("diamond", processes=(DEAD,), link="/tmp/x")
    assert folder.read() == run_of("diamond", processes=(DEAD,), link="/tmp/x")
    assert folder.run_file.stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"processes": [{"pid": 1}]}'])
def test_a_broken_run_file_is_none(text: str) -> None:
    folder = living("diamond")
    folder.run_file.write_text(text, encoding="utf-8")
    assert folder.read() is None
    assert folder.end_orphans() == []
    assert live_runs() == []


def test_one_owner_at_a_time() -> None:
    first = living("diamond")
    with pytest.raises(RunError, match=r"'diamond' is running already \(process \d+, http://127.0.0.1:8000/\)"):
        RunFolder.of("diamond").take()
    first.release()
    RunFolder.of("diamond").take()


def test_the_only_run_is_found() -> None:
    living("diamond")
    assert find_run(None).pipeline == "diamond"
    assert find_run("diamond").pipeline == "diamond"


def test_no_run() -> None:
    with pytest.raises(RunError, match="Nothing runs on this machine"):
        find_run(None)
    with pytest.raises(RunError, match="'diamond' does not run on this machine"):
        find_run("diamond")


def test_several_runs_need_a_name() -> None:
    living("one")
    living("two")
    with pytest.raises(RunError, match="2 pipelines run on this machine: one, two"):
        find_run(None)
    assert find_run("two").pipeline == "two"
    with pytest.raises(RunError, match="Running now: one, two"):
        find_run("three")


def test_a_run_that_died_is_told_from_one_that_never_was() -> None:
    living("diamond").release()
    with pytest.raises(RunError, match="died without cleaning up"):
        find_run("diamond")
    with pytest.raises(RunError, match="Nothing runs"):
        find_run(None)


def test_a_run_that_just_starts() -> None:
    RunFolder.of("diamond").take()
    with pytest.raises(RunError, match="just starting or ending"):
        find_run("diamond")
    with pytest.raises(RunError, match="diamond: just starting or ending"):
        find_run(None)


def test_orphans_are_ended_and_strangers_are_not(sleeper: Process, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.mkdir()
    (link / "r").symlink_to(tmp_path)
    stranger = replace(sleeper, started="another boot:1")
    folder = living("diamond", processes=(DEAD, stranger), link=str(link))
    assert folder.end_orphans() == []
    assert sleeper.alive()
    assert not link.exists()
    folder.write(run_of("diamond", processes=(DEAD, sleeper)))
    assert folder.end_orphans() == [sleeper]
    assert not sleeper.alive()
    assert folder.read() is None


def test_a_haproxy_that_the_run_could_not_tell_of_is_ended_too(tmp_path: Path) -> None:
    link, haproxy = tmp_path / "link", tmp_path / "haproxy"
    haproxy.symlink_to(sys.executable)
    code = "import time; print('up', flush=True); time.sleep(600)"

    def start(executable: Path | None, file: Path) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", code, str(file)]
        process = subprocess.Popen(words, executable=executable, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    ours, others = start(haproxy, link / "h/haproxy.cfg"), start(haproxy, tmp_path / "link2/h/haproxy.cfg")
    reader = start(None, link / "r/logs")
    try:
        folder = living("diamond", link=str(link))
        assert [process.pid for process in folder.end_orphans()] == [ours.pid]
        assert [process.poll() is None for process in (ours, others, reader)] == [False, True, True]
    finally:
        for process in (ours, others, reader):
            process.kill()
            process.communicate()


def test_ports_of_other_runs_are_known() -> None:
    living("diamond", ports={"http": 8000, "grpc": 9000})
    living("dead", ports={"http": 8001}).release()
    with ports_locked() as taken:
        assert taken == [8000, 9000]
