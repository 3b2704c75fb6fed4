"""The `servepipe` command on the test API server, with a person who uses kubectl and an operator beside it."""

import copy
import json
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bed.client import Object
from bed.control_plane import ControlPlane

from servepipe.cli import main

NAME = "shop"
GRAPH = {
    "steps": [{"name": "first", "node": "m1"}, {"name": "second", "node": "m2", "args": [{"$step": "first"}]}],
    "output": {"$step": "second"},
}
TIME = "2026-01-01T00:00:00Z"


def pipeline(image: str = "shop:1", **m1: Any) -> Object:
    """A file with two nodes, an image, and what `m1` is to have besides."""
    return {
        "apiVersion": "servepipe.dev/v1alpha1",
        "kind": "ServePipeline",
        "metadata": {"name": NAME},
        "spec": {
            "image": image,
            "graph": copy.deepcopy(GRAPH),
            "nodes": {"m1": {"import": "shop:M1", **m1}, "m2": {"import": "shop:M2"}},
        },
    }


def ready(status: str) -> Object:
    """What `Cli.report` is to say; `stalled` and `refused` can be added, with their messages."""
    return {"ready": status}


@dataclass
class Ran:
    status: int
    out: str
    err: str


class Cli:
    """Commands about one pipeline in one namespace."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.plane, self.namespace, self.folder, self.capsys = plane, namespace, folder, capsys
        self.collection = f"/apis/servepipe.dev/v1alpha1/namespaces/{namespace}/servepipelines"
        self.path = f"{self.collection}/{NAME}"
        self.place = ("-n", namespace, "--kubeconfig", str(plane.kubeconfig))

    def run(self, *arguments: str) -> Ran:
        self.capsys.readouterr()
        status = main(list(arguments))
        return Ran(status, *self.capsys.readouterr())

    def write(self, file: Object) -> str:
        path = self.folder / "pipeline.json"
        path.write_text(json.dumps(file))
        return str(path)

    def apply(self, file: Object, *flags: str) -> Ran:
        return self.run("apply", "-f", self.write(file), *self.place, *flags)

    def diff(self, file: Object) -> Ran:
        return self.run("diff", self.write(file), *self.place)

    def find(self) -> Object | None:
        return self.plane.api.find(self.path)

    def live(self) -> Object:
        return self.plane.api.get(self.path)

    def kubectl_patch(self, spec: Object) -> None:
        patch = json.dumps({"spec": spec})
        self.plane.kubectl("-n", self.namespace, "patch", "svp", NAME, "--type=merge", "-p", patch)

    def server_side(self, spec: Object) -> None:
        """Ops, by server-side apply under a name of their own."""
        live = self.live()
        body = {"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": {"name": NAME}, "spec": spec}
        self.plane.api.apply(self.path, body, "ops", force=True)

    def report(self, status: Object) -> None:
        """The operator's status about the object as it is now."""
        generation = self.live()["metadata"]["generation"]
        conditions = [condition("Accepted", "False" if "refused" in status else "True", status.get("refused", ""))]
        conditions.append(condition("Ready", status["ready"], "m1 is starting"))
        if "stalled" in status:
            conditions.append(condition("Stalled", "True", status["stalled"]))
        m1 = {
            "revision": "aaaa1111",
            "replicas": 1,
            "readyReplicas": int(status["ready"] == "True"),
            "state": "Running",
        }
        body = {
            "observedGeneration": generation,
            "conditions": conditions,
            "nodes": {"m1": m1},
            "url": f"http://{NAME}.{self.namespace}.svc:8000/",
            **status.get("more", {}),
        }
        self.plane.api.merge(f"{self.path}/status", {"status": body})


def condition(kind: str, status: str, message: str) -> Object:
    return {"type": kind, "status": status, "reason": "Because", "message": message, "lastTransitionTime": TIME}


def interruptible(command: list[str], stderr: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """A command whose output is read, and that Ctrl-C ends."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        # Whatever runs the tests in the background may ignore it, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
