"""Scenes: tests of one module that run beside each other, because most of their time is waiting.

A scene is a function with a `Stage`, registered under its name in the module's `Scenes`. All scenes of a module that
are going to be asked for start together, on one operator, as soon as the first is; each is a test of its own::

    SCENES = Scenes()

    @SCENES.add()
    def nodes_are_renamed(stage: Stage) -> None: ...

    @SCENES.as_tests
    def test_scene(outcome: Outcome) -> None:
        outcome()
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from bed.client import RefusedError
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from chart import Accounts
from kuberay.control import KubeRay
from operator_process import OperatorProcess
from pipelines import ENV, Pipelines

Json = dict[str, Any]
Outcome = Callable[[], None]

#: More would only make the deadlines of each other's waits tight on two cores.
AT_ONCE = 8
SCENE_S = 150.0
#: Nobody wants the Lease here, and nothing is to be lost because the machine is busy.
PATIENT = {
    "SERVEPIPE_LEASE_DURATION_S": "60",
    "SERVEPIPE_LEASE_MARGIN_S": "10",
    "SERVEPIPE_LEASE_RENEW_S": "5",
    "SERVEPIPE_LEASE_RETRY_S": "1",
    "SERVEPIPE_API_TIMEOUT_S": "8",
    "SERVEPIPE_RESYNC_S": "20",
}
RAYCLUSTERS = "apis/ray.io/v1:rayclusters"


def model(*args: Any, **fields: Any) -> Json:
    """A node; its first argument says how it behaves in the simulated Serve."""
    return {"import": "models:Model", "args": list(args), **fields}


class Stage(Pipelines):
    """What a scene may use: `Pipelines` in the scenes' namespace, or in one of its own."""

    # -- objects

    def find(self, resource: str, name: str) -> Json | None:
        """Any object of the namespace; ``resource`` like ``apis/ray.io/v1:rayclusters``."""
        return self.plane.api.find(self.at(resource, name))

    def at(self, resource: str, name: str = "") -> str:
        """The path of an object, or of all."""
        prefix, plural = resource.split(":")
        return f"/{prefix}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def raycluster(self, name: str) -> Json:
        """That of a pipeline, as its status names it."""
        found = self.find(RAYCLUSTERS, self.cluster(name))
        assert found is not None
        return found

    def pods(self, name: str) -> list[Json]:
        """All pods of a pipeline."""
        return self.children("api/v1:pods", name)

    def end_head(self, name: str) -> None:
        """The head's pod is deleted; KubeRay makes another one."""
        cluster = self.cluster(name)
        for pod in self.pods(name):
            labels = pod["metadata"]["labels"]
            if (labels.get("ray.io/cluster"), labels.get("ray.io/node-type")) == (cluster, "head"):
                self.plane.api.delete(self.at("api/v1:pods", pod["metadata"]["name"]))

    def events(self, name: str) -> list[tuple[str, str]]:
        """Reason and note of what was told about a pipeline, oldest first."""
        found = self.plane.api.get(self.at("apis/events.k8s.io/v1:events"))["items"]
        mine = [one for one in found if one["regarding"].get("name") == name]
        mine = [one for one in mine if one["regarding"].get("kind") == "ServePipeline"]
        return [(one["reason"], one["note"]) for one in sorted(mine, key=lambda one: one["eventTime"])]

    # -- Serve

    def serve(self, name: str) -> Json:
        """The applications that Serve has, by name."""
        applications: Json = self.kuberay.look(self.namespace, self.cluster(name))["applications"]
        return applications

    def replicas(self, name: str) -> dict[str, frozenset[str]]:
        """The ids of the replicas of each application; what was taken out takes a moment to end, and does not count."""
        return {
            app: frozenset(one["id"] for one in found["replicas"])
            for app, found in self.serve(name).items()
            if not found["deleting"]
        }

    # -- waiting

    def ready(self, name: str, nodes: Json | None = None, **spec: Any) -> Json:
        """Apply a pipeline and wait until it is ready and nothing moves any more."""
        self.apply(self.resource(name, nodes or {"m1": ["good"], "m2": ["good"]}, **spec))
        return self.wait_settled(name)

    def until(self, what: str, check: Callable[[], Any], timeout: float = 180.0, name: str = "") -> Any:
        """What ``check`` returns, once it is true."""
        tell = (lambda: self._tell(name)) if name else self.operator.tail
        return wait_for(f"{what} {name}".strip(), check, timeout, tell, pause=0.1)

    def told(self, name: str, kind: str, status: str, reason: str, *words: str, timeout: float = 120.0) -> str:
        """The message of a condition with this status and reason, once it has ``words`` in it."""

        def check(live: Json) -> bool:
            one = self.condition(live, kind)
            said = (one.get("status"), one.get("reason")) == (status, reason)
            return said and all(word in one["message"] for word in words)

        live = self.wait_until(f"{kind}={status} {reason} with {words}", name, check, timeout)
        return str(self.condition(live, kind)["message"])

    def looked(self, name: str, times: int = 5, timeout: float = 180.0) -> None:
        """Wait until the operator has asked the pipeline's dashboard so often again."""
        cluster = self.cluster(name)
        before = self.kuberay.look(self.namespace, cluster)["gets"]

        def asked() -> bool:
            return bool(self.kuberay.look(self.namespace, cluster)["gets"] >= before + times)

        self.until(f"{times} looks at", asked, timeout, name)

    @contextlib.contextmanager
    def callers(self, name: str) -> Iterator[Callers]:
        """Requests to the ingress pods all the while; at the end none of them may have failed."""
        callers = Callers(self, name)
        with callers:
            yield callers
        assert not callers.failed, f"{len(callers.failed)} of {callers.sent} requests: {callers.failed[:3]}"
        assert callers.sent > 10, f"only {callers.sent} requests were sent"

    def versions(self, first: Json) -> list[Json]:
        """Every version of a RayCluster from ``first`` on; the API server remembers those of the last minute."""
        metadata = first["metadata"]
        answer = self.plane.api.text(
            f"{self.at(RAYCLUSTERS)}?watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3D{metadata['name']}"
            f"&resourceVersion={metadata['resourceVersion']}"
        )
        events = [json.loads(line) for line in answer.splitlines()]
        assert all(event["type"] == "MODIFIED" for event in events), [event["type"] for event in events]
        return [first, *(event["object"] for event in events)]


class Callers:
    """A client that does as kube-proxy does: it takes a ready pod of the Service's endpoints."""

    PAUSE_S = 0.05

    def __init__(self, stage: Stage, name: str) -> None:
        self._stage, self._name = stage, name
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"callers of {name}", daemon=True)
        self.sent = 0
        self.failed: list[str] = []
        self.last: Json = {}

    def __enter__(self) -> Callers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(30)

    def _endpoints(self) -> list[str]:
        found = self._stage.find("api/v1:services", self._name)
        if found is None:
            return []
        selector = ",".join(f"{key}={value}" for key, value in found["spec"]["selector"].items())
        pods = self._stage.plane.api.get(self._stage.at("api/v1:pods"), labelSelector=selector)["items"]
        return [pod["status"]["podIP"] for pod in pods if _is_ready(pod)]

    def _run(self) -> None:
        with httpx.Client(trust_env=False, timeout=10) as http:
            while not self._end.wait(self.PAUSE_S):
                try:
                    self._call(http)
                except Exception as error:
                    self.failed.append(f"{type(error).__name__}: {error}")

    def _call(self, http: httpx.Client) -> None:
        self.sent += 1
        refused = ""
        # A pod that goes between the list and the call is not in the endpoints any more: the next list says so.
        for _ in range(5):
            addresses = self._endpoints()
            try:
                answer = http.get(f"http://{addresses[self.sent % len(addresses)]}:8000/") if addresses else None
            except httpx.TransportError as error:
                refused = str(error)
                continue
            if answer is None:
                self.failed.append("no ready pod behind the Service")
            elif answer.status_code != 200:
                self.failed.append(f"{answer.status_code}: {answer.text[:200]}")
            else:
                self.last = answer.json()
            return
        self.failed.append(f"refused: {refused}")


def _is_ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


# --- Running them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Args:
    own: It has a namespace of its own, with these labels; None: that of all.
    """

    play: Callable[[Stage], None]
    own: dict[str, str] | None

    @property
    def name(self) -> str:
        return self.play.__name__


class Scenes:
    """The scenes of one module."""

    def __init__(self) -> None:
        self._scenes: list[Scene] = []

    def add(self, own: dict[str, str] | bool = False) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
        """Register a scene.

        Args:
            own: Whether it needs a namespace of its own; a dict has its labels.
        """

        def register(play: Callable[[Stage], None]) -> Callable[[Stage], None]:
            labels = own if isinstance(own, dict) else {} if own else None
            self._scenes.append(Scene(play, labels))
            return play

        return register

    def as_tests(self, test: Callable[..., None]) -> Callable[..., None]:
        """Makes ``test`` one test for each scene."""
        parametrized: Callable[..., None] = pytest.mark.parametrize(
            "outcome", self._scenes, ids=lambda scene: scene.name, indirect=True
        )(test)
        return parametrized


class Theatre:
    """An operator for the scenes of one module, and those that are on.

    Args:
        name: Of the operator's namespace, and the begin of the others.
    """

    def __init__(
        self, plane: ControlPlane, kuberay: KubeRay, accounts: Accounts, folder: Path, name: str, scenes: list[Scene]
    ) -> None:
        self._plane, self._kuberay = plane, kuberay
        home = plane.create_namespace(name)
        own = {scene.name: f"{name}-{at}" for at, scene in enumerate(scenes) if scene.own is not None}
        self._namespaces = [home, *own.values()]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            labelled = [(own[scene.name], scene.own) for scene in scenes if scene.own is not None]
            list(pool.map(lambda one: plane.create_namespace(*one), labelled))
        account = accounts.of(home, name, self._namespaces)
        self._operator = OperatorProcess(
            folder,
            account.kubeconfig,
            home,
            namespaces=self._namespaces,
            env=ENV | PATIENT,
            instance=name,
            user=account.user,
        )
        self._operator.start()
        self._operator.wait_ready()
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="scene")
        self._running: dict[str, Future[None]] = {
            scene.name: self._pool.submit(scene.play, Stage(plane, kuberay, own.get(scene.name, home), self._operator))
            for scene in scenes
        }

    def outcome(self, scene: Scene) -> None:
        """Waits for the end of a scene; raises what it raised."""
        self._running[scene.name].result(SCENE_S)

    def close(self) -> None:
        """What has not begun does not begin any more; what is on finds no operator."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._operator.kill()
        for namespace in self._namespaces:
            with contextlib.suppress(RefusedError):  # a scene may have deleted it
                self._plane.api.delete(f"/api/v1/namespaces/{namespace}")
        self._pool.shutdown()
