"""The callers of the end-to-end tests see what happens: every failure, and nothing that is none."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bed.processes import wait_for
from callers import Seen, seen

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
            body = {"ok": b"8", "wrong": b"9", "error": b"it failed"}[what]
            self.send_response(500 if what == "error" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

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
        assert (found.reopened, list(found.failures)) == (0, [])
        assert 0 < found.slowest < 5


@pytest.mark.parametrize(
    ("what", "words"),
    [("error", "HTTP 500: it failed"), ("wrong", "a wrong answer: 9"), ("cut", "IncompleteRead")],
)
def test_every_failure_is_told(what: str, words: str) -> None:
    with server(lambda n: what if n % 10 == 0 else "ok") as (url, count):
        found = run(url, lambda: count() >= 45)
        assert [words in one["failure"] for one in found.failures] == [True] * (count() // 10)
        assert found.answered == count() - FIRST - count() // 10
        assert found.reopened == 0


def test_a_connection_that_is_gone_when_it_is_used_again_is_opened_once_more() -> None:
    with server(lambda n: "drop" if n == 20 else "ok") as (url, count):
        found = run(url, lambda: count() >= 45)
        assert (found.reopened, list(found.failures)) == (1, [])
        assert found.answered == count() - FIRST - 1


def test_a_new_connection_that_is_dropped_is_a_failure() -> None:
    with server(lambda n: "drop" if n in (20, 21) else "ok") as (url, count):
        found = run(url, lambda: count() >= 45)
        assert found.reopened == 1
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
        assert (found.reopened, len(found.failures)) == (1, 19)
        assert found.answered == count() - FIRST - 20
