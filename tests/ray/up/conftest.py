"""Whole runs of `servepipe up`, seen from other processes as people see them."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from servepipe_operator.adapters.processes import Process, identify

T = TypeVar("T")

START_S = 120.0
CHANGE_S = 120.0
STOP_S = 60.0
LOOK_EVERY_S = 0.2


def wait_for(what: str, look: Callable[[], T | None], timeout_s: float = CHANGE_S, why: Callable[[], str] = str) -> T:
    """The first result of ``look`` that is not None or False; a failure names what was waited for."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (found := look()) is not None and found is not False:
            return found
        time.sleep(LOOK_EVERY_S)
    pytest.fail(f"no {what} within {timeout_s:.0f} s\n{why()}")


def servepipe_command() -> list[str]:
    return [str(Path(sys.executable).with_name("servepipe"))]


class Up:
    """One `servepipe up` and the commands that speak to it."""

    def __init__(self, state: Path, pipeline: str) -> None:
        self.state, self.pipeline = state, pipeline
        self.folder = state / "servepipe" / "runs" / pipeline
        self.log = state / f"{pipeline}.log"
        # A run that attached to somebody's Ray would end here, at an address where there is none.
        other_ray = {"RAY_ADDRESS": "127.0.0.1:1"}
        self.environment = os.environ | other_ray | {"XDG_STATE_HOME": str(state), "PYTHONUNBUFFERED": "1"}
        self.process: subprocess.Popen[bytes] | None = None
        self._seen: list[Process] = []
        self._links: set[str] = set()

    def start(self, file: Path, *options: str) -> None:
        if self.process is not None:
            self.process.wait(STOP_S)  # the one before, which was ended
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*servepipe_command(), "up", str(file), *options],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run_json(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        self._seen = [Process(**process) for process in found["processes"]] or self._seen
        self._links |= {f"{found['link']}/"} if found["link"] else set()
        return found

    def own_run(self) -> dict[str, Any] | None:
        """``run.json``, once it is that of the process that was started last."""
        run = self.run_json()
        return run if run and self.process and run["supervisor"]["pid"] == self.process.pid else None

    def snapshot(self) -> dict[str, Any] | None:
        """What the control server says; None while there is none."""
        run = self.run_json()
        if run is None:
            return None
        request = urllib.request.Request(
            f"{run['control']}/v1/status", headers={"Authorization": f"Bearer {run['token']}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                snapshot: dict[str, Any] = json.load(answer)
                return snapshot
        except OSError:
            return None

    def settled(self) -> dict[str, Any] | None:
        """The snapshot, once what was asked for last is what serves."""
        if self.process is not None and self.process.poll() is not None:
            pytest.fail(f"servepipe up ended with {self.process.returncode}\n{self.output()}")
        snapshot = self.snapshot()
        if snapshot is None or snapshot["observedGeneration"] < snapshot["generation"]:
            return None
        conditions = conditions_of(snapshot)
        return snapshot if conditions.get("Ready") == "True" and "Reconciling" not in conditions else None

    def wait(self, what: str, look: Callable[[dict[str, Any]], Any], timeout_s: float = CHANGE_S) -> dict[str, Any]:
        """The first snapshot of which ``look`` is true."""

        def found() -> dict[str, Any] | None:
            snapshot = self.snapshot()
            return snapshot if snapshot is not None and look(snapshot) else None

        return wait_for(what, found, timeout_s, self.why)

    def wait_settled(self, what: str, timeout_s: float = CHANGE_S) -> dict[str, Any]:
        return wait_for(what, self.settled, timeout_s, self.why)

    def why(self) -> str:
        snapshot = self.snapshot() or {}
        return f"{json.dumps(snapshot, indent=1)[-6000:]}\n{self.output()}"

    def output(self, characters: int = 6000) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]

    def run(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """A command in another process."""
        done = subprocess.run(
            [*servepipe_command(), *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHANGE_S,
        )
        assert code is None or done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done

    def call(self, value: Any) -> Any:
        snapshot = self.snapshot()
        assert snapshot is not None
        return ask(snapshot["url"], value)

    def node_calls(self) -> Counter[str]:
        """How many calls of nodes took which way, as Ray's metrics say it."""
        found: Counter[str] = Counter()
        targets = json.loads((self.folder / "ray" / "prom_metrics_service_discovery.json").read_text(encoding="utf-8"))
        for target in (address for group in targets for address in group["targets"]):
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
                text = answer.read().decode()
            for way, count in re.findall(r'^ray_servepipe_node_calls_total{.*\bway="(.*?)".*} (\S+)$', text, re.M):
                found[way] += round(float(count))
        return found

    def leftovers(self) -> list[Process]:
        """Processes of the run that are still there, whether it could tell of them in time or not."""
        self.run_json()
        found = {process.pid: process for process in self._seen if process.alive()}
        for other in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = other.cmdline()
                if any(link in word for link in self._links for word in words) and (known := identify(other.pid)):
                    found[known.pid] = known
        return list(found.values())

    def wait_ended(self) -> int:
        assert self.process is not None
        return self.process.wait(STOP_S)

    def stop(self) -> None:
        self.run_json()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for process in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def ask(url: str, value: Any, timeout_s: float = 60.0) -> Any:
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return json.load(answer)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60.0) as answer:
        return json.load(answer)


def conditions_of(snapshot: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in snapshot["status"].get("conditions") or ()}


def revisions(snapshot: dict[str, Any]) -> dict[str, str]:
    return {name: node["revision"] for name, node in snapshot["status"]["nodes"].items()}


def replicas(snapshot: dict[str, Any]) -> dict[str, dict[str, int]]:
    """By node (and ``ingress``): replica id and pid of what runs."""
    found: dict[str, dict[str, int]] = {}
    for application, details in snapshot["applications"].items():
        running = {r["id"]: r["pid"] for r in details["replicas"] if r["state"] == "RUNNING"}
        found.setdefault(application.partition("--")[0], {}).update(running)
    return found


class Load(contextlib.AbstractContextManager["Load"]):
    """Clients that send requests one after the other, each over a connection that it keeps.

    A connection that was idle may be gone when it is used again; like every HTTP client these then open a new one,
    once, and only if not a byte of an answer has come.
    """

    def __init__(self, url: str, value: Any, clients: int = 20, check: Callable[[Any], bool] = lambda _: True) -> None:
        host = url.split("/")[2].partition(":")
        self._address = (host[0], int(host[2]))
        self._body = json.dumps(value).encode()
        self._check = check
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client) for _ in range(clients)]
        self.answers: list[Any] = []
        self.failures: list[str] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, count: int) -> None:
        """Until ``count`` more requests have been answered or have failed."""
        goal = len(self.answers) + len(self.failures) + count
        wait_for(f"{count} more requests", lambda: len(self.answers) + len(self.failures) >= goal, 120.0)

    def _client(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stopping.is_set():
            try:
                for attempt in itertools.count():
                    reused = connection is not None
                    connection = connection or http.client.HTTPConnection(*self._address, timeout=60)
                    try:
                        connection.request("POST", "/", self._body, {"Content-Type": "application/json"})
                        response = connection.getresponse()
                        break
                    except (http.client.RemoteDisconnected, ConnectionError, BrokenPipeError):
                        connection.close()
                        connection = None
                        if not reused or attempt:
                            raise
                text = response.read().decode(errors="replace")
                if response.will_close:
                    connection.close()
                    connection = None
                answer = json.loads(text) if response.status == 200 else None
                good = response.status == 200 and self._check(answer)
                with self._lock:
                    if good:
                        self.answers.append(answer)
                    else:
                        self.failures.append(f"HTTP {response.status}: {text[:300]}")
            except Exception as error:
                with self._lock:
                    self.failures.append(repr(error))
                if connection is not None:
                    connection.close()
                    connection = None
        if connection is not None:
            connection.close()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def new_up(state: Path) -> Iterator[Callable[[str], Up]]:
    """Makes `Up` objects that are stopped at the end, with everything they started."""
    made: list[Up] = []

    def make(pipeline: str) -> Up:
        made.append(Up(state, pipeline))
        return made[-1]

    yield make
    for up in made:
        up.stop()


@pytest.fixture(scope="module")
def tools() -> Any:
    """The functions above, for tests: this file cannot be imported."""
    return sys.modules[__name__]
