"""Who reaches whom in a cluster: pods that listen, pods that try, and whether NetworkPolicies make a difference.

The pods run the program of `tests/kube/bed/go/pod` and pass the `restricted` level of Pod Security.
"""

import json
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

from bed.processes import DeadlineError, wait_for

Json = dict[str, Any]

REACHED = "reached"
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
#: How long the network may take until a change of policies holds.
SECONDS = 20.0


class Cluster(Protocol):
    """Any cluster that tests can use."""

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]: ...


# -- pods


def namespace(name: str, labels: Mapping[str, str] | None = None) -> Json:
    """A namespace in which pods are `restricted`."""
    metadata = {"name": name, "labels": {**RESTRICTED, **(labels or {})}}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def listener(image: str, where: str, name: str, labels: Mapping[str, str], ports: Sequence[int]) -> Json:
    """A pod that listens on some ports, and is ready when the kubelet reaches the first of them."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "pod",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["serve", *map(str, ports)],
        "ports": [{"containerPort": port} for port in ports],
        "readinessProbe": {"tcpSocket": {"port": ports[0]}, "periodSeconds": 1},
        "securityContext": security,
    }
    spec = {
        "containers": [container],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 1,
    }
    metadata = {"name": name, "namespace": where, "labels": dict(labels)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def apply(cluster: Cluster, objects: Iterable[Json]) -> None:
    items = list(objects)
    if not items:
        return
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def addresses(cluster: Cluster, where: str, timeout: float = 90.0) -> dict[str, str]:
    """The addresses of all pods of a namespace, by name, as soon as all of them are ready.

    Raises DeadlineError with what `kubectl describe` says.
    """
    found: dict[str, str] = {}

    def ready() -> bool:
        for pod in json.loads(cluster.kubectl("get", "pods", "-n", where, "-o", "json").stdout)["items"]:
            conditions = pod["status"].get("conditions", ())
            if not any(each["type"] == "Ready" and each["status"] == "True" for each in conditions):
                return False
            found[pod["metadata"]["name"]] = pod["status"]["podIP"]
        return True

    def described() -> str:
        return cluster.kubectl("describe", "pods", "-n", where, check=False).stdout[-4000:]

    wait_for(f"all pods of namespace {where} to be ready", ready, timeout, described, pause=0.3)
    return found


# -- connections


def parsed(said: str) -> dict[str, str]:
    """What `pod try` prints: `REACHED` or the reason why not, by address."""
    return {address: outcome for address, _, outcome in (line.partition(" ") for line in said.splitlines())}


def tried(cluster: Cluster, where: str, pod: str, targets: Iterable[str]) -> dict[str, str]:
    """TCP connections from a pod to each HOST:PORT, all at once: `REACHED` or the reason why not."""
    asked = sorted(set(targets))
    outcome = parsed(cluster.kubectl("exec", "-n", where, pod, "--", "/pod", "try", *asked).stdout)
    assert sorted(outcome) == asked, f"pod {where}/{pod} was asked for {asked} and said {outcome}"
    return outcome


@dataclass(frozen=True)
class Row:
    """One connection that must be possible, or must not.

    Attributes:
        source: Namespace and name of the pod that connects, as `shop/caller`.
        target: The pod that listens.
        port: TCP.
        allowed: What the policies say.
    """

    source: str
    target: str
    port: int
    allowed: bool

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}:{self.port} {'allowed' if self.allowed else 'refused'}"


def wrong(rows: Iterable[Row], known: Mapping[str, str], outcomes: Mapping[tuple[str, str], str]) -> list[str]:
    """The rows that came out otherwise, for people.

    Args:
        known: The addresses of the pods.
        outcomes: What came of each connection, by source and HOST:PORT.
    """
    found = []
    for row in rows:
        outcome = outcomes[row.source, f"{known[row.target]}:{row.port}"]
        if (outcome == REACHED) is not row.allowed:
            found.append(f"{row}, and it was: {outcome}")
    return found


def look(cluster: Cluster, rows: Sequence[Row], known: Mapping[str, str]) -> list[str]:
    """Tries all rows once; returns those that are wrong."""
    asked: dict[str, set[str]] = {}
    for row in rows:
        asked.setdefault(row.source, set()).add(f"{known[row.target]}:{row.port}")

    def one(source: str) -> dict[tuple[str, str], str]:
        where, _, pod = source.partition("/")
        return {(source, target): said for target, said in tried(cluster, where, pod, asked[source]).items()}

    with ThreadPoolExecutor(4) as several:
        outcomes = {key: said for found in several.map(one, asked) for key, said in found.items()}
    return wrong(rows, known, outcomes)


def hold(cluster: Cluster, rows: Sequence[Row], known: Mapping[str, str], timeout: float = SECONDS) -> None:
    """Returns as soon as all rows are right at once, and are so a second time.

    Raises DeadlineError with those that are wrong.
    """
    last: list[str] = []

    def right() -> bool:
        last[:] = look(cluster, rows, known)
        return not last

    wait_for("connections to be as the policies say", right, timeout, lambda: "\n".join(last), pause=0.2)
    after = look(cluster, rows, known)
    assert not after, "as the policies say at first, and then not:\n" + "\n".join(after)


# -- whether the network enforces policies at all


@dataclass(frozen=True)
class Enforcement:
    """What the probe saw; `str` of it is a line to print."""

    enforced: bool
    said: str

    def __str__(self) -> str:
        return self.said if self.enforced else f"NOT ENFORCED: {self.said}"


def deny_all(where: str, labels: Mapping[str, str]) -> Json:
    """Nobody reaches the pods with these labels."""
    spec = {"podSelector": {"matchLabels": dict(labels)}, "policyTypes": ["Ingress"]}
    metadata = {"name": "deny-all", "namespace": where}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def enforced(cluster: Cluster, image: str, where: str, seconds: float = SECONDS) -> Enforcement:
    """Whether a connection that is possible is not any more once a policy forbids it, while another one still is.

    Args:
        image: Has `/pod`.
        where: A namespace to make; it is deleted again.
        seconds: How long the network has for that.

    Raises:
        DeadlineError: A connection was not possible before, or the other one is not after.
    """
    apply(cluster, [namespace(where)])
    try:
        apply(cluster, [listener(image, where, name, {"app": name}, [8080]) for name in ("open", "closed", "client")])
        known = {f"{where}/{name}": address for name, address in addresses(cluster, where).items()}
        both = [Row(f"{where}/client", f"{where}/{name}", 8080, True) for name in ("open", "closed")]
        hold(cluster, both, known, seconds)
        apply(cluster, [deny_all(where, {"app": "closed"})])
        begun = time.monotonic()
        try:
            hold(cluster, [both[0], replace(both[1], allowed=False)], known, seconds)
        except DeadlineError:
            if look(cluster, both, known):
                raise
            return Enforcement(False, f"pods go on to connect {seconds:.0f} s after a policy that forbids it")
        return Enforcement(True, f"a policy that denies all held after {time.monotonic() - begun:.1f} s")
    finally:
        cluster.kubectl("delete", "namespace", where, timeout=120)
