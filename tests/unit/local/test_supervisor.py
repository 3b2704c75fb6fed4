"""The beginning and the end of a run, without a Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_pipeline import SMALL

from servepipe.errors import RunError
from servepipe_operator.local import supervisor
from servepipe_operator.local.run_folder import RunFolder
from servepipe_operator.local.run_record import RunRecord
from servepipe_operator.local.sources import Compiled
from servepipe_operator.local.supervisor import Options, Supervisor
from servepipe_operator.view import QuietView

COMPILED = Compiled(SMALL, "small", "/project", {}, ())


class Watching(QuietView):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.closed = 0

    def say(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return RunFolder.of("small")


async def test_a_second_start_gives_the_screen_back_and_leaves_the_first_alone(folder: RunFolder) -> None:
    folder.take()
    folder.run_file.write_text("the first's", encoding="utf-8")
    view = Watching()
    with pytest.raises(RunError, match="is running already"):
        await Supervisor(COMPILED, Options(), view).run()
    assert view.closed == 1
    assert folder.run_file.read_text(encoding="utf-8") == "the first's"


async def test_an_end_while_ports_are_chosen_leaves_no_run_file(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, go_on, choose = threading.Event(), threading.Event(), supervisor.choose_ports

    def slowly(*arguments: Any, **options: Any) -> Any:
        chosen.set()
        assert go_on.wait(30), "the test did not let the ports be chosen"
        return choose(*arguments, **options)

    monkeypatch.setattr(supervisor, "choose_ports", slowly)
    run = Supervisor(COMPILED, Options(), Watching())
    running = asyncio.create_task(run.run())
    assert await asyncio.to_thread(chosen.wait, 30), "no ports were asked for"
    run.stop()
    await asyncio.sleep(0)
    go_on.set()
    assert await asyncio.wait_for(running, 30) == 0
    assert not folder.run_file.exists()
    assert not folder.held()


async def test_a_start_that_fails_gives_everything_back(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise RunError("No free port")

    monkeypatch.setattr(supervisor, "choose_ports", none)
    view = Watching()
    with pytest.raises(RunError, match="No free port"):
        await Supervisor(COMPILED, Options(), view).run()
    assert (view.closed, folder.held(), folder.run_file.exists()) == (1, False, False)


async def test_ray_gets_the_flags_of_the_resource_and_what_changes_them_is_said(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, str | None] = {}

    class Ray:
        def __init__(self, *_: Any, environment: Callable[[str], dict[str, str | None]], **__: Any) -> None:
            given.update(environment("/tmp/h"))

        async def start(self) -> None:
            raise RunError("Ray did not start")

        def processes(self) -> list[Any]:
            return []

        async def stop(self) -> None:
            pass

        link, token_file = None, Path("token")

    monkeypatch.setattr(supervisor, "LocalRay", Ray)
    monkeypatch.setenv("RAY_SERVE_THROUGHPUT_OPTIMIZED", "0")
    env = '{name: SERVEPIPE_CHANNEL, value: "off"}, {name: RAY_SERVE_OF_MINE, valueFrom: {fieldRef: {fieldPath: a}}}'
    head = f"  cluster: {{head: {{template: {{spec: {{containers: [{{name: ray-head, env: [{env}]}}]}}}}}}}}\n"
    view = Watching()
    with pytest.raises(RunError, match="Ray did not start"):
        await Supervisor(replace(COMPILED, document=SMALL + head), Options(), view).run()
    assert (given["SERVEPIPE_CHANNEL"], given["RAY_SERVE_THROUGHPUT_OPTIMIZED"]) == ("off", "0")
    assert "RAY_SERVE_OF_MINE" not in given
    assert given["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"] == "/tmp/h/haproxy.cfg"
    assert [line for line in view.said if line.startswith("Note: ")] == [
        "Note: spec.cluster.head.template sets SERVEPIPE_CHANNEL=off",
        "Note: the environment of this command sets RAY_SERVE_THROUGHPUT_OPTIMIZED=0",
        "Note: left out, as only a pod has the values (valueFrom): RAY_SERVE_OF_MINE of spec.cluster.head.template",
    ]


def test_a_run_file_that_cannot_be_written_is_said_and_ends_nothing(folder: RunFolder) -> None:
    view = Watching()
    record = RunRecord(folder, view)
    with pytest.raises(RunError, match="not started"):
        _ = record.run
    record.stopping()
    record.begin("small", control="http://127.0.0.1:1", token="token", source="small.py")
    record.change(url="http://127.0.0.1:8000/")  # there is no folder
    record.change(url="http://127.0.0.1:8000/")
    assert record.run.url == "http://127.0.0.1:8000/"
    assert len(view.said) == 1
    assert "run.json cannot be written: No such file" in view.said[0]
    with pytest.raises(OSError, match="No such file"):
        record.write(record.run)
    folder.take()
    record.change(state="Running")
    found = folder.read()
    assert found is not None
    assert (found.state, found.url, found.source) == ("Running", "http://127.0.0.1:8000/", "small.py")
