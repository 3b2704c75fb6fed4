"""How the process that holds Ray ends it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from servepipe_operator.adapters import ray_keeper
from servepipe_operator.adapters.processes import Process, end, identify


def test_everything_else_has_ended_before_the_gcs_is_asked_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    gcs = tmp_path / "gcs_server"
    gcs.symlink_to(sleep)
    server, worker = subprocess.Popen(["sleep", "600"], executable=gcs), subprocess.Popen(["sleep", "600"])
    alive: list[list[int]] = []

    def running(_: int) -> list[Process]:
        return [found for process in (server, worker) if (found := identify(process.pid))]

    def ended(processes: Iterable[Process], **options: Any) -> None:
        end(processes, **options)
        alive.append([process.pid for process in running(0)])

    monkeypatch.setattr(ray_keeper, "descendants", running)
    monkeypatch.setattr(ray_keeper, "end", ended)
    monkeypatch.setattr(ray_keeper.os, "_exit", lambda _: None)
    try:
        ray_keeper._end_everything(0)
    finally:
        for process in (server, worker):
            process.kill()
            process.wait()
    assert alive == [[server.pid], []]
