"""What a run does with kind: a cluster of its own, images from archives, and nothing left."""

from __future__ import annotations

from pathlib import Path

import pytest
from clusters.kind import Kind, KindError


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kind that notes how it was called, and fails when asked to load what is called broken."""
    log, program = tmp_path / "calls", tmp_path / "bin" / "kind"
    program.parent.mkdir()
    refuses = 'case "$*" in delete*) ;; *broken*) echo "no such file" >&2; exit 1;; esac'
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{refuses}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return log


def test_from_creation_to_the_end(calls: Path, tmp_path: Path) -> None:
    said: list[str] = []
    cluster = Kind("servepipe-1", {}, tmp_path, said.append)
    cluster.load([tmp_path / "operator.tar", tmp_path / "runtime.tar"])
    cluster.down()
    assert calls.read_text().splitlines() == [
        f"create cluster --name servepipe-1 --kubeconfig {tmp_path}/kubeconfig --wait 180s",
        f"load image-archive {tmp_path}/operator.tar --name servepipe-1",
        f"load image-archive {tmp_path}/runtime.tar --name servepipe-1",
        f"delete cluster --name servepipe-1 --kubeconfig {tmp_path}/kubeconfig",
    ]
    assert said == ["kind: creating cluster servepipe-1", "kind: loading operator", "kind: loading runtime"]


def test_its_node_and_its_dns_can_be_disturbed(calls: Path, tmp_path: Path) -> None:
    kubectl = calls.parent / "bin" / "kubectl"
    answers = """get*deploy*) printf 2;; get*) echo '{"items": []}';;"""
    kubectl.write_text(f'#!/bin/sh\nshift; echo "$@" >> {calls}; case "$*" in {answers} esac\n')
    docker = calls.parent / "bin" / "docker"
    docker.write_text(f'#!/bin/sh\necho docker "$@" >> {calls}\n')
    for program in (kubectl, docker):
        program.chmod(0o755)
    cluster = Kind("servepipe-1", {"kubectl": kubectl}, tmp_path, lambda _: None)
    cluster.restart_containerd()
    with cluster.without_dns():
        assert calls.read_text().splitlines()[-1].startswith("get -n kube-system pod")
    assert calls.read_text().splitlines()[1:] == [
        "docker exec servepipe-1-control-plane systemctl restart containerd",
        "get -n kube-system deployment/coredns -o jsonpath={.spec.replicas}",
        "scale -n kube-system deployment/coredns --replicas=0",
        "get -n kube-system pod -l k8s-app=kube-dns -o json",
        "scale -n kube-system deployment/coredns --replicas=2",
    ]


def test_what_kind_says_is_told(calls: Path, tmp_path: Path) -> None:
    cluster = Kind("servepipe-1", {}, tmp_path, lambda _: None)
    with pytest.raises(KindError, match=r"load image-archive .*broken.tar .* ended with 1:\nno such file"):
        cluster.load([tmp_path / "broken.tar"])


def test_what_did_not_come_up_is_taken_away(calls: Path, tmp_path: Path) -> None:
    with pytest.raises(KindError, match="create cluster"):
        Kind("servepipe-broken", {}, tmp_path, lambda _: None)
    assert calls.read_text().splitlines()[1:] == [
        f"delete cluster --name servepipe-broken --kubeconfig {tmp_path}/kubeconfig"
    ]
