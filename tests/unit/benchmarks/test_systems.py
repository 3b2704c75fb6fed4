"""What systems are given to run, without running them; and the waiting for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from graphbench.cases import CASES, TEXTS, Case, Load
from graphbench.contestants import CONTESTANTS
from graphbench.driving import filled
from graphbench.systems.base import ROOT, Child, SystemFailedError, wait_for
from graphbench.systems.http_services import MODELS, free_ports
from graphbench.systems.ray_serve import FLAGS, applications_for
from graphbench.systems.up import PLACEMENTS, overlay_for, ready, source_of, stalled

from servepipe import api
from servepipe.authoring.loader import forgetting, load_app
from servepipe_operator.adapters.processes import identify

UPS = [
    (case, CONTESTANTS[name].system)
    for case in CASES.values()
    for name in case.contestants
    if name in CONTESTANTS and CONTESTANTS[name].system in PLACEMENTS
]


@pytest.mark.parametrize(("case", "system"), UPS, ids=[f"{case.name}-{system}" for case, system in UPS])
def test_every_overlay_fits_its_pipeline(case: Case, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(source_of(case).parent))
    for module in [path.stem for path in source_of(case).parent.glob("*.py")]:
        monkeypatch.delitem(sys.modules, module, raising=False)
    with forgetting():
        resource = api.validate(load_app(source_of(case), None).to_dict())
    merged = api.merge(resource, overlay_for(case, system)).to_json()
    assert api.problems(api.validate(merged)) == []
    placements = {name: node.get("placement") for name, node in merged["spec"]["nodes"].items()}
    assert tuple(placements) == case.nodes or system == "up-auto"
    if system != "up-auto":
        assert set(placements.values()) == {PLACEMENTS[system]}


@pytest.mark.parametrize("load", CASES["triage"].loads, ids=lambda load: load.name)
def test_documents_are_found(load: Load) -> None:
    assert all(filled(request).body for request in load.requests)


def test_documents_are_what_the_example_expects() -> None:
    answers = json.loads((ROOT / "examples/document_triage/expected.json").read_text())["answers"]
    for name, language, sentiment in TEXTS:
        assert answers[f"{name}.txt"] == {"accepted": True, "language": language, "sentiment": sentiment}


def test_runs_of_one_case_have_names_of_their_own() -> None:
    names = {overlay_for(CASES["diamond"], system)["metadata"]["name"] for system in PLACEMENTS}
    assert len(names) == len(PLACEMENTS)


def snapshot(*conditions: str, generation: int = 2) -> dict[str, object]:
    told = [{"type": one, "status": "True", "reason": "Because", "message": "it rains"} for one in conditions]
    return {"observedGeneration": 2, "generation": generation, "status": {"conditions": told}}


def test_a_run_is_ready_when_what_was_asked_for_last_serves() -> None:
    assert ready(snapshot("Ready"))
    assert not ready(snapshot("Ready", "Reconciling"))
    assert not ready(snapshot("Available"))
    assert not ready(snapshot("Ready", generation=3))


def test_a_run_that_needs_help_is_not_waited_for() -> None:
    assert stalled(snapshot("Stalled", "Reconciling")) == "Because: it rains"
    assert stalled(snapshot("Reconciling")) == ""
    assert stalled({"status": {}}) == ""


def test_each_application_has_a_route_of_its_own() -> None:
    mine = [CONTESTANTS[name] for name in ("serve-tuned", "serve-by-value", "one-deployment", "floor", "noop")]
    applications = applications_for(CASES["values"], mine, access_log=False)
    assert [one["route_prefix"] for one in applications] == [
        "/handles",
        "/by-value-handles",
        "/one-deployment",
        "/floor",
        "/noop",
    ]
    routes = [one["route_prefix"] for one in applications]
    assert not [(a, b) for a in routes for b in routes if a != b and a.startswith(b)]
    assert [one["args"]["graph"] for one in applications] == ["values", "values-by-value", "values", "values", "values"]
    assert all(one["logging_config"] == {"enable_access_log": False} for one in applications)


def test_as_it_comes_serve_is_told_nothing_more() -> None:
    (application,) = applications_for(CASES["diamond"], [CONTESTANTS["serve-default"]], access_log=True)
    assert application.keys() == {"name", "route_prefix", "import_path", "args"}


def test_there_are_http_models_for_every_case_that_has_them() -> None:
    replicas = {"mixture": 2, "batch": 2}
    functions = {"triage": 4}  # of the example, which the gateway calls itself
    for case in CASES.values():
        if "http" in case.contestants:
            expected = len(case.nodes) * replicas.get(case.name, 1) - functions.get(case.name, 0)
            assert len(MODELS[case.name]) == expected


def test_there_are_flags_for_every_serve_by_hand() -> None:
    assert FLAGS.keys() == {one.system for one in CONTESTANTS.values() if one.application}


def test_ports_are_different() -> None:
    assert len(set(free_ports(20))) == 20


async def test_waiting_says_what_for() -> None:
    async def never() -> None:
        return None

    with pytest.raises(SystemFailedError, match=r"in vain for a bus\nit rains"):
        await wait_for("a bus", never, 0.0, lambda: "it rains")


async def test_a_child_that_ends_is_told_with_what_it_printed(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", "print('no'); raise SystemExit(3)"], tmp_path / "log", {}, cwd=tmp_path)
    await child.start()

    async def ended() -> bool | None:
        child.check()
        return None

    with pytest.raises(SystemFailedError, match=r"(?s)ended with 3.*no"):
        await wait_for("the end", ended, 20.0)
    await child.stop(1.0)


async def test_a_child_is_ended_with_its_own_children(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print('up', flush=True); sys.stdin.read()"
    child = Child([sys.executable, "-c", code + "; import time; time.sleep(60)"], tmp_path / "log", {}, cwd=tmp_path)
    await child.start()

    async def two() -> list[int] | None:
        pids = child.pids()
        return pids if len(pids) == 2 else None

    pids = await wait_for("two processes", two, 20.0)
    await child.stop(5.0)
    assert child.pids() == []
    assert [identify(pid) for pid in pids] == [None, None]
