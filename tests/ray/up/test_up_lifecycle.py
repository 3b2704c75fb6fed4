"""The diamond from a YAML file and from Python: up, every command from another process, down, and up again."""

from __future__ import annotations

import errno
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servepipe import api

pytestmark = pytest.mark.ray

DIAMOND = Path(__file__).parents[3] / "examples" / "diamond"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project") / "diamond"
    shutil.copytree(DIAMOND, folder, ignore=shutil.ignore_patterns("__pycache__"))
    # Several replicas say nothing new here and take their time to start.
    source = (folder / "diamond.py").read_text(encoding="utf-8")
    source = source.replace("num_replicas=3", "num_replicas=1")
    source = source.replace("app.ingress.set_options(num_replicas=2)", 'app.ensemble.set_options(placement="Inline")')
    (folder / "diamond.py").write_text(source, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def diamond(new_up: Callable[[str], Any], project: Path) -> Iterator[Any]:
    """A run of the diamond from its YAML file."""
    up = new_up("diamond")
    up.run("compile", str(project / "diamond.py"), "-o", str(project / "diamond.yaml"))
    up.start(project / "diamond.yaml")
    up.wait_settled("the diamond to be ready")
    return up


def test_it_answers_over_http(diamond: Any) -> None:
    assert diamond.call([1, 2, 3]) == 8


def test_call(diamond: Any, tmp_path: Path) -> None:
    done = diamond.run("call", "[1, 2, 3]")
    assert json.loads(done.stdout) == 8
    assert "diamond on this machine (http://127.0.0.1:" in done.stderr
    (tmp_path / "body.json").write_text("[2, 2, 2]", encoding="utf-8")
    assert json.loads(diamond.run("call", f"@{tmp_path / 'body.json'}").stdout) == 8
    refused = diamond.run("call", "[1]", code=1)
    assert "HTTP 422" in refused.stderr


def test_status(diamond: Any, tools: Any) -> None:
    text = diamond.run("status").stdout
    assert text.startswith("diamond on this machine (http://127.0.0.1:")
    for word in ("m1", "m2", "ensemble", "inline", "1/1", "Ready=True", "Available=True"):
        assert word in text
    snapshot = json.loads(diamond.run("status", "-o", "json").stdout)
    assert set(tools.revisions(snapshot)) == {"m1", "m2", "ensemble"}


def test_every_dedicated_node_has_a_process_of_its_own(diamond: Any, tools: Any) -> None:
    found = tools.replicas(diamond.snapshot())
    pids = [pid for processes in found.values() for pid in processes.values()]
    assert set(found) == {"m1", "m2", "ingress"}
    assert len(pids) == len(set(pids)) == 3


def test_files_are_private_and_stay_in_the_runs_folder(diamond: Any, project: Path) -> None:
    assert diamond.folder.stat().st_mode & 0o777 == 0o700
    assert (diamond.folder / "run.json").stat().st_mode & 0o777 == 0o600
    for name in ("resource.yaml", "history", "code", "ray"):
        assert (diamond.folder / name).exists()
    assert "listen on every address" in diamond.output(100_000)


def test_nobody_can_call_it_over_grpc_that_was_not_asked_for(diamond: Any) -> None:
    """Serve would offer it on all addresses of the machine, to anybody."""
    ports = json.loads((diamond.folder / "run.json").read_text())["ports"]
    for port in (ports["grpc"], ports["proxy_grpc"]):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_scale_moves_one_node_only(diamond: Any, tools: Any) -> None:
    before = diamond.wait_settled("a settled diamond")
    assert "m2 scaled to 2" in diamond.run("scale", "m2=2").stdout
    after = diamond.wait(
        "two replicas of m2",
        lambda s: tools.conditions_of(s).get("Ready") == "True" and len(tools.replicas(s)["m2"]) == 2,
    )
    assert tools.revisions(after) == tools.revisions(before)
    for node in ("m1", "ingress"):
        assert tools.replicas(after)[node] == tools.replicas(before)[node]
    assert tools.replicas(after)["m2"].keys() > tools.replicas(before)["m2"].keys()
    refused = diamond.run("scale", "m3=1", code=2)
    assert "There is no node 'm3'" in refused.stderr
    assert "The nodes are: ensemble, m1, m2; and ingress" in refused.stderr


def test_logs(diamond: Any) -> None:
    done = diamond.run("logs", "m1")
    assert done.stdout.strip()
    assert "There is no node" in diamond.run("logs", "nobody", code=2).stderr


def test_apply_changes_what_the_file_changes(diamond: Any, tools: Any, project: Path, tmp_path: Path) -> None:
    before = diamond.wait_settled("a settled diamond")
    text = (project / "diamond.yaml").read_text(encoding="utf-8")
    changed = project / "changed.yaml"
    changed.write_text(text.replace("args: [1]", "args: [10]"), encoding="utf-8")
    diamond.run("apply", str(changed))
    diamond.wait("m1 to be replaced", lambda s: tools.revisions(s)["m1"] != tools.revisions(before)["m1"])
    after = diamond.wait_settled("a settled diamond")
    assert diamond.call([1, 2, 3]) == 17
    assert tools.replicas(after)["m2"] == tools.replicas(before)["m2"]  # also still scaled to 2
    assert tools.replicas(after)["ingress"] == tools.replicas(before)["ingress"]
    assert tools.replicas(after)["m1"].keys().isdisjoint(tools.replicas(before)["m1"])


def test_a_missing_gpu_is_named_and_the_old_revision_goes_on(diamond: Any, tools: Any, project: Path) -> None:
    before = diamond.wait_settled("a settled diamond")
    resource = api.load_yaml(project / "changed.yaml")
    resource["spec"]["nodes"]["m1"]["resources"] = {"gpu": "64"}
    (project / "gpu.yaml").write_text(api.write(api.validate(resource)), encoding="utf-8")
    diamond.run("apply", str(project / "gpu.yaml"))
    waiting = diamond.wait(
        "the report that there is no GPU",
        lambda s: s["status"]["nodes"]["m1"].get("candidate", {}).get("reason") == "InsufficientCapacity",
    )
    assert "GPU: 64 needed" in waiting["status"]["nodes"]["m1"]["candidate"]["message"]
    assert tools.conditions_of(waiting)["Available"] == "True"
    assert diamond.call([1, 2, 3]) == 17
    diamond.run("apply", str(project / "changed.yaml"))
    after = diamond.wait_settled("the diamond without the GPU")
    assert tools.replicas(after) == tools.replicas(before)


def test_another_route_is_followed(diamond: Any, tools: Any, project: Path) -> None:
    before = diamond.wait_settled("a settled diamond")
    text = (project / "changed.yaml").read_text(encoding="utf-8")
    moved = project / "moved.yaml"
    moved.write_text(text.replace("spec:\n", "spec:\n  ingress: {route: /api}\n", 1), encoding="utf-8")
    diamond.run("apply", str(moved))
    diamond.wait("the new route", lambda s: s["url"].endswith("/api"))
    after = diamond.wait_settled("a diamond that answers at its new route")
    assert json.loads(diamond.run("call", "[1, 2, 3]").stdout) == 17
    assert "/api)" in diamond.run("status").stdout
    assert tools.revisions(after) == tools.revisions(before)
    diamond.run("apply", str(project / "changed.yaml"))
    diamond.wait("the old route", lambda s: s["url"].endswith("/"))
    diamond.wait_settled("a diamond that answers at its old route")
    assert diamond.call([1, 2, 3]) == 17


def test_what_cannot_be_applied_changes_nothing(diamond: Any, tools: Any, project: Path) -> None:
    before = diamond.wait_settled("a settled diamond")
    text = (project / "diamond.yaml").read_text(encoding="utf-8")
    bad = project / "bad.yaml"
    bad.write_text(text.replace("args: [1]", "argz: [1]"), encoding="utf-8")
    assert "argz" in diamond.run("apply", str(bad), code=2).stderr
    bad.write_text(text.replace("name: diamond", "name: other"), encoding="utf-8")
    assert "what runs here is 'diamond'" in diamond.run("apply", str(bad), code=2).stderr
    models = (project / "models.py").read_text(encoding="utf-8")
    (project / "models.py").write_text(models + "\n# changed\n", encoding="utf-8")
    assert "are not those" in diamond.run("apply", str(project / "diamond.yaml"), code=2).stderr
    (project / "models.py").write_text(models, encoding="utf-8")
    assert tools.revisions(diamond.wait_settled("a settled diamond")) == tools.revisions(before)


def test_a_second_up_of_the_same_pipeline_is_refused(diamond: Any, project: Path) -> None:
    assert "is running already" in diamond.run("up", str(project / "diamond.yaml"), code=2).stderr
    assert diamond.call([1, 2, 3]) == 17


def test_down_ends_everything_and_up_comes_back_with_the_same_revisions(
    diamond: Any, tools: Any, project: Path
) -> None:
    before = diamond.wait_settled("a settled diamond")
    diamond.run_json()
    assert "diamond stopped" in diamond.run("down").stdout
    assert diamond.wait_ended() == 0
    assert diamond.leftovers() == []
    assert "Nothing runs" in diamond.run("status", code=2).stderr

    # The same pipeline from Python: what it compiles to now differs from the last in m1 only.
    source = (project / "diamond.py").read_text(encoding="utf-8")
    (project / "diamond.py").write_text(source.replace("Model.bind(1)", "Model.bind(10)"), encoding="utf-8")
    diamond.start(project / "diamond.py")
    after = diamond.wait_settled("the diamond to be ready again")
    assert tools.revisions(after) == tools.revisions(before)
    assert diamond.call([1, 2, 3]) == 17
