"""The hook with which a worker's pod ends, on real Ray nodes: callers notice nothing when one of them goes.

Its nodes share this machine and hence one proxy, so what a pod's own proxy does is left to the end-to-end tests.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servepipe.runtime.flags import serve_environment

pytestmark = pytest.mark.ray

HERE = Path(__file__).parent
CODE = HERE / "code"
GRAPH = {
    "steps": [{"name": "m1-output", "node": "m1", "method": "forward", "args": [{"$input": [0]}]}],
    "output": {"$step": "m1-output"},
}


class Ray:
    """A head and workers, each a ``ray start --block`` as in a pod.

    Attributes:
        workers: By name. Each offers the resource ``worker``, so nothing is placed on the head.
    """

    def __init__(self, folder: Path, serve_class: Any) -> None:
        self.folder, free_port = folder, serve_class.free_port
        self.port, self.dashboard_port, self.token = free_port(), free_port(), secrets.token_hex(16)
        first = 33000 + os.getpid() % 500
        self.ports = range(first, first + 400)
        flags = serve_environment(
            folder=str(folder),
            metrics_port=free_port(),
            stats_port=free_port(),
            replica_http_ports=self.ports,
            replica_grpc_ports=range(first + 10_000, first + 10_400),
        )
        self.env = {
            **os.environ,
            **flags,
            **serve_class.own_ports(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }
        self.env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # as the operator sets it in pods
        self.env |= {"RAY_ADDRESS": f"127.0.0.1:{self.port}", "PYTHONPATH": str(folder)}
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.head = self._start(
            "head",
            *("--head", f"--port={self.port}", f"--dashboard-port={self.dashboard_port}", f"--temp-dir={folder}/ray"),
            "--include-dashboard=true",
            "--num-cpus=0",
        )
        self.serve = serve_class(f"http://127.0.0.1:{self.dashboard_port}", self.token, True, self.ports)

    def add(self, name: str) -> None:
        resources = json.dumps({"worker": 10})
        address = f"--address=127.0.0.1:{self.port}"
        self.workers[name] = self._start(name, address, "--num-cpus=2", f"--resources={resources}")

    def wait_for_node(self, name: str) -> None:
        def started() -> bool:
            log = (self.folder / f"{name}.log").read_text(errors="replace")
            assert self.workers[name].poll() is None, log
            return "Ray runtime started" in log

        self.serve.wait_for(f"the node {name} to run", started, 60)

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        ray = str(Path(sys.executable).parent / "ray")
        command = [ray, "start", "--block", "--disable-usage-stats", "--object-store-memory=80000000", *arguments]
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self.env, start_new_session=True)

    def drain(self, name: str, *arguments: str) -> tuple[str, float]:
        """What the hook said, and how long it took."""
        begun = time.monotonic()
        command = [sys.executable, str(HERE / "drain_one.py"), str(self.workers[name].pid), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self.env, timeout=150)
        assert done.returncode == 0, done.stderr
        return done.stdout, time.monotonic() - begun

    def nodes_of_replicas(self) -> dict[str, str]:
        """The node of each running replica, by its id."""
        return {
            replica["replica_id"]: replica["node_id"]
            for application in self.serve.applications().values()
            for deployment in application["deployments"].values()
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        }

    def stop(self) -> None:
        for process in (*self.workers.values(), self.head):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in (*self.workers.values(), self.head):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def ray_nodes(serve_class: Any) -> Iterator[Ray]:
    """Two workers, a node with two replicas and an ingress with two, spread over them."""
    folder = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    ray = Ray(folder, serve_class)
    try:
        # No worker could join before: GCS is the first process that a head starts.
        serve_class.wait_for("the dashboard to answer", lambda: answers(ray), 120)
        for name in ("one", "two"):
            ray.add(name)
            ray.wait_for_node(name)
        placed = {"ray_actor_options": {"num_cpus": 0.01, "resources": {"worker": 1}}, "max_replicas_per_node": 4}
        ray.serve.deploy(
            serve_class.node("m1", "runtime_models:Model", 1, path=CODE, replicas=2, **placed),
            serve_class.ingress(GRAPH, {"m1": "r1"}, path=CODE, replicas=2, **placed),
        )
        yield ray
    finally:
        ray.stop()
        shutil.rmtree(folder, ignore_errors=True)


def answers(ray: Ray) -> bool:
    assert ray.head.poll() is None, (ray.folder / "head.log").read_text(errors="replace")
    with contextlib.suppress(OSError, ValueError, KeyError):
        ray.serve.applications()
        return True
    return False


class Callers:
    """Clients that keep their connections and never stop asking, while the block runs."""

    def __init__(self, port: int) -> None:
        self._port, self._stop = port, threading.Event()
        self.answered, self.failures = 0, []
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(4)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._stop.wait(0.02):
            for again in (True, False):
                try:
                    connection.request("POST", "/", b"[2]")
                    answer = connection.getresponse()
                    text = answer.read().decode()
                    if answer.status == 200:
                        self.answered += 1
                    else:
                        self.failures.append(f"{answer.status} {text}")
                    break
                except (ConnectionError, http.client.RemoteDisconnected) as error:
                    connection.close()  # an idle connection may be closed; what is sent on a new one may not be lost
                    if not again:
                        self.failures.append(repr(error))
                except OSError as error:
                    connection.close()
                    self.failures.append(repr(error))
                    break
        connection.close()


def test_callers_notice_nothing_when_a_node_is_drained(ray_nodes: Ray) -> None:
    serve = ray_nodes.serve
    before = ray_nodes.nodes_of_replicas()
    assert len(before) == 4
    assert len(set(before.values())) == 2
    with Callers(serve.port) as callers:
        serve.wait_for("callers to be answered", lambda: callers.answered > 20)
        said, took = ray_nodes.drain("one", "--grace", "120")
        assert ray_nodes.workers["one"].wait(20) is not None
        serve.wait_for("four replicas that run", lambda: len(ray_nodes.nodes_of_replicas()) == 4)
        more = callers.answered + 50
        serve.wait_for("more answers", lambda: callers.answered > more)
    print(f"\n{said}{took:.1f} s; {callers.answered} answers; {before} -> {ray_nodes.nodes_of_replicas()}")
    assert callers.failures == []
    assert "all replicas have moved" in said
    assert took < 60
    assert len(set(ray_nodes.nodes_of_replicas().values())) == 1


def test_a_node_without_replicas_ends_at_once(ray_nodes: Ray) -> None:
    ray_nodes.add("empty")
    ray_nodes.wait_for_node("empty")
    said, took = ray_nodes.drain("empty", "--grace", "120")
    ray_nodes.workers["empty"].wait(20)
    assert "no replica is here" in said
    assert took < 15


def test_nobody_waits_for_a_head_that_is_gone(ray_nodes: Ray) -> None:
    """The last one: the cluster is over then."""
    os.killpg(ray_nodes.head.pid, signal.SIGKILL)
    ray_nodes.head.wait()
    said, took = ray_nodes.drain("two", "--grace", "120")
    ray_nodes.workers["two"].wait(30)
    assert "head is gone" in said
    assert took < 15
