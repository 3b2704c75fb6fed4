"""`servepipe apply` and `diff` against a real API server, where the test plays ops and the operator."""

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bed.client import Object
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from cluster_cli import Cli, Ran, pipeline, ready

from servepipe_operator.cluster import apply as apply_module


@pytest.fixture
def cli(control_plane: ControlPlane, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(control_plane, namespace, tmp_path, capsys)


def nodes(cli: Cli) -> Object:
    found: Object = cli.live()["spec"]["nodes"]
    return found


# --- What is shown and done -------------------------------------------------------------------------------------------


def test_a_new_pipeline(cli: Cli) -> None:
    ran = cli.apply(pipeline(), "--no-wait")
    assert ran.status == 0, ran.err
    assert ran.out.splitlines() == [
        f"shop in namespace {cli.namespace}, context tests",
        "new, with 2 nodes: m1, m2",
        "shop created",
    ]
    again = cli.apply(pipeline(), "--no-wait")
    assert again.out.splitlines()[1:] == ["shop unchanged"]


def test_the_difference_comes_before_the_change(cli: Cli) -> None:
    cli.apply(pipeline(), "--no-wait")
    file = pipeline("shop:2", args=[1])
    version = cli.live()["metadata"]["resourceVersion"]
    dry = cli.apply(file, "--dry-run")
    assert (dry.status, cli.live()["metadata"]["resourceVersion"]) == (0, version)
    assert dry.out.splitlines()[-1] == "Nothing was changed: --dry-run"
    compared = cli.diff(file)
    assert compared.status == 1
    ran = cli.apply(file, "--no-wait")
    lines = ["-  image: shop:1", "+  image: shop:2", "+      args: [1]"]
    for out in (dry.out, compared.out, ran.out):
        assert [line for line in out.splitlines() if line[0] in "+-" and line[:3] not in ("+++", "---")] == lines
        assert "\033" not in out
    assert cli.diff(file) == Ran(0, "", "")


def test_a_diff_with_nothing_there_is_the_whole_file(cli: Cli) -> None:
    ran = cli.diff(pipeline())
    assert ran.status == 1
    assert "+    m1:\n+      import: shop:M1\n" in ran.out
    assert cli.find() is None


def test_what_is_wrong_with_the_file_is_said_before_the_cluster_is_asked(cli: Cli) -> None:
    file = pipeline()
    file["spec"]["graph"]["steps"][0]["node"] = "m9"
    ran = cli.apply(file)
    assert ran.status == 2
    assert "m9" in ran.err
    assert cli.find() is None


def test_namespaces(cli: Cli, control_plane: ControlPlane) -> None:
    file = pipeline()
    file["metadata"]["namespace"] = cli.namespace
    path = cli.write(file)
    kubeconfig = ("--kubeconfig", str(control_plane.kubeconfig))
    assert cli.run("apply", "-f", path, "--no-wait", *kubeconfig).status == 0, "the file's own"
    other = cli.run("apply", "-f", path, "--no-wait", "-n", "other", *kubeconfig)
    assert other.status == 2
    assert f"The file is for namespace '{cli.namespace}', the command line for 'other'" in other.err
    assert cli.run("status", "--context", "nowhere", *kubeconfig).err.startswith(
        "error: No way to a cluster: there is no context 'nowhere'"
    )


# --- Other people's fields --------------------------------------------------------------------------------------------


def test_what_ops_own_by_its_nature_stays_and_is_named(cli: Cli) -> None:
    file = pipeline(replicas=3, upgrade={"strategy": "BlueGreen", "retryToken": "a"})
    file["spec"]["suspend"] = False
    assert cli.apply(file, "--no-wait").status == 0
    cli.kubectl_patch(
        {"suspend": True, "paused": True, "nodes": {"m1": {"replicas": 7, "upgrade": {"retryToken": "b"}}}}
    )
    file["spec"]["image"] = "shop:2"
    file["spec"]["nodes"]["m1"]["upgrade"] = {"strategy": "BlueGreen", "retryToken": "c"}
    ran = cli.apply(file, "--no-wait")
    assert ran.status == 0, ran.err
    assert "spec.nodes.m1.replicas stays 7, set by kubectl-patch; the file says 3" in ran.out
    assert "spec.suspend stays true, set by kubectl-patch; the file says false" in ran.out
    spec = cli.live()["spec"]
    assert (spec["image"], spec["suspend"], spec["paused"]) == ("shop:2", True, True)
    assert spec["nodes"]["m1"]["replicas"] == 7
    assert spec["nodes"]["m1"]["upgrade"] == {"strategy": "BlueGreen", "retryToken": "b"}
    taken = cli.apply(file, "--no-wait", "--take-ownership")
    assert taken.status == 0, taken.err
    spec = cli.live()["spec"]
    assert (spec["suspend"], spec["paused"], spec["nodes"]["m1"]["replicas"]) == (False, True, 3)
    assert spec["nodes"]["m1"]["upgrade"]["retryToken"] == "c"
    file["spec"]["nodes"]["m1"]["replicas"] = 4
    assert cli.apply(file, "--no-wait").status == 0
    assert cli.live()["spec"]["nodes"]["m1"]["replicas"] == 4, "what is ours again follows the file"


def test_replicas_and_autoscaling_are_decided_together(cli: Cli) -> None:
    file = pipeline(replicas=3)
    assert cli.apply(file, "--no-wait").status == 0
    scaled = {"minReplicas": 1, "maxReplicas": 4}
    cli.kubectl_patch({"nodes": {"m1": {"replicas": None, "autoscaling": scaled}}})
    assert cli.apply(file, "--no-wait").status == 0
    assert nodes(cli)["m1"] == {"import": "shop:M1", "autoscaling": scaled}
    dry = cli.apply(file, "--dry-run", "--take-ownership")
    assert "+      replicas: 3" in dry.out, dry.out + dry.err
    assert cli.apply(file, "--no-wait", "--take-ownership").status == 0
    assert nodes(cli)["m1"] == {"import": "shop:M1", "replicas": 3}


def test_any_other_field_of_somebody_else_is_refused_and_named(cli: Cli) -> None:
    assert cli.apply(pipeline(), "--no-wait").status == 0
    cli.kubectl_patch({"image": "hotfix:1", "nodes": {"m1": {"maxOngoingRequests": 9}}})
    file = pipeline("shop:2", maxOngoingRequests=7)
    before = cli.live()
    for ran in (cli.apply(file, "--no-wait"), cli.diff(file)):
        assert ran.status == 2
        assert "error: 2 fields are in other hands; nothing was changed" in ran.err
        assert 'spec.image is held by kubectl-patch: there "hotfix:1", in the file "shop:2"' in ran.err
        assert "spec.nodes.m1.maxOngoingRequests is held by kubectl-patch: there 9, in the file 7" in ran.err
        assert "--take-ownership" in ran.err
    assert cli.live() == before
    assert cli.apply(file, "--no-wait", "--take-ownership").status == 0
    assert cli.live()["spec"] == file["spec"]


def test_a_pipeline_that_kubectl_made_is_taken_over_on_request(cli: Cli) -> None:
    cli.plane.kubectl("-n", cli.namespace, "create", "-f", cli.write(pipeline(replicas=2)))
    assert cli.apply(pipeline(replicas=2), "--no-wait").status == 0, "what is equal is no conflict"
    file = pipeline("shop:2", replicas=3)
    assert "spec.image is held by kubectl-create" in cli.apply(file, "--no-wait").err
    assert cli.apply(file, "--no-wait", "--take-ownership").status == 0
    assert cli.live()["spec"] == file["spec"]


def test_what_only_apply_set_follows_the_file(cli: Cli) -> None:
    assert cli.apply(pipeline(replicas=3, maxOngoingRequests=2), "--no-wait").status == 0
    assert cli.apply(pipeline(replicas=5), "--no-wait").status == 0
    assert nodes(cli)["m1"] == {"import": "shop:M1", "replicas": 5}
    assert cli.apply(pipeline(), "--no-wait").status == 0
    assert nodes(cli)["m1"] == {"import": "shop:M1"}


def without_m2() -> Object:
    file = pipeline("shop:2")
    del file["spec"]["nodes"]["m2"]
    file["spec"]["graph"] = {"steps": [{"name": "first", "node": "m1"}], "output": {"$step": "first"}}
    return file


def patches(cli: Cli) -> None:
    cli.kubectl_patch({"nodes": {"m2": {"replicas": 4}}})


def applies(cli: Cli) -> None:
    cli.server_side({"nodes": {"m2": {"import": "shop:M2", "replicas": 4, "env": [{"name": "A", "value": "1"}]}}})


def scales(cli: Cli) -> None:
    assert cli.run("scale", "m2=4", *cli.place).status == 0


@pytest.mark.parametrize("ops", [patches, applies, scales])
def test_a_node_that_leaves_the_file_goes_although_others_hold_a_part_of_it(
    cli: Cli, ops: Callable[[Cli], None]
) -> None:
    assert cli.apply(pipeline(), "--no-wait").status == 0
    ops(cli)
    assert nodes(cli)["m2"]["replicas"] == 4
    dry = cli.apply(without_m2(), "--dry-run")
    assert dry.status == 0, dry.err
    assert any(line.startswith("-    m2:") for line in dry.out.splitlines()), dry.out
    assert "m2" in nodes(cli)
    ran = cli.apply(without_m2(), "--no-wait")
    assert ran.status == 0, ran.err
    assert cli.live()["spec"] == without_m2()["spec"]
    assert cli.apply(without_m2(), "--no-wait").out.endswith("shop unchanged\n")


def test_an_apply_that_dies_between_its_two_writes_is_finished_by_the_next(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.apply(pipeline(), "--no-wait").status == 0
    patches(cli)
    before = cli.live()["spec"]

    async def dies(*arguments: Any) -> None:
        await hand_over(*arguments)
        raise KeyboardInterrupt

    hand_over = apply_module._hand_over
    with monkeypatch.context() as patch:
        patch.setattr(apply_module, "_hand_over", dies)
        assert cli.apply(without_m2(), "--no-wait").status == 130
    assert cli.live()["spec"] == before, "no value changes before the apply"
    assert cli.apply(without_m2(), "--no-wait").status == 0
    assert cli.live()["spec"] == without_m2()["spec"]


def test_a_namespace_that_is_not_there(cli: Cli) -> None:
    ran = cli.run("apply", "-f", cli.write(pipeline()), "-n", "nowhere", "--kubeconfig", cli.place[-1])
    assert ran.status == 2
    assert ran.err.startswith('error: namespaces "nowhere" not found\n'), ran.err


def test_a_node_of_others_stays_and_is_named(cli: Cli) -> None:
    assert cli.apply(pipeline(), "--no-wait").status == 0
    cli.kubectl_patch({"nodes": {"m3": {"import": "theirs:M3"}}})
    ran = cli.apply(pipeline("shop:2"), "--no-wait")
    assert "spec.nodes.m3 stays, added by kubectl-patch; the file does not have it" in ran.out
    assert set(nodes(cli)) == {"m1", "m2", "m3"}


def test_somebody_who_is_faster_is_seen(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the rehearsal and the apply ops scale: the apply is decided about again."""
    assert cli.apply(pipeline(replicas=3), "--no-wait").status == 0
    compare, raced = apply_module.compare, []

    async def racing(*arguments: Any, **options: Any) -> Any:
        compared = await compare(*arguments, **options)
        if not raced:
            raced.append(True)
            cli.kubectl_patch({"nodes": {"m1": {"replicas": 7}}})
        return compared

    monkeypatch.setattr(apply_module, "compare", racing)
    ran = cli.apply(pipeline(replicas=5), "--no-wait")
    assert ran.status == 0, ran.err
    assert "stays 7" in ran.out
    assert nodes(cli)["m1"]["replicas"] == 7


# --- Waiting ----------------------------------------------------------------------------------------------------------


def test_it_waits_until_the_operator_says_that_it_is_ready(cli: Cli) -> None:
    operator = threading.Thread(target=lambda: play(cli, ready("True")))
    operator.start()
    ran = cli.apply(pipeline(), "--timeout", "60s")
    operator.join()
    assert ran.status == 0, ran.err
    assert ran.out.splitlines()[-1] == "Ready"
    assert any("Ready=True" in line for line in ran.out.splitlines())


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (ready("False") | {"stalled": "m1: ImportError: no module"}, 1, "Stalled=True"),
        (ready("False") | {"refused": "m1 calls itself"}, 1, "Accepted=False"),
        (ready("False"), 3, "Not ready after 3 s, and still going on"),
    ],
)
def test_it_says_when_it_cannot_get_there(cli: Cli, status: Object, code: int, says: str) -> None:
    operator = threading.Thread(target=lambda: play(cli, status))
    operator.start()
    ran = cli.apply(pipeline(), "--timeout", "3" if code == 3 else "60")
    operator.join()
    assert ran.status == code
    assert says in ran.err


def test_a_cluster_without_an_operator(cli: Cli) -> None:
    ran = cli.apply(pipeline(), "--timeout", "1")
    assert ran.status == 3
    assert "no operator has looked at it yet" in ran.err


def test_a_paused_pipeline_is_not_waited_for(cli: Cli) -> None:
    file = pipeline()
    file["spec"]["paused"] = True
    operator = threading.Thread(target=lambda: play(cli, ready("False")))
    operator.start()
    ran = cli.apply(file, "--timeout", "60")
    operator.join()
    assert ran.status == 0
    assert "it is paused" in ran.out


def play(cli: Cli, status: Object) -> None:
    """The operator: it sees the pipeline and reports."""
    wait_for("the pipeline to be created", lambda: cli.find() is not None, 60, lambda: "")
    cli.report(status)


# --- As a plug-in of kubectl ------------------------------------------------------------------------------------------


def test_kubectl_servepipe(cli: Cli, control_plane: ControlPlane) -> None:
    path = cli.write(pipeline())
    plugin = control_plane.kubectl_plugin
    applied = plugin("servepipe", "apply", "-f", path, "--no-wait", "-n", cli.namespace)
    assert applied.returncode == 0, applied.stderr
    assert applied.stdout.splitlines()[-1] == "shop created"
    cli.report(ready("True"))
    status = plugin("servepipe", "status", "-n", cli.namespace, "-o", "json")
    assert json.loads(status.stdout)["pipeline"] == "shop"
    changed = copy.deepcopy(pipeline("shop:2"))
    assert plugin("servepipe", "diff", cli.write(changed), "-n", cli.namespace).returncode == 1
    wrong = plugin("servepipe", "down")
    assert wrong.returncode == 2
    assert "kubectl servepipe delete" in wrong.stderr
