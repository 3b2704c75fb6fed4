"""The command from end to end, with the one contestant that needs nothing but a small server."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from graphbench import schedule, startup
from graphbench.__main__ import main
from graphbench.cases import CASES
from graphbench.driving import drive
from graphbench.figures import Sample
from graphbench.report import exit_code
from graphbench.runner import run_all
from graphbench.schedule import FULL, QUICK, select
from graphbench.systems.base import BENCHMARKS, SystemFailedError
from graphbench.systems.http_services import HttpSystem

ALONE = ["--only", "diamond/8/client"]
PATIENCE_S = 60.0


def test_it_measures_and_leaves_results_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ALONE, "--rounds", "2", "--seconds", "1.5", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "graphs-only.json").read_text())
    assert [sample["round"] for sample in content["samples"]] == [1, 2]
    for sample in content["samples"]:
        assert sample["problem"] == ""
        assert sample["figures"]["throughput"] > 0
        assert sample["details"]["failed"] == 0
    assert "the load client's own limit" in (tmp_path / "graphs-only.md").read_text()
    assert "No goal was measured." in capsys.readouterr().out
    assert psutil.Process().children() == []


def test_an_earlier_run_is_told_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"throughput": 100.0, "p50": 10.0, "p99": 20.0}
    samples = [
        {"case": "diamond", "load": "32", "contestant": name, "round": 1, "figures": figures}
        for name in ("separate", "serve-tuned")
    ]
    machine = {"cpu": "", "cores": 2, "memory_gib": 1, "system": "", "python": "", "packages": {}} | {
        "commit": "",
        "changed": False,
        "began": "",
    }
    old = tmp_path / "old.json"
    for pace, code, told in ((FULL, 1, "not judged: 1 of 5 rounds"), (QUICK, 0, "MISSED")):
        old.write_text(json.dumps({"machine": machine, "pace": asdict(pace), "samples": samples}))
        assert main(["--again", str(old), "--out", str(tmp_path)]) == code
        assert told in capsys.readouterr().out
    assert "3 rounds in turn, 1 s or more each" in (tmp_path / "old.md").read_text()
    assert (tmp_path / "old-diamond.svg").exists()


def test_what_is_not_there_is_an_error_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "diamnd"]) == 2
    assert "there is no case 'diamnd'" in capsys.readouterr().err


def test_a_package_that_is_missing_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    gone = ("magika", "uvicorn")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else find(name))
    assert main(["--only", "diamond/8/http", "--only", "triage", "--out", str(tmp_path / "results")]) == 2
    told = capsys.readouterr().err
    assert "the case 'triage' needs magika" in told
    assert "the contestant 'http' needs uvicorn" in told
    assert not (tmp_path / "results").exists()
    assert main([*ALONE, "--rounds", "1", "--seconds", "0.5", "--out", str(tmp_path)]) == 0, "it needs neither"


def test_variables_of_some_other_ray_do_not_reach_the_contestants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    seen: list[str | None] = []

    async def start(_: HttpSystem) -> None:
        seen.append(os.environ.get("RAY_SERVE_THROUGHPUT_OPTIMIZED"))
        raise SystemFailedError("seen enough")

    monkeypatch.setattr(HttpSystem, "start", start)
    assert main(["--only", "diamond/8/http", "--rounds", "1", "--out", str(tmp_path)]) == 1
    assert seen == [None]
    assert os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert "ignored: RAY_SERVE_THROUGHPUT_OPTIMIZED=1" in capsys.readouterr().out


def test_a_case_that_breaks_off_fails_and_the_next_one_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: object) -> AsyncGenerator[list[Sample], None]:
        raise ZeroDivisionError("by zero")
        yield []

    monkeypatch.setattr(startup, "rounds", broken)
    words = [*ALONE, "--only", "startup/8 nodes/separate", "--rounds", "1", "--seconds", "0.5"]
    monkeypatch.setattr(schedule, "CASES", dict(reversed(CASES.items())))  # the broken one first
    assert main([*words, "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "FAILED 1 of 1 times: startup, separate; at '8 nodes' in round 1: the case broke off" in told
    assert "ZeroDivisionError('by zero')" in told
    samples = json.loads((tmp_path / "graphs-only.json").read_text())["samples"]
    assert [(one["case"], bool(one["problem"])) for one in samples] == [("startup", True), ("diamond", False)]
    assert psutil.Process().children() == []


async def test_a_system_that_does_not_start_fails_its_contestants_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: HttpSystem) -> None:
        raise SystemFailedError("no port is free")

    monkeypatch.setattr(HttpSystem, "start", refuse)
    selection = select(["diamond/8/http+client"], quick=False)
    samples = await run_all(selection, replace(QUICK, rounds=1, seconds=0.5), str, len)
    assert {one.contestant: one.problem for one in samples} == {"http": "no port is free", "client": ""}
    assert exit_code([], samples, QUICK) == 0, "it is nobody of ours"


async def test_a_client_that_ends_as_it_is_interrupted_does_not_hide_that(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        async def communicate(self, _: bytes) -> None:
            raise asyncio.CancelledError

        def kill(self) -> None:
            raise ProcessLookupError

        async def wait(self) -> None: ...

    async def start(*_: object, **__: object) -> Ended:
        return Ended()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    with pytest.raises(asyncio.CancelledError):
        await drive({}, 1.0)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"machine": {}, "samples": [{"a": 1}]}'])
def test_results_that_cannot_be_read_are_an_error_of_the_command(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "old.json"
    if content is not None:
        file.write_text(content)
    assert main(["--again", str(file), "--out", str(tmp_path)]) == 2
    assert str(file) in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_what_it_started(tmp_path: Path, number: signal.Signals) -> None:
    words = [sys.executable, str(BENCHMARKS / "graphs.py"), *ALONE, "--seconds", "30", "--out", str(tmp_path)]
    bench = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    watchdog = threading.Timer(PATIENCE_S, bench.kill)
    watchdog.start()
    try:
        assert bench.stdout is not None
        assert any("reference is up" in line for line in bench.stdout)
        started = psutil.Process(bench.pid).children(recursive=True)
        assert started
        bench.send_signal(number)
        assert bench.wait(PATIENCE_S) == 130
        _, alive = psutil.wait_procs(started, timeout=10)
        assert not alive
    finally:
        watchdog.cancel()
        bench.kill()
        bench.communicate()
