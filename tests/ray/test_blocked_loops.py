"""Async user code that blocks: what goes on meanwhile, and what is said of it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from servepipe.runtime.serve_internals import session_folder

pytestmark = pytest.mark.ray

CODE = Path(__file__).parent / "code"
BLOCKS = "blocking_models:Blocks"
PLACES = ["careful", "careless", "inline"]
STEPS = {f"{node}-{method}": (node, method) for node in PLACES for method in ("block", "pid", "way")}
HURRIED = {f"{node}-hurried": node for node in ("careful", "careless")}
GRAPH = {
    "steps": [
        *(
            {"name": name, "node": node, "method": method, "args": [{"$input": ["x"]}]}
            for name, (node, method) in STEPS.items()
        ),
        *(
            {
                "name": f"{node}-hurried",
                "node": node,
                "method": "block",
                "args": [{"$input": ["x"]}],
                "timeout": "500ms",
            }
            for node in ("careful", "careless")
        ),
        {
            "name": "choice",
            "switch": {
                "on": {"$input": ["do"]},
                "cases": [
                    {"when": name, "then": {"$step": name}} for name in [*STEPS, "careful-hurried", "careless-hurried"]
                ],
            },
        },
    ],
    "output": {"$step": "choice"},
}
INLINE = {"import": BLOCKS, "args": [], "kwargs": {}}
HURRY_S = 20
"""More than two steps of half a second take on a busy machine, and much less than the request may take."""
NODES = {
    "careful": "r1",
    "careless": "r1",
    "inline": [{"revision": "i1", "weight": 100, "inline": INLINE}],
}


class Blocked:
    """The pipeline, and calls that stay until they are let go."""

    def __init__(self, serve, folder):
        self.serve = serve
        self.health = folder / "health"
        serve.deploy(
            serve.node("careful", BLOCKS, str(self.health), path=CODE, blocking=True, max_ongoing_requests=4),
            serve.node("careless", BLOCKS, path=CODE, max_ongoing_requests=4, replicas=2),
            serve.ingress(GRAPH, NODES, path=CODE, timeout_s=60),
        )

    def ask(self, do, x=None):
        return self.serve.ask({"do": do, "x": x}, timeout=60)

    def checks(self):
        """How often Serve asked the careful one how it is."""
        return self.health.stat().st_size if self.health.exists() else 0

    def ongoing(self, application):
        return self.serve.metric("serve_replica_processing_queries", by="application")[application]

    def warnings(self, application):
        """What a replica, or the ingress, said of its event loop."""
        lines = [
            line
            for log in (session_folder() / "logs").rglob("*")
            if log.is_file() and log.suffix in (".log", ".err", ".out")
            for line in log.read_text(errors="replace").splitlines()
            if "keeps the event loop" in line and BLOCKS.partition(":")[0] in line
        ]
        what = "the ingress" if application == "ingress" else f"node {application.partition('--')[0]}"
        return sorted({line[line.index(what) :] for line in lines if f"{what} has stood still" in line})


@pytest.fixture(scope="module")
def blocked(serve_session, tmp_path_factory):
    return Blocked(serve_session, tmp_path_factory.mktemp("blocked"))


def test_a_node_that_says_that_it_blocks_blocks_nothing_else(blocked, tmp_path):
    """Serve counts its calls and asks for its health, and callers whose time is up are told so."""
    before = blocked.serve.replicas("careful--r1")
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(blocked.ask, "careful-block", {"folder": str(tmp_path), "key": n}) for n in range(3)]
        try:
            blocked.serve.wait_for("the first to begin", lambda: [*tmp_path.glob("begun-*")])
            blocked.serve.wait_for("Serve to count all three", lambda: blocked.ongoing("careful--r1") == 3)
            late = blocked.ask("careful-hurried", {"folder": str(tmp_path), "key": "late"})
            assert (late.status, late.json["error"]["code"], late.json["error"]["node"]) == (504, "Timeout", "careful")
            checks = blocked.checks()
            blocked.serve.wait_for("Serve to ask for its health", lambda: blocked.checks() >= checks + 3)
            assert len([*tmp_path.glob("begun-*")]) == 1
        finally:
            (tmp_path / "go").touch()
        assert [call.result().status for call in calls] == [200] * 3
    assert blocked.serve.replicas("careful--r1") == before
    assert blocked.ask("careful-pid").status == 200
    assert blocked.warnings("careful--r1") == []


@pytest.mark.parametrize(
    ("node", "application", "seconds"), [("careless", "careless--r1", "1"), ("inline", "ingress", "0.2")]
)
def test_code_that_blocks_the_loop_of_its_replica_is_named(blocked, node, application, seconds, tmp_path):
    before = blocked.serve.replicas(application)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(blocked.ask, f"{node}-block", {"folder": str(tmp_path), "key": 0})
        try:
            (line,) = blocked.serve.wait_for("a warning", lambda: blocked.warnings(application))
        finally:
            (tmp_path / "go").touch()
        assert call.result().status == 200
    assert f"for more than {seconds} s, as this keeps the event loop: Blocks.block (" in line
    assert "blocking_models.py:" in line
    assert blocked.serve.replicas(application) == before
    assert blocked.ask(f"{node}-pid").status == 200


def test_a_loop_that_stands_still_delays_neither_its_callers_nor_the_other_replica(blocked, tmp_path):
    """Who does not want to wait longer is told so, and goes to the replica that answers."""
    pids = blocked.serve.replicas("careless--r1", "pid")
    blocked.serve.wait_for("the channels to be open", lambda: blocked.ask("careless-way").json == "channel")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(blocked.ask, "careless-block", {"folder": str(tmp_path), "key": 0})
        try:
            blocked.serve.wait_for("it to begin", lambda: [*tmp_path.glob("begun-*")])
            answers = [blocked.ask("careless-pid") for _ in range(10)]
            assert {answer.status for answer in answers} == {200}
            (free,) = {answer.json for answer in answers}
            began = time.monotonic()
            for key in (1, 2):  # from the first on the other one's loop stands still as well
                late = blocked.ask("careless-hurried", {"folder": str(tmp_path), "key": key})
                error = late.json["error"]
                assert (late.status, error["code"], error["step"]) == (504, "Timeout", "careless-hurried")
            assert time.monotonic() - began < HURRY_S
            assert not call.done()
        finally:
            (tmp_path / "go").touch()
        assert sorted([free, call.result().json]) == pids
    assert {blocked.ask("careless-pid").status for _ in range(4)} == {200}
