"""What goes on for long holds no more at its end than at its beginning. Not a part of `make test`: `make soak`."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from flatness import Series, growing

pytestmark = pytest.mark.ray

CODE = Path(__file__).parents[1] / "code"
#: How long, in seconds; a shorter one finds less.
LENGTH_S = float(os.environ.get("SERVEPIPE_SOAK_S", "1800"))
CHOICES = ("sum", "wait", "told", "echo", "ends", "fail")
GRAPH = {
    "steps": [
        {"name": "one", "node": "m1", "method": "forward", "args": [{"$input": ["x"]}]},
        {"name": "two", "node": "m2", "method": "forward", "args": [{"$input": ["x"]}]},
        {"name": "sum", "node": "ensemble", "args": [{"$step": "one"}, {"$step": "two"}, 0]},
        *(
            {"name": name, "node": "patient", "method": name, "args": [{"$input": ["x"]}]}
            for name in ("wait", "told", "echo", "fail")
        ),
        {"name": "array", "node": "patient", "method": "array", "args": [{"$input": ["x"]}]},
        {"name": "twice", "node": "m2", "method": "forward", "args": [{"$step": "array"}]},
        {"name": "ends", "node": "patient", "method": "ends", "args": [{"$step": "array"}, {"$step": "twice"}]},
        {
            "name": "choice",
            "switch": {
                "on": {"$input": ["do"]},
                "cases": [{"when": name, "then": {"$step": name}} for name in CHOICES],
            },
        },
    ],
    "output": {"$step": "choice"},
}
#: Those whose processes stay, and are watched.
STEADY = ("ingress", "m1--r1", "ensemble--r1", "patient--r1")
MEGABYTE = 1 << 20


class Pipeline:
    """A diamond, of which one model is replaced and killed, and a node that keeps calls."""

    def __init__(self, serve: Any) -> None:
        self.serve = serve
        self.revision, self.table = 1, 1
        model = "runtime_models:Model"
        applications = [
            serve.node("m1", model, 1, path=CODE),
            self._changing(),
            serve.node("ensemble", "runtime_models:ensemble", path=CODE, max_ongoing_requests=50),
            serve.node("patient", "soak_models:Patient", path=CODE, max_ongoing_requests=200),
            serve.ingress(
                GRAPH, {"m1": "r1", "m2": "r1", "ensemble": "r1", "patient": "r1"}, path=CODE, timeout_s=3600
            ),
        ]
        self.applications = {application["name"]: application for application in applications}
        serve.deploy(*applications)

    def _changing(self) -> Any:
        revision = f"r{self.revision}"
        return self.serve.node("m2", "runtime_models:Model", 2, path=CODE, revision=revision, replicas=2)

    def upgrade(self) -> None:
        """The model in the next revision; the one before it goes."""
        old = f"m2--r{self.revision}"
        self.revision += 1
        self.table += 1
        new = self._changing()
        self.applications[new["name"]] = new
        self.put()
        config = self.applications["ingress"]["deployments"][0]["user_config"]
        config["nodes"] |= self.serve.entries({"m2": f"r{self.revision}"})
        config["table"] = f"t{self.table}"
        self.put()
        del self.applications[old]
        self.put()

    def put(self) -> None:
        self.serve.put(*self.applications.values())
        self.serve.wait_running(*self.applications)

    def kill(self) -> None:
        """One of the model's two replicas, and wait until there are two again."""
        name = f"m2--r{self.revision}"
        before = self.serve.replicas(name)
        os.kill(min(self.pids(name)), signal.SIGKILL)
        self.serve.wait_for(
            "another replica in its place",
            lambda: len(now := self.serve.replicas(name)) == 2 and now != before,
            120,
        )

    def pids(self, application: str) -> list[int]:
        deployments = self.serve.applications()[application]["deployments"].values()
        return [one["pid"] for d in deployments for one in d["replicas"] if one["state"] == "RUNNING"]

    def ask(self, do: str, x: Any = None) -> Any:
        return self.serve.ask({"do": do, "x": x}).json


class Watched:
    """Memory that a process has for itself, in MiB, and how many file descriptors, of the processes that stay."""

    def __init__(self, pipeline: Pipeline, memory_slack: float) -> None:
        self.begun = time.monotonic()
        self._processes = {name: psutil.Process(*pipeline.pids(name)) for name in STEADY}
        self.memory = {name: Series(f"MiB of {name}", memory_slack) for name in STEADY}
        self.files = {name: Series(f"file descriptors of {name}", 3) for name in STEADY}

    def look(self) -> None:
        now = time.monotonic() - self.begun
        for name, process in self._processes.items():
            self.memory[name].add(now, process.memory_full_info().uss / MEGABYTE)
            self.files[name].add(now, process.num_fds())

    @property
    def series(self) -> list[Series]:
        return [*self.memory.values(), *self.files.values()]


class Client(threading.Thread):
    """One connection that is kept alive, and asks for this and that."""

    def __init__(self, port: int, number: int) -> None:
        super().__init__()
        self._port, self._number = port, number
        self.end = threading.Event()
        self.asked: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        large = [self._number, *range(20_000)]  # 110 KB
        for n in itertools.count(self._number * 1000):
            if self.end.is_set():
                break
            do, x, status, answer = "sum", n, 200, 3 * n
            if n % 50 == 7:
                do, x, answer = "echo", large, large
            elif n % 50 == 31:  # arrays of 1 MiB, from node to node
                do, answer = "ends", [[n, n], [2 * n, 2 * n]]
            elif n % 100 == 13:
                do, x, status = "fail", "on purpose", 500
            elif n % 100 == 63:
                self.asked["left"] += 1
                self._leave()
                continue
            self.asked[do] += 1
            try:
                connection.request("POST", "/", json.dumps({"do": do, "x": x}))
                response = connection.getresponse()
                found = json.loads(response.read())
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.wrong.append(f"{do}: {error!r}")
                connection.close()
                continue
            if response.status != status or (status == 200 and found != answer):
                self.wrong.append(f"{do}: {response.status} {str(found)[:300]}")
        connection.close()

    def _leave(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        connection.request("POST", "/", json.dumps({"do": "wait", "x": None}))
        connection.close()


@contextlib.contextmanager
def clients(port: int, count: int) -> Iterator[list[Client]]:
    running = [Client(port, number) for number in range(count)]
    for client in running:
        client.start()
    try:
        yield running
    finally:
        for client in running:
            client.end.set()
        for client in running:
            client.join()


@pytest.fixture(scope="module")
def pipeline(serve_session: Any) -> Pipeline:
    return Pipeline(serve_session)


def test_ten_thousand_callers_that_leave(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Each when its call is in the node; nothing of them is left in the ingress and the node."""
    at_once, rounds = 100, 100
    watched = Watched(pipeline, memory_slack=4)  # half a kilobyte a call would be more

    async def leave() -> None:
        request = json.dumps({"do": "wait", "x": None}).encode()
        head = f"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: {len(request)}\r\n\r\n".encode()
        opened = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", pipeline.serve.port) for _ in range(at_once))
        )
        for _, writer in opened:
            writer.write(head + request)
        await asyncio.to_thread(
            pipeline.serve.wait_for, "all calls to be in the node", lambda: pipeline.ask("told")["inside"] == at_once
        )
        for _, writer in opened:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in opened))
        await asyncio.to_thread(
            pipeline.serve.wait_for, "all calls to be cancelled", lambda: pipeline.ask("told")["inside"] == 0
        )

    begun = pipeline.ask("told")["begun"]
    # As many before: processes grow in their first minute whatever is asked of them, and cycles of those that left stay
    # until there are as many young objects as Python is told to wait for.
    for _ in range(rounds):
        asyncio.run(leave())
    since = time.monotonic() - watched.begun
    for _ in range(rounds):
        asyncio.run(leave())
        watched.look()
    assert pipeline.ask("told")["begun"] == begun + at_once * 2 * rounds
    tell(capsys, [f"{at_once * rounds} callers left", *(one.told(since) for one in watched.series)])
    # Told some time after it is so.
    pipeline.serve.wait_for(
        "Serve to count no call",
        lambda: (
            "patient--r1" in (found := pipeline.serve.metric("serve_replica_processing_queries", by="application"))
            and found["patient--r1"] == 0
        ),
    )
    assert growing(watched.series, since) == []


def test_it_goes_on_for_long(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Under load, with a model that is upgraded or loses a replica twenty times: no request fails, nothing grows."""
    watched = Watched(pipeline, memory_slack=6)
    since, every = LENGTH_S / 4, LENGTH_S / 20
    changes = itertools.cycle((pipeline.upgrade, pipeline.kill))
    done: Counter[str] = Counter()
    with clients(pipeline.serve.port, 6) as running:
        change_at = every / 2
        while (now := time.monotonic() - watched.begun) < LENGTH_S:
            watched.look()
            if now > change_at:
                change_at += every
                change = next(changes)
                change()
                done[change.__name__] += 1
                asked = sum((client.asked for client in running), Counter())
                tell(capsys, [f"after {now:.0f} s: {asked.total()} requests; {dict(done)}"])
            else:
                time.sleep(min(LENGTH_S / 300, 5))
    asked = sum((client.asked for client in running), Counter())
    wrong = [one for client in running for one in client.wrong]
    tell(capsys, [f"asked {dict(asked)}, wrong {len(wrong)}", *(one.told(since) for one in watched.series)])
    assert wrong == []
    assert pipeline.serve.wait_for("no call to be left", lambda: pipeline.ask("told")["inside"] == 0)
    assert growing(watched.series, since) == []


def tell(capsys: pytest.CaptureFixture[str], lines: list[str]) -> None:
    """At once: it takes long."""
    with capsys.disabled():
        print("", *lines, sep="\nsoak: ", flush=True)
