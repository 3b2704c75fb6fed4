"""The command from end to end, with the one contestant that needs nothing but a small server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from graphbench.__main__ import main
from graphbench.systems.base import BENCHMARKS

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
    old.write_text(json.dumps({"machine": machine, "samples": samples}))
    assert main(["--again", str(old), "--out", str(tmp_path)]) == 1
    assert "MISSED" in capsys.readouterr().out
    assert main(["--again", str(old), "--quick", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "old-diamond.svg").exists()


def test_what_is_not_there_is_an_error_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "diamnd"]) == 2
    assert "there is no case 'diamnd'" in capsys.readouterr().err


def test_interrupted_it_ends_what_it_started(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / "graphs.py"), *ALONE, "--seconds", "30", "--out", str(tmp_path)]
    bench = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    watchdog = threading.Timer(PATIENCE_S, bench.kill)
    watchdog.start()
    try:
        assert bench.stdout is not None
        assert any("reference is up" in line for line in bench.stdout)
        started = psutil.Process(bench.pid).children(recursive=True)
        assert started
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(PATIENCE_S) == 130
        _, alive = psutil.wait_procs(started, timeout=10)
        assert not alive
    finally:
        watchdog.cancel()
        bench.kill()
        bench.communicate()
