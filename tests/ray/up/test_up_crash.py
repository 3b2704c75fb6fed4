"""Whatever ends a run, nothing of it is left, and the next one serves its own answers only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

PIPELINE = """
from servepipe import ServeInputNode, build, remote

@remote
class Echo:
    def forward(self, x): return ["ours", x]

with ServeInputNode() as dag_input:
    echo = Echo.bind()
    out = echo.forward.bind(dag_input)

app = build(out, name="echo")
"""
# Shares its port with everybody who asks for that, as HAProxy and Serve's proxies do.
OTHER_SERVER = """
import http.server, socket, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'"theirs"')

    def log_message(self, *_): ...

class Server(http.server.ThreadingHTTPServer):
    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
print("listening")
server.serve_forever()
"""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("project") / "echo.py"
    file.write_text(PIPELINE, encoding="utf-8")
    return file


@pytest.fixture
def up(new_up: Callable[[str], Any]) -> Any:
    return new_up("echo")


@contextmanager
def other_server(port: int) -> Iterator[int]:
    """Another server on ``port``; its pid."""
    command = [sys.executable, "-u", "-c", OTHER_SERVER, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "listening\n"
        yield other.pid
        other.kill()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].strip("/"))


def test_the_next_start_ends_orphans_and_shares_no_port(up: Any, tools: Any, pipeline: Path) -> None:
    up.start(pipeline)
    first = up.wait_settled("the pipeline to be ready")
    port = port_of(first["url"])
    # The process that holds Ray is killed too, so that nobody can clean up: HAProxy lives on and keeps the port.
    holder = up.run_json()["processes"][0]
    up.process.kill()
    os.kill(holder["pid"], signal.SIGKILL)
    up.process.wait()
    # Before anything else: some of them end by themselves, sooner or later.
    left = up.leftovers()
    assert any("haproxy" in process.name for process in left)
    assert "died without cleaning up" in up.run("status", "-p", "echo", code=2).stderr
    with other_server(port + 1):
        up.start(pipeline)
        second = up.wait_settled("the pipeline to be ready again")
        assert not any(process.alive() for process in left)
        assert tools.revisions(second) == tools.revisions(first)
        assert port_of(second["url"]) != port + 1
        with tools.Load(second["url"], 1, clients=4, check=lambda answer: answer == ["ours", 1]) as clients:
            clients.wait_for_more(1000)
        assert clients.failures == []
    up.run("down")
    assert up.wait_ended() == 0

    with other_server(port_of(second["url"])):
        up.start(pipeline)
        third = up.wait_settled("the pipeline to be ready on another port")
        assert port_of(third["url"]) != port_of(second["url"])
        with tools.Load(third["url"], 1, clients=4, check=lambda answer: answer == ["ours", 1]) as clients:
            clients.wait_for_more(1000)
        assert clients.failures == []
    up.run("down")
    assert up.wait_ended() == 0


def test_a_port_that_is_taken_while_ray_starts_is_noticed(up: Any, tools: Any, pipeline: Path) -> None:
    up.start(pipeline)
    run = tools.wait_for("the ports to be chosen", lambda: (r := up.own_run()) and r["ports"] and r, why=up.why)
    with other_server(run["ports"]["http"]) as pid:
        assert up.wait_ended() == 2
    assert f"is taken now by process {pid}" in up.output()
    assert up.leftovers() == []


def test_kill_9_of_the_supervisor_alone_ends_everything(up: Any, tools: Any, pipeline: Path) -> None:
    up.start(pipeline)
    up.wait_settled("the pipeline to be ready")
    up.run_json()
    processes = up.leftovers()
    assert len(processes) > 5
    up.process.kill()
    up.process.wait()
    tools.wait_for("all processes to end", lambda: not any(p.alive() for p in processes))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_start_up_cleans_up(up: Any, tools: Any, pipeline: Path, number: int, code: int) -> None:
    up.start(pipeline)
    tools.wait_for("Ray's first processes", lambda: (up.own_run() or {}).get("processes"), why=up.why)
    processes = up.leftovers()
    up.process.send_signal(number)
    assert up.wait_ended() == code
    assert not any(process.alive() for process in processes)
    assert up.run_json() is None


def test_a_second_signal_does_not_wait(up: Any, tools: Any, pipeline: Path) -> None:
    up.start(pipeline)
    up.wait_settled("the pipeline to be ready")
    up.run_json()
    processes = up.leftovers()
    up.process.send_signal(signal.SIGINT)
    tools.wait_for("the first to be noticed", lambda: "Stopping" in up.output())
    up.process.send_signal(signal.SIGINT)
    assert up.wait_ended() == 130
    assert not any(process.alive() for process in processes)


def test_a_port_that_was_asked_for_and_is_taken(up: Any, pipeline: Path) -> None:
    with subprocess.Popen(
        [
            sys.executable,
            "-u",
            "-c",
            "import socket, time; s = socket.create_server(('127.0.0.1', 0)); "
            "print(s.getsockname()[1]); time.sleep(600)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        port = other.stdout.readline().strip()
        done = up.run("up", str(pipeline), "--port", port, code=2)
        other.kill()
    assert f"Port {port} is taken" in done.stderr
    assert up.run_json() is None
