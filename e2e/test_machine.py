"""The cluster on this machine runs pods, and leaves nothing of itself.

.venv/bin/python -m pytest e2e/test_machine.py     # root on Linux; minutes when nothing is built yet
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bed.build import with_node
from bed.processes import wait_for
from machine import archive, host, policy, record
from machine.cluster import MachineCluster
from machine.configs import PAUSE_IMAGE
from machine.down import down
from machine.layout import Layout, MachineError
from machine.start import HARDWARE_ADDRESS

if sys.platform != "linux" or os.geteuid() != 0:
    pytest.skip("a cluster on this machine needs root on Linux", allow_module_level=True)

Say = Callable[[str], None]
DAEMONS = ("kubelet", "kube-proxy", "kube-scheduler", "containerd", "coredns", "netpol", "runc", "pod")


def what_there_is() -> dict[str, object]:
    """Everything of the machine that a cluster changes."""
    rules = [line for name in host.firewalls() for line in host.run(f"{name}-save").splitlines()]
    return {
        "mounts": sorted(host.mounts_below(Path("/"), Path("/proc/mounts").read_text())),
        "interfaces": sorted(link["ifname"] for link in host.interfaces()),
        "rules": [line for line in rules if line.startswith("-A")],
        "chains": [line.split()[0] for line in rules if line.startswith(":") and line.split()[1] == "-"],
        "sets of addresses": policy.sets(),
        "routes": host.run("ip", "route"),
        "namespaces": host.run("ip", "netns", "list"),
        "control groups": host.pods_cgroups(),
        "settings": host.sysctls(),
        "outside": host.absent_outside(),
        "shims": sorted(Path("/run/containerd/s").glob("*")),
        "daemons": sorted(_daemons()),
    }


def _daemons() -> Iterator[str]:
    """Programs of a cluster that run, whoever started them; what ended is no matter, if only init waits for it.

    What is about to end, as runc is for a moment once its container is gone, has no command line any more.
    """
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            name = path.read_text().strip()
            begun = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        pid = int(path.parent.name)
        if begun and name.startswith(DAEMONS) and record.started_at(pid) is not None:
            yield f"{pid} {name}"


@pytest.fixture(scope="module")
def before() -> dict[str, object]:
    return what_there_is()


@pytest.fixture(scope="module")
def cluster(before: dict[str, object], say: Say, folder: Path) -> Iterator[MachineCluster]:
    cluster = MachineCluster.up(folder, say)
    yield cluster
    cluster.down()


def run_pod(cluster: MachineCluster, name: str, *arguments: str) -> None:
    container = {"name": "c", "image": PAUSE_IMAGE, "imagePullPolicy": "Never", "args": list(arguments)}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 1},
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(pod))


def status(cluster: MachineCluster, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.kubectl("get", "pod", name, "-o", "json").stdout)["status"]
    return found


def wait_for_phase(cluster: MachineCluster, name: str, phase: str) -> None:
    def described() -> str:
        return cluster.kubectl("describe", "pod", name, check=False).stdout

    wait_for(f"pod {name} to be {phase}", lambda: status(cluster, name)["phase"] == phase, 60, described, pause=0.2)


@pytest.fixture(scope="module")
def server(cluster: MachineCluster) -> str:
    """A pod that answers at port 8080 of a Service of the same name."""
    run_pod(cluster, "server", "serve", "8080")
    cluster.kubectl("expose", "pod", "server", "--port=8080")
    wait_for_phase(cluster, "server", "Running")
    return "server"


def test_a_pod_runs_on_the_node(cluster: MachineCluster, server: str) -> None:
    assert status(cluster, server)["podIP"].startswith("10.244.0.")
    nodes = json.loads(cluster.kubectl("get", "nodes", "-o", "json").stdout)["items"]
    assert [node["metadata"]["name"] for node in nodes] == [cluster.node]


def test_a_pod_finds_services_by_name_and_reaches_them(cluster: MachineCluster, server: str) -> None:
    run_pod(cluster, "client", "dial", f"{server}:8080")
    wait_for_phase(cluster, "client", "Succeeded")
    assert cluster.kubectl("logs", "client").stdout == "server\n"
    looked_up = cluster.kubectl("exec", server, "--", "/pod", "lookup", "kubernetes.default.svc.cluster.local").stdout
    assert looked_up == "10.96.0.1\n"


def test_a_pod_reaches_the_api_server(cluster: MachineCluster, server: str) -> None:
    assert cluster.kubectl("exec", server, "--", "/pod", "reach", "kubernetes.default:443").stdout == "reached\n"


def test_the_bridge_does_not_take_the_hardware_address_of_a_pod(cluster: MachineCluster, server: str) -> None:
    links = json.loads(host.run("ip", "-j", "link", "show"))
    assert [link["ifname"] for link in links if link.get("master") == cluster.layout.bridge]
    assert [link["address"] for link in links if link["ifname"] == cluster.layout.bridge] == [HARDWARE_ADDRESS]


def test_a_policy_leads_to_rules(cluster: MachineCluster, server: str) -> None:
    """Whether they hold is seen in test_policies.py; here they are, for `down` to remove."""
    same = {"podSelector": {"matchLabels": {"app": server}}}
    spec = {"podSelector": same["podSelector"], "ingress": [{}, {"from": [same], "ports": [{"port": 1}]}]}
    made = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "some"}, "spec": spec}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(made))
    wait_for("sets of addresses", policy.sets, 30, lambda: (cluster.layout.logs / "netpol.log").read_text()[-2000:])


def test_a_pod_outlives_containerd_which_then_starts_others(cluster: MachineCluster, server: str) -> None:
    before = status(cluster, server)["containerStatuses"][0]
    old = cluster.pid("containerd")
    cluster.restart_containerd()
    assert cluster.pid("containerd") != old
    run_pod(cluster, "later", "dial", f"{server}:8080")
    wait_for_phase(cluster, "later", "Succeeded")
    after = status(cluster, server)["containerStatuses"][0]
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)


def test_dns_can_be_gone_for_a_while(cluster: MachineCluster, server: str) -> None:
    def look_up() -> subprocess.CompletedProcess[str]:
        return cluster.kubectl("exec", server, "--", "/pod", "lookup", "kubernetes.default", check=False)

    cluster.stop_daemon("coredns")
    failed = look_up()
    assert failed.returncode != 0
    assert "no such host" not in failed.stderr  # which would be an answer
    cluster.start_daemon("coredns")
    wait_for("names again", lambda: look_up().stdout == "10.96.0.1\n", 60)


def test_another_process_finds_it_and_loads_images(cluster: MachineCluster, tmp_path: Path) -> None:
    archive.write(tmp_path / "image.tar", "localhost/another:2", Path(with_node()["pod"]))
    script = [sys.executable, str(Path(__file__).parent / "machine"), "--folder", str(cluster.folder)]
    subprocess.run([*script, "load", str(tmp_path / "image.tar")], check=True)
    assert {"localhost/another:2", PAUSE_IMAGE} <= set(cluster.images())
    nodes = subprocess.run([*script, "kubectl", "get", "nodes"], check=True, capture_output=True, text=True).stdout
    assert cluster.node in nodes


def test_a_second_one_is_refused_and_the_first_goes_on(cluster: MachineCluster, server: str, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="svpbr0 is there"):
        MachineCluster.up(tmp_path)
    assert cluster.kubectl("exec", server, "--", "/pod", "lookup", "kubernetes.default").stdout == "10.96.0.1\n"


def test_down_leaves_nothing_but_logs(cluster: MachineCluster, server: str, before: dict[str, object]) -> None:
    assert what_there_is() != before
    cluster.down()
    assert what_there_is() == before
    assert [path.name for path in cluster.folder.iterdir()] == ["logs"]
    assert list(record.marked(cluster.folder)) == []


@pytest.mark.parametrize("moment", ["etcd", "kube-proxy"])
def test_what_a_killed_process_left_is_taken_down_by_another(moment: str, tmp_path: Path) -> None:
    before = what_there_is()
    layout = Layout(tmp_path / "cluster")
    script = [sys.executable, str(Path(__file__).parent / "machine"), "--folder", str(layout.folder)]
    with (tmp_path / "up.log").open("w") as log:
        starting = subprocess.Popen([*script, "up"], stdout=log, stderr=log, start_new_session=True)
    try:

        def far_enough() -> bool:
            assert starting.poll() is None, (tmp_path / "up.log").read_text()
            noted = record.load(layout.record)
            return noted is not None and moment in noted.processes

        wait_for(f"{moment} to be started", far_enough, 90, (tmp_path / "up.log").read_text)
        starting.send_signal(signal.SIGKILL)
        starting.wait()
        assert what_there_is() != before
        subprocess.run([*script, "down"], check=True)
        assert what_there_is() == before
    finally:
        starting.kill()
        starting.wait()
        down(layout, print)


def test_up_takes_a_former_one_in_its_folder_down_first(tmp_path: Path, say: Say) -> None:
    before = what_there_is()
    first = MachineCluster.up(tmp_path / "cluster", say)
    try:
        first.kubectl("create", "namespace", "former")
        old = first.pid("etcd")
        second = MachineCluster.up(first.folder, say)
        assert second.pid("etcd") != old
        assert "former" not in second.kubectl("get", "namespaces").stdout
    finally:
        first.down()
    assert what_there_is() == before
