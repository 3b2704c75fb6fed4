"""The demo's own judgement: what it must notice before it may say that all is well."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

DOCUMENTS = {"a.txt": b"a", "b.txt": b"b"}
GERMAN = {"accepted": True, "language": "de"}
DUTCH = {"accepted": True, "language": "nl"}


class Pipeline(http.server.ThreadingHTTPServer):
    """A stand-in for a running pipeline: `reply` gives status and body for a document."""

    daemon_threads = True
    reply: Callable[[bytes], tuple[int, bytes]]
    drop_after_answer = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Pipeline

    def do_POST(self) -> None:
        status, body = self.server.reply(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        # As a proxy that is being replaced: the connection ends without a word.
        self.close_connection = self.server.drop_after_answer

    def log_message(self, format: str, *args: Any) -> None: ...


def in_language(code: str) -> tuple[int, bytes]:
    return 200, json.dumps({"accepted": True, "text": "", "language": {"code": code}}).encode()


@pytest.fixture
def server() -> Iterator[Pipeline]:
    with Pipeline(("127.0.0.1", 0), Handler) as server:
        server.reply = lambda body: in_language("de")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def under_load(triage: SimpleNamespace, server: Pipeline, wanted: dict[str, Any], until: int = 20) -> Any:
    """Load that has sent at least ``until`` requests; gives up after 10 s."""
    enough = threading.Event()
    reply, count = server.reply, iter(range(until * 100))

    def counted(body: bytes) -> tuple[int, bytes]:
        if next(count) >= until:
            enough.set()
        return reply(body)

    server.reply = counted
    with triage.load.Load(server.url, DOCUMENTS, dict.fromkeys(DOCUMENTS, wanted), clients=2) as load:
        assert enough.wait(10), f"{until} requests were not sent within 10 s"
    return load


def test_load_sends_every_document_and_finds_nothing_wrong(triage: SimpleNamespace, server: Pipeline) -> None:
    sent = under_load(triage, server, GERMAN).sent()

    assert {one.document for one in sent} == set(DOCUMENTS)
    assert len(sent) >= 20
    assert {one.problem for one in sent} == {""}


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (lambda body: in_language("nl"), "language is 'nl', not 'de'"),
        (lambda body: (503, b"not ready"), "HTTP 503: not ready"),
    ],
)
def test_load_notices_wrong_answers(
    triage: SimpleNamespace, server: Pipeline, reply: Callable[[bytes], tuple[int, bytes]], problem: str
) -> None:
    server.reply = reply

    assert {one.problem for one in under_load(triage, server, GERMAN).sent()} == {problem}


def test_load_notices_a_pipeline_that_is_gone(triage: SimpleNamespace, server: Pipeline) -> None:
    client = triage.load.Client("http://127.0.0.1:1/")

    with pytest.raises(triage.load.NoAnswerError, match="no answer: ConnectionRefusedError"):
        triage.load.ask(client, b"a")


def test_a_dropped_idle_connection_is_opened_again_and_counted(triage: SimpleNamespace, server: Pipeline) -> None:
    server.drop_after_answer = True

    load = under_load(triage, server, GERMAN)

    assert {one.problem for one in load.sent()} == {""}
    assert load.reconnected > 0


def test_while_a_model_changes_both_answers_are_right_and_afterwards_only_the_new_one(
    triage: SimpleNamespace, server: Pipeline
) -> None:
    load = triage.load.Load(server.url, {"a.txt": b"a"}, {"a.txt": GERMAN}, clients=1)
    asked, answer = threading.Semaphore(0), threading.Semaphore(0)
    language = "de"

    def reply(body: bytes) -> tuple[int, bytes]:
        asked.release()
        assert answer.acquire(timeout=10)
        return in_language(language)

    def let_one_through() -> None:
        answer.release()
        assert asked.acquire(timeout=10), "no further request within 10 s"

    server.reply = reply
    with load:
        assert asked.acquire(timeout=10)
        load.allow({"a.txt": GERMAN}, {"a.txt": DUTCH})
        let_one_through()
        language = "nl"
        let_one_through()
        load.allow({"a.txt": DUTCH})
        language = "de"
        let_one_through()  # under way since before the change: may still be the old one
        let_one_through()  # asked after it
        answer.release(1000)

    assert [one.problem for one in load.sent()[:4]] == ["", "", "", "language is 'de', not 'nl'"]


def test_requests_are_found_by_the_time_they_were_sent(triage: SimpleNamespace, server: Pipeline) -> None:
    load = under_load(triage, server, GERMAN)
    third = load.sent()[2].at

    assert load.sent(until=third)[-1].at <= third
    assert len(load.sent(since=third)) + len(load.sent(until=third)) >= len(load.sent())


def nodes(triage: SimpleNamespace, **changed: Any) -> dict[str, Any]:
    node = triage.local_run.Node
    base = {name: node("r1", {f"{name}-a": 100 + at}) for at, name in enumerate((*triage.demo.MODELS, "ingress"))}
    return base | {"report": node("r1", {})} | {name.replace("_", "-"): value for name, value in changed.items()}


def test_only_the_changed_model_may_move(triage: SimpleNamespace) -> None:
    before, node = nodes(triage), triage.local_run.Node
    judge = triage.demo.what_moved_wrongly

    new = node("r2", {"new": 900})
    assert judge("recognition", before, nodes(triage, recognition=new)) == []
    assert judge("recognition", before, before) == ["recognition was not replaced"]
    [problem] = judge("recognition", before, nodes(triage, recognition=new, orientation=node("r1", {"other": 901})))
    assert problem.startswith("orientation moved during the upgrade of recognition")
    [problem] = judge("recognition", before, nodes(triage, recognition=new, ingress=node("r1", {"other": 901})))
    assert problem.startswith("ingress moved")


def test_every_model_needs_a_process_of_its_own(triage: SimpleNamespace) -> None:
    node = triage.local_run.Node
    demo = triage.demo

    assert demo.without_process(nodes(triage)) == demo.shared_processes(nodes(triage)) == []
    shared = nodes(triage, recognition=node("r1", {"a": 7}), ingress=node("", {"b": 7}))
    assert demo.shared_processes(shared) == ["recognition and ingress share process 7"]
    inline = nodes(triage, recognition=node("r1", {}))
    assert demo.without_process(inline) == ["recognition has no process"]


def test_a_process_that_has_ended_is_not_alive(triage: SimpleNamespace) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert triage.local_run.alive(child.pid)

    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not triage.local_run.alive(child.pid), "a zombie"
    child.wait()
    assert not triage.local_run.alive(child.pid)


def test_the_changes_fit_the_sources(triage: SimpleNamespace, tmp_path: Path) -> None:
    for change in triage.demo.CHANGES:
        (tmp_path / change.file).write_text((triage.folder / change.file).read_text())
        change.make(tmp_path)
        assert change.new in (tmp_path / change.file).read_text()
        with pytest.raises(triage.local_run.RunFailedError, match="exactly once"):
            change.make(tmp_path)


def test_python_3_13_is_told_why_it_cannot_run(
    triage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = triage.demo
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None if "rapidocr" in name else object())
    monkeypatch.setattr(demo.sys, "version_info", (3, 13, 1))
    monkeypatch.setattr(demo.platform, "python_version", lambda: "3.13.1")

    assert demo.main() == 2
    assert "rapidocr-onnxruntime has no release for Python 3.13.1" in capsys.readouterr().err


def test_missing_packages_are_named_with_the_line_that_installs_them(
    triage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        triage.demo.importlib.util, "find_spec", lambda name: None if name in ("lingua", "ray") else object()
    )

    missing = triage.demo.what_is_missing()

    assert "pip install 'lingua-language-detector' 'servepipe[local]'" in missing


def test_progress_names_what_is_on_its_way(triage: SimpleNamespace) -> None:
    up, starting = [{"id": "x", "state": "RUNNING", "pid": 7}], [{"id": "y", "state": "STARTING", "pid": 8}]
    status = {
        "applications": {"m1--r1": {"replicas": up}, "m1--r2": {"replicas": starting}, "m2--r1": {"replicas": []}},
        "status": {
            "nodes": {
                "m1": {"revision": "r1", "candidate": {"revision": "r2", "reason": "Starting"}},
                "m2": {"state": "Starting", "candidate": {"revision": "r1", "reason": "Starting"}},
            }
        },
    }

    assert triage.local_run.progress(status) == "1 of 3 applications run, m1 r2 is starting"
    assert triage.local_run.progress({"applications": {}, "status": {}}) == "Ray is starting"


@pytest.mark.parametrize(
    ("conditions", "ready"),
    [
        ([], False),
        ([{"type": "Ready", "status": "False"}], False),
        ([{"type": "Ready", "status": "True"}, {"type": "Reconciling", "status": "True"}], False),
        ([{"type": "Ready", "status": "True"}], True),
    ],
)
def test_a_pipeline_has_settled_when_it_is_ready_and_nothing_changes(
    triage: SimpleNamespace, conditions: list[dict[str, str]], ready: bool
) -> None:
    status = {
        "status": {"conditions": conditions, "nodes": {"m1": {"revision": "r1"}, "report": {"revision": "r2"}}},
        "applications": {
            "m1--r1": {"status": "RUNNING", "replicas": [{"id": "x", "state": "RUNNING", "pid": 7}]},
            "ingress": {"status": "RUNNING", "replicas": [{"id": "y", "state": "RUNNING", "pid": 8}]},
        },
    }
    node = triage.local_run.Node

    settled = {"m1": node("r1", {"x": 7}), "report": node("r2", {}), "ingress": node("", {"y": 8})}
    assert triage.local_run.settled(status) == (settled if ready else None)
