"""A pipeline whose RayCluster is there, with a `fake_head` on a `fake_kubelet`, and `servepipe logs -f` of it."""

from __future__ import annotations

import base64
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import IO

from bed.client import Object
from bed.processes import wait_for
from cluster_cli import NAME, Cli, interruptible, pipeline, ready
from fake_head import Head
from fake_kubelet import Kubelet, put_on

CLUSTER = f"{NAME}-x7k2q"
RAY = {"clusters": [{"name": CLUSTER, "role": "Active"}]}
DASHBOARD = 8265
INGRESS = 8000
INGRESS_LABELS = {"servepipe.dev/pipeline": NAME, "servepipe.dev/role": "ingress", "ray.io/cluster": CLUSTER}
#: The RayClusters are the test's own, also after a test that has started KubeRay's stand-in.
STAND_IN_OFF = {"kuberay-stand-in/controller": "off"}
HEAD_LABELS = {"ray.io/cluster": CLUSTER, "ray.io/node-type": "head"}
#: Looks as often as a test wants, and else is the command.
IMPATIENT = """
import sys
from servepipe.cli import main
from servepipe_operator.cluster import forward, logs
logs.LOOK_S, logs.RETRY_S, logs.TIMEOUT_S, forward.OPEN_S = 0.3, 0.2, 2.0, 2.0
sys.exit(main(sys.argv[1:]))
"""


def replica(name: str, pid: int) -> Object:
    return {
        "replica_id": f"app#node#{name}",
        "state": "RUNNING",
        "pid": pid,
        "node_id": "n" * 56,
        "start_time_s": float(pid),
        "log_file_path": f"/serve/{name}.log",
    }


def application(replicas: list[Object], dead: list[Object]) -> Object:
    return {"status": "RUNNING", "deployments": {"node": {"replicas": replicas, "recent_dead_replicas": dead}}}


def deployed(cli: Cli) -> None:
    """A pipeline, its RayCluster without pods, and the token."""
    assert cli.apply(pipeline(), "--no-wait").status == 0
    cli.report(ready("True") | {"more": RAY})
    group = f"/apis/ray.io/v1/namespaces/{cli.namespace}/rayclusters"
    pod = {"spec": {"containers": [{"name": "ray-head", "image": "ray"}]}}
    spec = {"headGroupSpec": {"rayStartParams": {}, "template": pod}}
    cli.plane.api.create(
        group, {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": CLUSTER}, "spec": spec}
    )
    secret = {"metadata": {"name": f"{NAME}-token"}, "data": {"auth_token": base64.b64encode(b"ray").decode()}}
    cli.plane.api.create(f"/api/v1/namespaces/{cli.namespace}/secrets", secret)


def head_pod(cli: Cli, kubelet: Kubelet, head: Head, name: str = f"{CLUSTER}-head-abcde") -> str:
    """A head that is ready, on the kubelet's node."""
    put_on(cli.plane, kubelet.node, cli.namespace, name, HEAD_LABELS)
    kubelet.leads[cli.namespace, name, DASHBOARD] = (head.address, head.port)
    return name


def ingress_pod(cli: Cli, kubelet: Kubelet, head: Head, name: str = f"{CLUSTER}-ingress-abcde") -> str:
    """A pod of the ingress that is ready, and answers as the head does."""
    put_on(cli.plane, kubelet.node, cli.namespace, name, INGRESS_LABELS)
    kubelet.leads[cli.namespace, name, INGRESS] = (head.address, head.port)
    return name


def with_replicas(head: Head) -> Head:
    """Two revisions of m1 with three replicas in all."""
    head.applications = {
        "m1--aaaa1111": application([replica("one", 11), replica("two", 12)], [replica("dead", 13)]),
        "m1--bbbb2222": application([replica("new", 14)], []),
        "m2--cccc3333": application([replica("other", 15)], []),
    }
    head.files = {
        "serve/one.log": "one logs\n",
        "11:out": ":job_id:01\none prints\n",
        "11:err": "",
        "serve/two.log": "two logs\ntwo logs again\n",
        "serve/new.log": "new logs\n",
        "serve/dead.log": "dead logged\n",
    }
    return head


class Following:
    """`servepipe logs -f`, and what it has said so far."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self.asides: list[str] = []
        self._child = child
        assert child.stdout is not None
        assert child.stderr is not None
        self._readers = [
            threading.Thread(target=_into, args=(child.stdout, self.lines)),
            threading.Thread(target=_into, args=(child.stderr, self.asides)),
        ]
        for reader in self._readers:
            reader.start()

    def says(self, line: str, times: int = 1) -> None:
        """Waits for a line of the logs."""
        wait_for(f"{line!r}", lambda: self.lines.count(line) >= times, 60, lambda: repr((self.lines, self.asides)))

    def remarks(self, words: str) -> None:
        """Waits for words on stderr."""
        wait_for(f"{words!r}", lambda: words in " ".join(self.asides), 60, lambda: repr((self.lines, self.asides)))

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit status."""
        self._child.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """For its end; returns the exit status."""
        status = self._child.wait(30)
        for reader in self._readers:
            reader.join()
        return status


@contextlib.contextmanager
def following(place: Sequence[str], node: str) -> Iterator[Following]:
    """Args:
    place: The options that say which cluster and namespace.
    """
    command = [sys.executable, "-c", IMPATIENT, "logs", node, "-f", *place]
    with interruptible(command, stderr=subprocess.PIPE) as child:
        follow = Following(child)
        try:
            yield follow
        finally:
            follow.interrupt()


def _into(stream: IO[str], lines: list[str]) -> None:
    lines.extend(line.rstrip("\n") for line in iter(stream.readline, ""))
