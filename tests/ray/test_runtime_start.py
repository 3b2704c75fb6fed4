"""Replicas that cannot start or do not stay well, beside others that serve."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

import servepipe

pytestmark = pytest.mark.ray

CODE = Path(__file__).parent / "code"
GRAPH = {"steps": [{"name": "echo", "node": "frail", "args": [{"$input": []}]}], "output": {"$step": "echo"}}


@pytest.fixture(scope="module")
def flag(tmp_path_factory):
    return tmp_path_factory.mktemp("flag") / "unwell"


@pytest.fixture(scope="module")
def applications(serve_session, flag):
    s = serve_session
    return [
        s.node("frail", "runtime_models:Frail", str(flag), path=CODE),
        s.ingress(GRAPH, {"frail": "r1"}, path=CODE, timeout_s=30),
    ]


def test_a_replica_that_cannot_start_says_why_and_hurts_no_other(serve_session, applications):
    s = serve_session
    s.deploy(*applications)
    broken = {
        "mismatch": (
            s.node("mismatch", "runtime_models:ensemble", path=CODE, code="sha256:" + "0" * 64),
            ["CodeMismatchError", "sha256:" + "0" * 64],
        ),
        "missing": (s.node("missing", "no_such_module:f", path=CODE), ["ImportPathError", "no_such_module"]),
        "raising": (s.node("raising", "runtime_models:Broken", path=CODE), ["RuntimeError: no weights"]),
        "refusing": (
            s.node("refusing", "runtime_models:Node", path=CODE, user_config={"broken": True}),
            ["ValueError: cannot take this"],
        ),
    }
    mixed = s.node("mixed", "runtime_models:ensemble", path=CODE)
    mixed |= {"import_path": "older_servepipe:node", "runtime_env": {"env_vars": {"PYTHONPATH": str(CODE)}}}
    words = [f"RuntimeMismatchError: this replica has servepipe {servepipe.__version__}", "has servepipe 0.0.1"]
    broken["mixed"] = (mixed, words)
    s.put(*applications, *(application for application, _ in broken.values()))

    def all_failed():
        found = s.applications()
        return all(found[f"{name}--r1"]["status"] == "DEPLOY_FAILED" for name in broken)

    s.wait_for("the broken ones to be DEPLOY_FAILED", all_failed, 120)
    for name, (_, words) in broken.items():
        told = s.why(s.applications()[f"{name}--r1"])
        assert [word for word in words if word not in told] == [], told
    assert s.ask(1).json == 1
    s.deploy(*applications)


def test_applications_are_built_in_one_process(serve_session, applications):
    """Which ends when nothing more is to be built."""
    from servepipe.runtime.serve_internals import session_folder

    s = serve_session
    names = [f"built{n}" for n in range(6)]
    s.deploy(*applications, *(s.node(name, "runtime_models:ensemble", path=CODE) for name in names))
    logs = session_folder() / "logs" / "serve"
    found = [log.stem for log in logs.glob("controller_build_built*.log")]
    assert sorted(name.rpartition("_")[0] for name in found) == [f"controller_build_{name}--r1" for name in names]
    pids = {int(name.rpartition("_")[2]) for name in found}
    # Two: a PUT that comes when the builder of the one before is about to end may meet the next one.
    assert len(pids) <= 2
    s.wait_for("the builders to end", lambda: not any(map(psutil.pid_exists, pids)))
    s.deploy(*applications)


def test_an_unwell_replica_is_replaced(serve_session, applications, flag):
    s = serve_session
    before = s.replicas("frail--r1")
    flag.touch()
    s.wait_for("the replica to be dropped", lambda: s.replicas("frail--r1") != before)
    s.wait_for(
        "the pipeline to be not ready", lambda: s.get("/-/ready").json == {"ready": False, "notReady": ["frail"]}
    )
    flag.unlink()
    s.wait_running("frail--r1", "ingress")
    s.wait_for("the pipeline to be ready", lambda: s.get("/-/ready").status == 200)
    assert s.ask(1).json == 1


def test_a_killed_replica_is_replaced_and_its_callers_wait_for_that(serve_session, applications):
    s = serve_session
    (killed,) = s.replicas("frail--r1", "pid")
    os.kill(killed, signal.SIGKILL)
    answer = s.ask(1)
    assert (answer.status, answer.json) == (200, 1)
    (another,) = s.wait_for("a new replica", lambda: s.replicas("frail--r1", "pid"))
    assert another != killed
