"""The world of the contract suite: RayClusters, seen and changed only through the Kubernetes API.

``KUBERAY_KUBECONFIG`` names a cluster in which KubeRay itself runs; without it the stand-in runs on the test bed.
Neither has nodes: what a kubelet reports is written here, for both.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from bed.client import Api, Object
from bed.processes import wait_for
from kuberay.samples import raycluster

NAMES = itertools.count(1)
TIMEOUT_S = 30.0
KUBELET_OFF = {"kuberay-stand-in/kubelet": "off"}


def api_of(kubeconfig: Path) -> Api:
    """The API server of a kubeconfig that names its certificates as files."""
    content = yaml.safe_load(kubeconfig.read_text())
    cluster, user = content["clusters"][0]["cluster"], content["users"][0]["user"]
    certificate = None
    if "client-certificate" in user:
        certificate = Path(user["client-certificate"]), Path(user["client-key"])
    authority = Path(cluster["certificate-authority"])
    return Api(cluster["server"], authority, certificate, user.get("token"))


class World:
    """One namespace with its RayClusters."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api, self.namespace = api, namespace

    # -- objects

    def path(self, plural: str, name: str = "", group: str = "api/v1") -> str:
        return f"/{group}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def clusters(self, name: str = "") -> str:
        return self.path("rayclusters", name, "apis/ray.io/v1")

    def rbac(self, plural: str, name: str = "") -> str:
        return self.path(plural, name, "apis/rbac.authorization.k8s.io/v1")

    def given(self, raycluster: Object, *, made: int | None = None) -> str:
        """Creates it; waits until it has so many pods (default: all that it asks for). Returns its name."""
        self.api.create(self.clusters(), raycluster)
        name: str = raycluster["metadata"]["name"]
        if made is None:
            made = 1 + sum(group.get("replicas", 0) for group in raycluster["spec"]["workerGroupSpecs"])
        self.wait_pods(name, made)
        return name

    def refused(self, raycluster: Object) -> Object:
        """Creates it; returns the Event that says what is wrong with it."""
        self.api.create(self.clusters(), raycluster)
        name = raycluster["metadata"]["name"]
        return self.wait("a Warning", lambda: next(iter(self.events(name, kind="Warning")), None))

    def cluster(self, name: str) -> Object:
        return self.api.get(self.clusters(name))

    def status(self, name: str) -> Object:
        return self.cluster(name).get("status", {})

    def condition(self, name: str, kind: str) -> Object:
        found = self.status(name).get("conditions", [])
        return next((one for one in found if one["type"] == kind), {})

    def find(self, path: str) -> Object | None:
        return self.api.find(path)

    def service(self, name: str) -> Object:
        return self.wait(f"Service {name}", lambda: self.find(self.path("services", name)))

    def events(self, name: str, reason: str = "", kind: str = "") -> list[Object]:
        found = self.api.get(self.path("events", group="apis/events.k8s.io/v1"))["items"]
        return [
            event
            for event in found
            if event["regarding"]["name"] == name
            and (not reason or event["reason"] == reason)
            and (not kind or event["type"] == kind)
        ]

    # -- changes

    def json_patch(self, name: str, *operations: tuple[Any, ...]) -> Object:
        """Operations on a RayCluster: ("replace" | "add" | "test", path, value) or ("remove", path)."""
        patch = [dict(zip(("op", "path", "value"), one, strict=False)) for one in operations]
        return self._patch(self.clusters(name), patch, "application/json-patch+json")

    def scale(self, name: str, index: int, replicas: int) -> Object:
        return self.json_patch(name, ("replace", f"/spec/workerGroupSpecs/{index}/replicas", replicas))

    def _patch(self, path: str, patch: Any, kind: str) -> Object:
        return self.api._json("PATCH", path, {}, patch, kind)

    # -- pods

    def pods(self, name: str, group: str | None = None) -> list[Object]:
        """Of a RayCluster (and of one group; "headgroup" is the head's), by its label; oldest first."""
        labels = f"ray.io/cluster={name}" + (f",ray.io/group={group}" if group else "")
        found = self.api.get(self.path("pods"), labelSelector=labels)["items"]
        return sorted(found, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    def head(self, name: str) -> Object:
        (head,) = self.wait_pods(name, 1, "headgroup")
        return head

    def wait_pods(self, name: str, count: int, group: str | None = None) -> list[Object]:
        what = f"{count} pods of {name} {group or ''}"
        return self.wait(what, lambda: (found := self.pods(name, group), len(found) == count)[1] and (found or [{}]))

    def uids(self, name: str, group: str | None = None) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.pods(name, group)}

    def delete_pod(self, pod: Object) -> None:
        self.api.delete(self.path("pods", pod["metadata"]["name"]))

    # -- the kubelet's part

    def runs(self, *pods: Object, ready: bool = True, reason: str = "", ended: bool = False) -> None:
        """These pods run.

        Args:
            ready: Whether they pass their probes.
            reason: For which their first container waits.
            ended: Their first container has ended.
        """
        for number, pod in zip(NAMES, pods, strict=False):
            name = pod["metadata"]["name"]
            state: Object = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
            if reason:
                state = {"waiting": {"reason": reason, "message": "told so"}}
            if ended:
                state = {"terminated": {"exitCode": 1, "reason": "Error"}}
            good = ready and not reason and not ended
            condition = {"type": "Ready", "status": str(good)}
            if not good:
                condition |= {"reason": "ContainersNotReady", "message": "containers with unready status"}
            ip = f"10.1.{number // 250}.{number % 250 + 1}"
            first = {"name": pod["spec"]["containers"][0]["name"], "image": "i", "imageID": "", "restartCount": 0}
            status = {
                "phase": "Pending" if reason else "Running",
                "podIP": ip,
                "podIPs": [{"ip": ip}],
                "conditions": [{**condition, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                "containerStatuses": [{**first, "ready": good, "state": state}],
            }
            self.api.merge(self.path("pods", name) + "/status", {"status": status})

    def fails(self, pod: Object) -> None:
        """All its containers have ended."""
        self.api.merge(self.path("pods", pod["metadata"]["name"]) + "/status", {"status": {"phase": "Failed"}})

    def all_run(self, name: str) -> None:
        """Every pod of a RayCluster runs, and KubeRay says so."""
        self.runs(*self.pods(name))
        self.wait("state ready", lambda: self.status(name).get("state") == "ready")

    # -- waiting

    def wait(self, what: str, check: Callable[[], Any], timeout: float = TIMEOUT_S) -> Any:
        """The first true value of ``check``."""
        return wait_for(what, check, timeout, self.evidence)

    def wait_condition(self, name: str, kind: str, status: str, reason: str = "") -> Object:
        def found() -> Object | None:
            condition = self.condition(name, kind)
            fits = condition.get("status") == status and (not reason or condition.get("reason") == reason)
            return condition if fits else None

        return self.wait(f"{kind}={status} {reason}", found)

    def passes(self) -> None:
        """Whatever KubeRay had to do because of earlier changes is done: a RayCluster that is newer has its pod.

        Needed before a test deletes pods, too: one that goes before KubeRay has looked again is looked for in vain,
        for 30 s and after that until something else happens, at worst the resync after 300 s.
        """
        name = f"marker-{next(NAMES)}"
        self.api.create(self.clusters(), raycluster(name))
        self.wait("the marker's head", lambda: self.pods(name))
        self.api.delete(self.clusters(name))

    def evidence(self) -> str:
        clusters = self.api.get(self.clusters())["items"]
        pods = self.api.get(self.path("pods"))["items"]
        events = self.api.get(self.path("events"))["items"]
        lines = [json.dumps({one["metadata"]["name"]: one.get("status")}, indent=1) for one in clusters]
        lines += [f"pod {pod['metadata']['name']} {pod['status'].get('phase')}" for pod in pods]
        lines += [f"event {one['type']} {one['reason']}: {one['message']}" for one in events]
        return "\n".join(lines)
