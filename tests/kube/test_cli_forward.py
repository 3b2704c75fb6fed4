"""`servepipe logs`: by port-forward, through API server and kubelet, to a pipeline's Ray; and where that is refused."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed.client import Object
from bed.control_plane import ControlPlane
from bed.processes import free_ports
from cluster_cli import NAME, Cli, Ran, pipeline, ready
from fake_head import Head, fake_head, own_address, put_behind
from fake_kubelet import PROTOCOL, Kubelet, fake_kubelet
from headed import (
    CLUSTER,
    DASHBOARD,
    RAY,
    STAND_IN_OFF,
    application,
    deployed,
    following,
    head_pod,
    replica,
    with_replicas,
)

READS: list[Object] = [
    {"apiGroups": ["servepipe.dev"], "resources": ["servepipelines"], "verbs": ["get", "list"]},
    {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]},
]
LISTS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
FORWARDS = {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]}
PROXIES = {"apiGroups": [""], "resources": ["services/proxy"], "verbs": ["get"]}
ONE = "aaaa1111/one | one logs"


@pytest.fixture(scope="module")
def node(control_plane: ControlPlane) -> Iterator[Kubelet]:
    with fake_kubelet(control_plane, "forwarding") as kubelet:
        yield kubelet


@pytest.fixture
def kubelet(node: Kubelet) -> Iterator[Kubelet]:
    """The node as it is at first."""
    node.seen.clear()
    yield node
    node.wire.mend()
    node.thaw()
    node.speaks = (PROTOCOL,)


@pytest.fixture
def cli(control_plane: ControlPlane, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    control_plane.api.merge(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": STAND_IN_OFF}})
    return Cli(control_plane, namespace, tmp_path, capsys)


@pytest.fixture
def head(cli: Cli, kubelet: Kubelet) -> Iterator[Head]:
    """That of a pipeline, on a pod that is ready; no Service leads to it."""
    with fake_head() as head:
        deployed(cli)
        head_pod(cli, kubelet, with_replicas(head))
        yield head


@pytest.fixture
def served(cli: Cli, kubelet: Kubelet) -> Iterator[Head]:
    """As `head`, and its Service leads to it too."""
    with fake_head(own_address()) as head:
        deployed(cli)
        head_pod(cli, kubelet, with_replicas(head))
        put_behind(cli.plane, cli.namespace, f"{CLUSTER}-head-svc", DASHBOARD, head)
        yield head


def person(cli: Cli, *more: Object) -> Cli:
    """Commands of somebody who may read a pipeline, and ``more``."""
    kubeconfig = cli.plane.service_account(cli.namespace, "person", [*READS, *more])
    person = Cli(cli.plane, cli.namespace, cli.folder, cli.capsys)
    person.place = ("-n", cli.namespace, "--kubeconfig", str(kubeconfig))
    return person


# --- What it shows ----------------------------------------------------------------------------------------------------


def test_logs_of_all_replicas_with_their_revision(cli: Cli, head: Head, kubelet: Kubelet) -> None:
    somebody = person(cli, LISTS, FORWARDS)
    ran = somebody.run("logs", "m1", *somebody.place)
    assert ran.status == 0, ran.err
    assert ran.out.splitlines() == [
        ONE,
        "aaaa1111/one | one prints",
        "aaaa1111/two | two logs",
        "aaaa1111/two | two logs again",
        "bbbb2222/new | new logs",
    ]
    assert ran.err.splitlines() == [f"shop in namespace {cli.namespace}, context tests"]
    assert {headers["x-ray-authorization"] for _, _, headers in head.seen} == {"Bearer ray"}
    assert all("authorization" not in headers for _, _, headers in head.seen)
    assert {*kubelet.seen} == {(f"{CLUSTER}-head-abcde", DASHBOARD)}
    assert len(kubelet.seen) < len(head.seen), "a connection serves several requests"


def test_logs_of_replicas_that_ended_and_only_the_last_lines(cli: Cli, head: Head) -> None:
    assert cli.run("logs", "m1", "--previous", *cli.place).out == "aaaa1111/dead | dead logged\n"
    tail = cli.run("logs", "m1", "--tail", "1", *cli.place).out.splitlines()
    assert [line for line in tail if "two" in line] == ["aaaa1111/two | two logs again"]
    assert "m2 has no replica that ended lately" in cli.run("logs", "m2", "--previous", *cli.place).err


def test_a_long_log_comes_whole(cli: Cli, head: Head) -> None:
    lines = [f"{number:07} {'x' * 100}" for number in range(40_000)]
    head.files = {"serve/other.log": "\n".join(lines) + "\n"}
    ran = cli.run("logs", "m2", "--tail", "100000", *cli.place)
    assert ran.out.splitlines() == [f"cccc3333/other | {line}" for line in lines]


@pytest.mark.parametrize(
    ("asked", "says"),
    [("m9", "There is no node 'm9'"), ("glue", "'glue' runs in the ingress process")],
)
def test_logs_of_what_has_none(cli: Cli, head: Head, asked: str, says: str) -> None:
    cli.kubectl_patch({"nodes": {"glue": {"import": "shop:glue", "placement": "Inline"}}})
    ran = cli.run("logs", asked, *cli.place)
    assert ran.status == 2
    assert says in ran.err


# --- Following --------------------------------------------------------------------------------------------------------


def test_replicas_that_come_later_are_followed_until_it_is_interrupted(cli: Cli, head: Head) -> None:
    with following(cli.place, "m1") as follow:
        follow.says("bbbb2222/new | new logs")
        head.files["serve/late.log"] = "late logs\n"
        head.applications["m1--bbbb2222"] = application([replica("late", 16)], [])
        follow.says("bbbb2222/late | late logs")
        assert follow.lines.count(ONE) == 1
        assert follow.interrupt() == 130
    assert len(follow.asides) == 1, "nothing but where it looks, and no traceback"


def test_a_kubelet_that_goes_and_a_head_that_is_replaced_are_said_and_waited_for(
    cli: Cli, head: Head, kubelet: Kubelet
) -> None:
    with following(cli.place, "m1") as follow:
        follow.says(ONE)
        kubelet.wire.cut()
        follow.remarks("no port-forward, so through the API server's Service proxy")
        follow.remarks("Ray's dashboard cannot be read")
        kubelet.wire.mend()
        follow.says(ONE, times=2)
        pods = f"/api/v1/namespaces/{cli.namespace}/pods"
        cli.plane.api.delete(f"{pods}/{CLUSTER}-head-abcde")
        kubelet.wire.cut()  # the connections of the head end with it
        follow.remarks("has no head that is ready")
        kubelet.wire.mend()
        with fake_head() as successor:
            successor.applications = {"m1--bbbb2222": application([replica("later", 21)], [])}
            successor.files = {"serve/later.log": "later logs\n"}
            head_pod(cli, kubelet, successor, f"{CLUSTER}-head-fghij")
            follow.says("bbbb2222/later | later logs")
            assert follow.interrupt() == 130


def test_a_node_that_hangs_is_said_and_waited_for(cli: Cli, head: Head, kubelet: Kubelet) -> None:
    with following(cli.place, "m1") as follow:
        follow.says(ONE)
        kubelet.freeze()
        follow.remarks("Ray's dashboard cannot be read: no answer in time")
        follow.remarks("through the API server's Service proxy: no answer within 2 s")
        kubelet.thaw()
        follow.says(ONE, times=2)
        assert follow.interrupt() == 130


def test_what_cannot_be_waited_for_ends_it(cli: Cli, head: Head, kubelet: Kubelet) -> None:
    with following(cli.place, "m1") as follow:
        follow.says(ONE)
        cli.run("delete", NAME, *cli.place)
        kubelet.wire.cut()
        follow.remarks("There is no pipeline 'shop'")
        assert follow.wait() == 2


# --- Where there is no port-forward -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rights", "says"),
    [
        ([LISTS], 'cannot get resource "pods/portforward"'),
        ([LISTS, FORWARDS | {"verbs": ["get"]}], "to get and create pods/portforward"),
        ([FORWARDS], 'cannot list resource "pods"'),
    ],
    ids=["none", "only-get", "no-list"],
)
def test_somebody_who_may_not_forward_goes_through_the_service_proxy(
    cli: Cli, served: Head, kubelet: Kubelet, rights: list[Object], says: str
) -> None:
    somebody = person(cli, PROXIES, *rights)
    ran = somebody.run("logs", "m1", *somebody.place)
    assert ran.status == 0, ran.err
    assert ran.out.splitlines()[0] == ONE
    assert kubelet.seen == []
    _, told = ran.err.splitlines()
    assert told.startswith("(no port-forward, so through the API server's Service proxy: ")
    assert says in told
    assert all("authorization" not in headers for _, _, headers in served.seen)


def test_a_kubelet_that_cannot_be_reached(cli: Cli, served: Head, kubelet: Kubelet) -> None:
    kubelet.wire.cut()
    ran = cli.run("logs", "m1", *cli.place)
    assert (ran.status, ran.out.splitlines()[0]) == (0, ONE), ran.err
    assert "error dialing backend" in ran.err
    assert len(ran.err.splitlines()) == 2


def test_a_kubelet_that_does_not_speak_the_protocol(cli: Cli, served: Head, kubelet: Kubelet) -> None:
    kubelet.speaks = ()
    ran = cli.run("logs", "m1", *cli.place)
    assert (ran.status, ran.out.splitlines()[0]) == (0, ONE), ran.err
    assert "does not speak v4.channel.k8s.io" in ran.err


def test_a_folder_for_temporary_files_whose_name_is_too_long_for_sockets(
    cli: Cli, served: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    ran = cli.run("logs", "m1", *cli.place)
    assert (ran.status, ran.out.splitlines()[0]) == (0, ONE), ran.err
    assert "path too long" in ran.err
    assert list(folder.iterdir()) == []


def test_somebody_who_may_neither(cli: Cli, head: Head) -> None:
    somebody = person(cli, LISTS)
    ran = somebody.run("logs", "m1", *somebody.place)
    assert ran.status == 2
    assert "Ray's dashboard cannot be read" in ran.err
    assert 'cannot get resource "services/proxy"' in ran.err
    assert 'cannot get resource "pods/portforward"' in ran.err
    assert f"Service {CLUSTER}-head-svc in namespace {cli.namespace}" in ran.err


def test_a_head_whose_dashboard_does_not_listen(cli: Cli, head: Head, kubelet: Kubelet) -> None:
    pod = f"{CLUSTER}-head-abcde"
    kubelet.leads[cli.namespace, pod, DASHBOARD] = ("127.0.0.1", free_ports(1)[0])
    ran = cli.run("logs", "m1", *cli.place)
    assert (ran.status, ran.out) == (2, "")
    assert "Ray's dashboard cannot be read: port-forward: error forwarding port 8265" in ran.err
    assert f"port 8265 of pod {pod} in namespace {cli.namespace}" in ran.err


def test_logs_without_a_cluster_or_a_head(cli: Cli) -> None:
    assert cli.apply(pipeline(), "--no-wait").status == 0

    def logs(*flags: str) -> Ran:
        ran = cli.run("logs", "m1", *flags, *cli.place)
        assert ran.status == 2
        return ran

    assert "has no Ray cluster that runs" in logs().err
    cli.report(ready("True") | {"more": RAY})
    assert f"The RayCluster '{CLUSTER}' is gone" in logs("-f").err
    cli.run("delete", NAME, "--wait", *cli.place)
    deployed(cli)
    assert f"RayCluster '{CLUSTER}' has no head that is ready" in logs().err
