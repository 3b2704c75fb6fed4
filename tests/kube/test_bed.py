"""The test bed keeps what it promises to the other tests."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bed.client import RefusedError
from bed.control_plane import ControlPlane
from bed.processes import wait_for

POD = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "c", "image": "none"}]}}


def test_a_pod_can_be_tried_at_once(control_plane: ControlPlane, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    tried = control_plane.api.create(pods, {**POD, "metadata": {"name": "p"}}, dry_run=True)
    assert tried["spec"]["serviceAccountName"] == "default"
    assert control_plane.api.get(pods)["items"] == []
    with pytest.raises(RefusedError, match=r"spec\.containers: Required value"):
        control_plane.api.create(pods, {**POD, "metadata": {"name": "p"}, "spec": {}}, dry_run=True)


def test_the_garbage_collector_follows_owners(control_plane: ControlPlane, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    owner = control_plane.api.create(maps, {"metadata": {"name": "owner"}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    control_plane.api.create(maps, {"metadata": {"name": "owned", "ownerReferences": [reference]}})
    control_plane.api.delete(f"{maps}/owner")
    wait_for("the owned ConfigMap to go", lambda: control_plane.api.find(f"{maps}/owned") is None)


def test_a_service_account_may_do_what_its_role_says_and_the_audit_log_has_it(
    control_plane: ControlPlane, namespace: str
) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]
    kubeconfig = control_plane.service_account(namespace, "robot", rules)
    control_plane.kubectl("get", "configmaps", kubeconfig=kubeconfig)
    refused = control_plane.kubectl("get", "secrets", kubeconfig=kubeconfig, check=False)
    assert "cannot list resource" in refused.stderr
    events = control_plane.audit(f"system:serviceaccount:{namespace}:robot")
    done = {(e["verb"], e["objectRef"]["resource"], e["responseStatus"]["code"]) for e in events if "objectRef" in e}
    assert done == {("list", "configmaps", 200), ("list", "secrets", 403)}


def test_the_api_server_comes_back_with_its_data(control_plane: ControlPlane, namespace: str) -> None:
    before = control_plane.api.get(f"/api/v1/namespaces/{namespace}")["metadata"]["uid"]
    control_plane.restart_api_server()
    assert control_plane.api.get(f"/api/v1/namespaces/{namespace}")["metadata"]["uid"] == before


def test_the_raycluster_crd_is_served(control_plane: ControlPlane, namespace: str) -> None:
    assert control_plane.api.get(f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters")["items"] == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a process to the one that started it")
def test_a_process_dies_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time; sys.path.insert(0, sys.argv[1]); from bed.processes import Process\n"
        "p = Process('sleeper', ['sleep', '600'], pathlib.Path(sys.argv[2])); p.start(); print(p.pid, flush=True)\n"
        "time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(json.loads(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)

    def gone() -> bool:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    wait_for("the child to die with its parent", gone, 10)
