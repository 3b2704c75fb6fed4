"""The callers of the end-to-end tests see what happens: every failure, and nothing that is none."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import callers_pod
import pytest
from bed.processes import wait_for
from callers import Callers, Seen, seen

PROGRAM = Path(__file__).parents[3] / "e2e" / "callers_pod.py"
#: The request with which they begin, and which they do not count.
FIRST = 1
#: What the server does with its n-th request.
Plan = Callable[[int], str]


@contextlib.contextmanager
def server(plan: Plan) -> Iterator[tuple[str, Callable[[], int]]]:
    """The address of a server that follows the plan, and how many requests it has had."""
    lock, count = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                count[0] += 1
                what = plan(count[0])
            if what == "drop":
                self.close_connection = True
                return
            if what == "cut":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n8")
                self.close_connection = True
                return
            body = {"ok": b"8", "last": b"8", "wrong": b"9", "nonsense": b"<html>", "error": b"it failed"}[what]
            self.send_response(500 if what == "error" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection |= what == "last"

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/", lambda: count[0]
        http.shutdown()
        thread.join()


def run(url: str, until: Callable[[], bool], clients: int = 1) -> Seen:
    """What callers saw until then."""
    asked = {"url": url, "body": [1, 2, 3], "answers": [8], "clients": clients, "rate": 200, "timeout": 5}
    with subprocess.Popen([sys.executable, PROGRAM, json.dumps(asked)], stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_for("callers to have called", until, 30)
        finally:
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return seen(output)


def test_right_answers_are_counted() -> None:
    with server(lambda _: "ok") as (url, count):
        found = run(url, lambda: count() >= 50, clients=4)
        assert found.answered == count() - FIRST
        assert (found.reopened, found.resent, list(found.failures)) == (0, 0, [])
        assert found.since is None
        assert 0 < found.slowest < 5


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("error", "HTTP 500: it failed"),
        ("wrong", "a wrong answer: 9"),
        ("nonsense", "JSONDecodeError"),
        ("cut", "IncompleteRead"),
    ],
)
def test_every_failure_is_told(what: str, words: str) -> None:
    with server(lambda n: what if n % 10 == 0 else "ok") as (url, count):
        found = run(url, lambda: count() >= 45)
        assert [words in one["failure"] for one in found.failures] == [True] * (count() // 10)
        assert found.answered == count() - FIRST - count() // 10
        assert (found.reopened, found.resent) == (0, 0)


def test_a_connection_that_was_closed_while_it_was_idle_is_opened_once_more() -> None:
    with server(lambda n: "last" if n == 20 else "ok") as (url, count):
        found = run(url, lambda: count() >= 45)
        # On a busy machine they may send before they see that it is closed.
        assert (found.reopened + found.resent, list(found.failures)) == (1, [])
        assert found.answered == count() - FIRST


def test_whether_a_connection_is_closed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not callers_pod._is_closed(ours)
        theirs.close()
        assert callers_pod._is_closed(ours)


def test_a_request_whose_connection_goes_before_an_answer_is_sent_twice_and_counted() -> None:
    with server(lambda n: "drop" if n == 20 else "ok") as (url, count):
        found = run(url, lambda: count() >= 45)
        assert (found.reopened, found.resent, list(found.failures)) == (0, 1, [])
        assert found.answered == count() - FIRST - 1
        assert "1 requests sent twice" in str(found)


def test_an_answer_that_is_reset_in_its_middle_is_a_failure() -> None:
    class Torn:
        status = 200

        def read(self) -> bytes:
            raise ConnectionResetError

    class Kept:
        def __init__(self, idle: socket.socket) -> None:
            self.sock, self.closed = idle, False

        def request(self, *_: object) -> None:
            pass

        def getresponse(self) -> Torn:
            return Torn()

        def close(self) -> None:
            self.closed = True

    callers = callers_pod.Callers(url="http://127.0.0.1:1/", body=[], answers=[], clients=1, rate=1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        kept = Kept(ours)
        with pytest.raises(ConnectionResetError):
            callers._ask(kept)  # type: ignore[arg-type]
    assert kept.closed
    assert callers.counts.resent == 0


def told(at: float, answered: int, since: float | None) -> str:
    line = {"at": at, "since": since, "answered": answered, "failed": 0, "reopened": 0, "resent": 0}
    return json.dumps(line)


def test_a_request_that_hangs_is_waited_for() -> None:
    """Others are answered meanwhile."""
    logs = [told(1, 10, 0.5), told(2, 90, 0.5), told(3, 95, 2.8)]

    class Cluster:
        def kubectl(self, *_: object, **__: object) -> SimpleNamespace:
            return SimpleNamespace(stdout=logs.pop(0))

    callers = Callers(Cluster(), "shop", "image", url="http://shop:8000/", body=[], answers=[])  # type: ignore[arg-type]
    assert callers.wait_for_more(50).answered == 95


def test_a_new_connection_that_is_dropped_is_a_failure() -> None:
    with server(lambda n: "drop" if n in (20, 21) else "ok") as (url, count):
        found = run(url, lambda: count() >= 45)
        assert found.resent == 1
        assert ["RemoteDisconnected" in one["failure"] for one in found.failures] == [True]
        assert found.answered == count() - FIRST - 2


def test_nothing_counts_before_the_first_right_answer() -> None:
    with server(lambda n: "error" if n < 4 else "ok") as (url, count):
        found = run(url, lambda: count() >= 20)
        assert list(found.failures) == []
        assert found.answered == count() - FIRST - 3


def test_they_go_on_while_nobody_answers() -> None:
    with server(lambda n: "drop" if 10 < n <= 30 else "ok") as (url, count):
        found = run(url, lambda: count() >= 45)
        assert (found.resent, len(found.failures)) == (1, 19)
        assert found.answered == count() - FIRST - 20
