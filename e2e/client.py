"""Pods that run a Python program under the Pod Security Standard `restricted`, and one that sends single requests."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bed.processes import wait_for
from clusters.cluster import Cluster

Object = dict[str, Any]
START_S = 120.0

_RESTRICTED_POD = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
_RESTRICTED_CONTAINER = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
_WAIT = "import signal; signal.sigwait([signal.SIGTERM])"
#: Sends what stands on its standard input, and prints what came back.
_SEND = """
import base64, json, sys, urllib.error, urllib.request
asked = json.load(sys.stdin)
told = []
for body in asked["bodies"]:
    request = urllib.request.Request(asked["url"], base64.b64decode(body), {"Content-Type": asked["type"]})
    try:
        with urllib.request.urlopen(request, timeout=asked["timeout"]) as answer:
            told.append([answer.status, answer.read().decode()])
    except urllib.error.HTTPError as error:
        told.append([error.code, error.read().decode()])
    except OSError as error:
        told.append([0, str(error)])
print(json.dumps(told))
"""


def python_pod(name: str, namespace: str, image: str, program: str, *arguments: str) -> Object:
    """Args:
    image: Any with Python.
    program: Its text; it gets SIGTERM and 30 s when the pod is deleted.
    """
    container = {
        "name": "python",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", program, *arguments],
        "securityContext": _RESTRICTED_CONTAINER,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "containers": [container],
            "securityContext": _RESTRICTED_POD,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 30,
        },
    }


@dataclass(frozen=True)
class Answer:
    """Attributes:
    status: Of HTTP; 0 where there was no answer, and ``text`` says why.
    """

    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Client:
    """A pod that is there while its namespace is."""

    def __init__(self, cluster: Cluster, namespace: str, image: str, name: str = "client") -> None:
        self._cluster, self._namespace, self._name = cluster, namespace, name
        cluster.apply(python_pod(name, namespace, image, _WAIT))
        wait_for(f"pod {name} to run", self._runs, START_S, self._describe, pause=0.25)

    def ask(self, url: str, body: object) -> Answer:
        """One request with a JSON body."""
        (answer,) = self.send(url, [json.dumps(body).encode()], "application/json")
        return answer

    def send(self, url: str, bodies: Iterable[bytes], content_type: str, timeout: float = 120.0) -> list[Answer]:
        """One request after the other, each on a connection of its own."""
        asked = {"url": url, "bodies": [base64.b64encode(body).decode() for body in bodies]}
        told = self._cluster.kubectl(
            *("exec", "-i", "-n", self._namespace, self._name, "--", "python", "-c", _SEND),
            stdin=json.dumps({**asked, "type": content_type, "timeout": timeout}),
            timeout=timeout * max(1, len(asked["bodies"])) + 30,
        )
        return [Answer(*one) for one in json.loads(told.stdout)]

    def _runs(self) -> bool:
        pod = self._cluster.get("-n", self._namespace, "pod", self._name)
        return bool(pod["status"]["phase"] == "Running")

    def _describe(self) -> str:
        return self._cluster.kubectl("describe", "-n", self._namespace, "pod", self._name, check=False).stdout
