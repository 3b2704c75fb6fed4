"""What people see."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from servepipe_operator.engine.state import Event
from servepipe_operator.view import (
    PlainView,
    RichView,
    condition_lines,
    follow,
    node_rows,
    print_snapshot,
    status_lines,
    trouble_lines,
    view_for,
)

STATUS: dict[str, Any] = {
    "conditions": [
        {"type": "Available", "status": "True", "reason": "Serving", "message": "all"},
        {"type": "Ready", "status": "False", "reason": "Upgrading", "message": "m1 is upgraded"},
        {"type": "Reconciling", "status": "True", "reason": "InsufficientCapacity", "message": "no room"},
    ],
    "nodes": {
        "m2": {
            "revision": "bbbb",
            "replicas": 1,
            "readyReplicas": 1,
            "failedRevision": {"revision": "cccc", "reason": "StartFailed", "retryAt": "2026-01-01T00:05:00Z"},
        },
        "m3": {
            "revision": "aaaa",
            "replicas": 1,
            "readyReplicas": 1,
            "state": "Running",
            "failedRevision": {"revision": "cccc", "reason": "StartFailed"},
        },
        "m1": {
            "revision": "aaaa",
            "replicas": 3,
            "readyReplicas": 2,
            "candidate": {"revision": "dddd", "weight": 10, "replicas": 1, "readyReplicas": 0, "reason": "Starting"},
        },
        "f": {"revision": "eeee", "placement": "Inline"},
        "new": {"candidate": {"revision": "ffff"}},
    },
}


def test_rows() -> None:
    assert node_rows(STATUS) == [
        ("f", "eeee", "inline", "100%", "stable"),
        ("m1", "aaaa", "2/3", "90%", "stable"),
        ("", "dddd", "0/1", "10%", "Starting"),
        ("m2", "bbbb", "1/1", "100%", "cccc failed: StartFailed"),
        ("m3", "aaaa", "1/1", "100%", "Running"),
        ("new", "-", "-", "-", "starting"),
        ("", "ffff", "-", "0%", "candidate"),
    ]
    assert node_rows({}) == []


def test_conditions_explain_what_is_not_as_wished() -> None:
    assert condition_lines(STATUS) == [
        "Available=True",
        "Ready=False Upgrading: m1 is upgraded",
        "Reconciling=True InsufficientCapacity: no room",
    ]


def test_a_terminal_names_only_what_is_not_as_wished_and_once() -> None:
    assert trouble_lines(STATUS) == [
        "Ready=False Upgrading: m1 is upgraded",
        "Reconciling=True InsufficientCapacity: no room",
    ]
    repeated = [
        {"type": kind, "status": "False", "reason": "NodesNotReady", "message": "m1 has 0 of 1 replicas"}
        for kind in ("NodesReady", "Ready")
    ]
    assert trouble_lines({"conditions": repeated}) == ["NodesReady=False NodesNotReady: m1 has 0 of 1 replicas"]
    assert trouble_lines({}) == []


def test_a_long_message_is_one_line_where_it_is_drawn_again_and_again() -> None:
    traceback = "m1 does not start: no weights\n  File models.py, line 6"
    bad = [("Ready", "False"), ("Stalled", "True")]
    status = {"conditions": [{"type": t, "status": s, "reason": "Failed", "message": traceback} for t, s in bad]}
    assert trouble_lines(status) == ["Ready=False Failed: m1 does not start: no weights"]
    assert condition_lines(status) == [f"Ready=False Failed: {traceback}", f"Stalled=True Failed: {traceback}"]


def test_plain_lines_tell_only_what_changed() -> None:
    stream = io.StringIO()
    view = view_for(stream)
    assert isinstance(view, PlainView)
    view.show({"status": STATUS})
    assert stream.getvalue().count("\n") == 10
    view.show({"status": STATUS})
    assert stream.getvalue().count("\n") == 10
    view.event(Event("Normal", "Promoted", "dddd answers now", "m1"))
    assert stream.getvalue().rstrip().endswith("Promoted m1: dddd answers now")


def test_the_table_of_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    view = RichView()
    view.show({"pipeline": "diamond", "url": "http://127.0.0.1:8000/", "status": STATUS})
    view.event(Event("Warning", "StartFailed", "[red] is no markup", "m2"))
    view.close()
    out = capsys.readouterr().out
    for text in ("diamond", "http://127.0.0.1:8000/", "REVISION", "aaaa", "2/3", "[red] is no markup"):
        assert text in out
    assert "Ready=False Upgrading: m1 is upgraded" in out


@pytest.mark.parametrize(("conditions", "said"), [([], False), ([{"type": "Ready", "status": "True"}], True)])
def test_a_terminal_says_when_all_is_well_and_not_before(
    conditions: list[dict[str, str]], said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    view = RichView()
    view.show({"pipeline": "diamond", "url": "http://127.0.0.1:8000/", "status": {"conditions": conditions}})
    view.close()
    assert ("\nReady" in capsys.readouterr().out) is said


def test_what_has_failed_stands_out_from_what_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    stream = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=stream, force_terminal=True, color_system="standard", no_color=False, width=100)
    monkeypatch.setattr("rich.console.Console", lambda: console)
    view = RichView()
    stalled = {"type": "Stalled", "status": "True", "reason": "StartFailed", "message": "m2"}
    status = STATUS | {"conditions": [*STATUS["conditions"], stalled]}
    view.show({"pipeline": "diamond", "url": "http://127.0.0.1:8000/", "status": status})
    view.close()
    red, yellow = "\x1b[31m", "\x1b[33m"
    for style, text in (
        (red, "Stalled=True"),
        (yellow, "Ready=False"),
        (red, "cccc failed: StartFailed"),
    ):
        assert f"{style}{text}" in stream.getvalue()


def test_a_reader_that_has_gone_is_no_trouble() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    view = PlainView(Closed())
    view.say("hello")
    view.event(Event("Normal", "Promoted", "dddd answers now", "m1"))
    view.show({"status": STATUS})
    view.close()


def test_a_terminal_without_rich_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert isinstance(view_for(Terminal()), PlainView)


def test_following_shows_each_change_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servepipe_operator.view.FOLLOW_S", 0.0)
    changed = STATUS | {"conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": ""}]}
    states = iter([STATUS, STATUS, changed])

    def read() -> dict[str, Any]:
        state = next(states, None)
        if state is None:
            raise KeyboardInterrupt
        return {"pipeline": "shop", "url": "", "status": state}

    shown = io.StringIO()
    assert follow(read, stream=shown) == 130
    lines = shown.getvalue().splitlines()
    assert sum("Ready=" in line for line in lines) == 2
    assert lines[-1].endswith("Ready=True")


@pytest.mark.parametrize("output", ["json", "yaml", "table"])
def test_a_snapshot_for_people_and_for_programs(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_snapshot({"pipeline": "shop", "status": STATUS}, output)
    text = capsys.readouterr().out
    if output == "json":
        assert json.loads(text)["status"] == STATUS
    elif output == "yaml":
        assert text.startswith("pipeline: shop\n")
    else:
        assert text.splitlines() == status_lines(STATUS)
        assert text.split()[:5] == ["NODE", "REVISION", "READY", "WEIGHT", "STATE"]
