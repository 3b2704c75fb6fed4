"""A namespace with pipelines in it, seen and changed as ops people do: with kubectl."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bed.processes import wait_for
from clusters.cluster import Cluster

Object = dict[str, Any]

#: Asks Ray's dashboard from within the head, where the token is.
_SERVE = """
import json, os, urllib.request as u
r = u.Request("http://127.0.0.1:8265/api/serve/applications/")
r.add_header("X-Ray-Authorization", "Bearer " + os.environ.get("RAY_AUTH_TOKEN", ""))
print(u.urlopen(r, timeout=20).read().decode())
"""
#: A pod's own metrics, from within it.
_METRICS = 'import urllib.request as u; print(u.urlopen("http://127.0.0.1:8080/metrics", timeout=20).read().decode())'
_NODE_CALLS = re.compile(r'^ray_servepipe_node_calls_total\{.*?\bway="([^"]+)".*\} (\S+)$', re.MULTILINE)
#: What Serve decided last.
_CONTROLLER_LOG = ("sh", "-c", "tail -n 60 /tmp/ray/session_latest/logs/serve/controller_*.log")
READY_S = 300.0
#: Everything that an operator, KubeRay or Ray might leave in a namespace.
KINDS = (
    *("svp", "raycluster", "pod", "svc", "endpointslice", "secret", "configmap", "pvc", "networkpolicy", "pdb", "job"),
    *("serviceaccount", "role", "rolebinding", "controllerrevision", "lease"),
)
#: What Kubernetes itself puts into each.
ALWAYS = frozenset({"serviceaccount/default", "configmap/kube-root-ca.crt"})


class World:
    """One namespace."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    @contextlib.contextmanager
    def made(self) -> Iterator[World]:
        """The namespace is there while the block runs, and enforces the Pod Security Standard `restricted`.

        Raises AssertionError where there is one of that name already: it is somebody else's, and would be deleted.
        """
        labels = {"pod-security.kubernetes.io/enforce": "restricted", "servepipe-e2e": "true"}
        metadata: Object = {"name": self.namespace, "labels": labels}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        self.cluster.kubectl("create", "-f", "-", stdin=json.dumps(namespace))
        try:
            yield self
        finally:
            # First the pipelines: KubeRay empties a Redis by a Job, which no namespace takes that is being deleted.
            self.kubectl("delete", "svp", "--all", "--timeout=120s", check=False, timeout=130)
            wait_for(f"no RayCluster in {self.namespace}", lambda: not self.find("raycluster"), 120, self.tell, 0.5)
            self.cluster.delete_namespace(self.namespace)

    # -- changes

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 60.0) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments, stdin=stdin, check=check, timeout=timeout).stdout

    def apply(self, manifest: str | Path) -> None:
        """A file or its text, by plain `kubectl apply`."""
        if isinstance(manifest, Path):
            self.kubectl("apply", "-f", str(manifest))
        else:
            self.kubectl("apply", "-f", "-", stdin=manifest)

    def patch(self, name: str, spec: Object) -> None:
        """A merge patch of a pipeline's spec."""
        self.kubectl("patch", "svp", name, "--type=merge", "-p", json.dumps({"spec": spec}))

    # -- reading

    def get(self, kind: str, name: str) -> Object:
        return self.cluster.get("-n", self.namespace, kind, name)

    def find(self, kind: str, labels: str = "") -> list[Object]:
        return self.cluster.find("-n", self.namespace, kind, *(("-l", labels) if labels else ()))

    def pipeline(self, name: str) -> Object:
        return self.get("svp", name)

    def condition(self, name: str, kind: str) -> Object:
        return condition(self.pipeline(name), kind)

    def pods(self, pipeline: str, labels: str = "") -> list[Object]:
        chosen = f"servepipe.dev/pipeline={pipeline}" + (f",{labels}" if labels else "")
        return self.find("pods", chosen)

    def head(self, pipeline: str) -> Object:
        """The head of the pipeline's newest RayCluster."""
        heads = self.pods(pipeline, "ray.io/node-type=head")
        assert heads, f"there is no head of {pipeline}"
        return max(heads, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def serve(self, pipeline: str) -> Object:
        """Ray Serve's applications, as its REST API tells of them."""
        head = self.head(pipeline)["metadata"]["name"]
        told: Object = json.loads(self.kubectl("exec", head, "-c", "ray-head", "--", "python", "-c", _SERVE))
        return dict(told["applications"])

    def replicas(self, pipeline: str) -> dict[str, set[str]]:
        """The ids of Serve's running replicas, by node; those of the callers' entrance under ``ingress``."""
        found: dict[str, set[str]] = {}
        for name, application in self.serve(pipeline).items():
            for deployment in application["deployments"].values():
                running = {one["replica_id"] for one in deployment["replicas"] if one["state"] == "RUNNING"}
                found.setdefault(name.partition("--")[0], set()).update(running)
        return found

    def deployed_at(self, pipeline: str) -> dict[str, float]:
        """By application when Serve was last told of it; every PUT changes it."""
        return {name: one["last_deployed_time_s"] for name, one in self.serve(pipeline).items()}

    def node_calls(self, pipeline: str) -> dict[str, float]:
        """How many calls of nodes took which way, as the metrics of the pods that run now tell."""
        found: dict[str, float] = {}
        for pod in self.pods(pipeline):
            name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
            told = self.kubectl("exec", name, "-c", container, "--", "python", "-c", _METRICS)
            for way, count in _NODE_CALLS.findall(told):
                found[way] = found.get(way, 0) + float(count)
        return found

    def left(self) -> set[str]:
        """All objects of the namespace but Kubernetes' own."""
        return set(self.kubectl("get", ",".join(KINDS), "-o", "name").split()) - ALWAYS

    # -- waiting

    def wait(self, what: str, check: Callable[[], Any], timeout: float = READY_S, pipeline: str = "") -> Any:
        """Until ``check`` answers with something true; AssertionErrors in it mean: not yet."""
        return wait_for(what, check, timeout, lambda: self.tell(pipeline), pause=0.25)

    def wait_for(
        self, name: str, kind: str, status: str = "True", reason: str = "", timeout: float = READY_S
    ) -> Object:
        """Until a condition of the pipeline as it stands has this status (and reason); the pipeline."""

        def look() -> Object | None:
            live = self.pipeline(name)
            one = condition(live, kind)
            current = one.get("observedGeneration") == live["metadata"]["generation"]
            return live if current and one.get("status") == status and reason in ("", one.get("reason")) else None

        found: Object = self.wait(f"{kind}={status} {reason} of {name}", look, timeout, name)
        return found

    def wait_settled(self, name: str, timeout: float = READY_S) -> Object:
        """Until it is Ready and nothing is under way any more."""

        def look() -> Object | None:
            live = self.pipeline(name)
            ready = condition(live, "Ready")
            current = ready.get("observedGeneration") == live["metadata"]["generation"]
            settled = current and ready.get("status") == "True" and not condition(live, "Reconciling")
            return live if settled else None

        found: Object = self.wait(f"pipeline {name} to be Ready with nothing under way", look, timeout, name)
        return found

    def tell(self, pipeline: str = "") -> str:
        """What is there, for the message of a failure."""
        told = [self.kubectl("get", "svp,raycluster,pod,svc,secret,networkpolicy,pdb", "-o", "wide", check=False)]
        if pipeline:
            told.append(self.kubectl("get", "svp", pipeline, "-o", "jsonpath={.status}", check=False))
            told.append(self.kubectl("get", "raycluster", "-o", "yaml", check=False)[-6000:])
            chosen = f"servepipe.dev/pipeline={pipeline},ray.io/node-type=head"
            heads = self.kubectl("get", "pods", "-l", chosen, "-o", "name", check=False).split()
            told += [
                self.kubectl("exec", head, "-c", "ray-head", "--", *_CONTROLLER_LOG, check=False) for head in heads
            ]
        told.append(self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)[-4000:])
        pods = self.kubectl("get", "pods", "-o", "name", check=False).split()
        told += [
            f"--- {pod}\n{self.kubectl('logs', pod, '--all-containers', '--tail=15', check=False)}" for pod in pods
        ]
        return "\n".join(told)


def condition(live: Object, kind: str) -> Object:
    found = live.get("status", {}).get("conditions", [])
    return next((one for one in found if one["type"] == kind), {})
