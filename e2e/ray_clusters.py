"""RayClusters as the operator writes them, with code of the test in their pods, and their dashboards."""

from __future__ import annotations

import secrets
from typing import Any

import httpx
from images.plan import locked_version
from kuberay_contract import World
from small_specs import make_spec

from servepipe_operator.engine.pools import Wanted, assign
from servepipe_operator.engine.wishes import node_wish
from servepipe_operator.objects.names import Owner
from servepipe_operator.objects.raycluster import raycluster

Object = dict[str, Any]

RAY_VERSION = locked_version("ray")
CODE = "code"
#: One deployment of Ray Serve that says in which pod it is. The head imports it too, when it builds the application.
MODULE = """\
import socket

from ray import serve


@serve.deployment
class Answer:
    def __call__(self, request) -> str:
        return socket.gethostname()


app = Answer.bind()
"""
#: The group of the node below, and the resource that its pods offer to Ray.
GROUP, SLOT = "m1-a", "svp-m1-a"
IDLE_S = 15
SMALL = {"cpu": "100m", "memory": "1Gi"}
HEAD = {"cpu": "300m", "memory": "2Gi"}


class RayCluster:
    """One RayCluster in the namespace of ``world``: its head, and a group of pods that starts with none.

    Args:
        image: Of all its pods.
        more: Fields of the pipeline's ``spec.cluster``.
    """

    def __init__(self, world: World, name: str, image: str, **more: Any) -> None:
        self.world, self.name = world, name
        self.token = secrets.token_urlsafe(24)
        self._secret, self._code = f"{name}-token", f"{name}-code"
        self._body = self._made(image, more)

    def create(self) -> None:
        """With the Secret and the ConfigMap that it names."""
        world = self.world
        world.api.create(world.path("secrets"), _named(self._secret, stringData={"auth_token": self.token}))
        world.api.create(world.path("configmaps"), _named(self._code, data={"answer.py": MODULE}))
        world.api.create(world.clusters(), self._body)

    def delete(self) -> None:
        world = self.world
        world.api.delete(world.clusters(self.name))
        world.wait(f"the end of {self.name}", lambda: world.find(world.clusters(self.name)) is None, 180)
        for path in (world.path("secrets", self._secret), world.path("configmaps", self._code)):
            world.api.delete(path)

    # -- the head

    def head_ip(self, but: str = "", timeout: float = 180.0) -> str:
        """Of the head, once it is ready.

        Args:
            but: The uid of a former head.
        """

        def ready() -> str:
            pods = [pod for pod in self.world.pods(self.name, "headgroup") if pod["metadata"]["uid"] != but]
            ip: str = pods[0]["status"]["podIP"] if pods and is_ready(pods[0]) else ""
            return ip

        ip: str = self.world.wait("a head that is ready", ready, timeout)
        return ip

    def ask(self, ip: str, method: str, path: str, body: Object | None = None, token: str | None = None) -> Any:
        """The dashboard's answer; without a header where ``token`` is ""."""
        token = self.token if token is None else token
        headers = {"X-Ray-Authorization": f"Bearer {token}"} if token else {}
        return httpx.request(method, f"http://{ip}:8265{path}", json=body, headers=headers, timeout=60, trust_env=False)

    def put(self, ip: str, replicas: int = 1) -> None:
        """One application with so many replicas, each on a pod of the group; none with 0."""
        options = {"num_cpus": 0.1, "resources": {SLOT: 1}}
        deployment = {"name": "Answer", "num_replicas": replicas, "ray_actor_options": options}
        application = {"name": "answer", "route_prefix": "/", "import_path": "answer:app", "deployments": [deployment]}
        config = {"proxy_location": "EveryNode", "applications": [application] if replicas else []}
        answer = self.ask(ip, "PUT", "/api/serve/applications/", config)
        assert answer.status_code == 200, answer.text

    def applications(self, ip: str) -> dict[str, str]:
        """Their status by name."""
        answer = self.ask(ip, "GET", "/api/serve/applications/")
        assert answer.status_code == 200, answer.text
        return {name: one["status"] for name, one in answer.json()["applications"].items()}

    def wait_running(self, ip: str, timeout: float = 180.0) -> None:
        self.world.wait("the application to run", lambda: self.applications(ip).get("answer") == "RUNNING", timeout)

    # -- workers

    def workers(self) -> list[Object]:
        return self.world.pods(self.name, GROUP)

    def group(self) -> Object:
        """As it stands in the RayCluster now."""
        groups = self.world.cluster(self.name)["spec"]["workerGroupSpecs"]
        found: Object = next(one for one in groups if one["groupName"] == GROUP)
        return found

    def answer(self, pod: Object, timeout: float = 60.0) -> str:
        """What Serve answers on a pod's own port; its proxy comes some moments after its first replica."""

        def asked() -> str:
            try:
                got = httpx.get(f"http://{pod['status']['podIP']}:8000/", timeout=5, trust_env=False)
            except httpx.TransportError:
                return ""
            return got.text if got.status_code == 200 else ""

        text: str = self.world.wait(f"an answer of {pod['metadata']['name']}", asked, timeout)
        return text

    def _made(self, image: str, more: Object) -> Object:
        env = [{"name": "PYTHONPATH", "value": f"/{CODE}"}]
        source = {"configMap": {"name": self._code}}
        mounts = [{"name": CODE, "mountPath": f"/{CODE}"}]
        container = {"name": "ray-head", "env": env, "volumeMounts": mounts}
        head_pod = {"spec": {"volumes": [{"name": CODE, **source}], "containers": [container]}}
        node = {"resources": SMALL, "env": env, "volumes": [{**mounts[0], "source": source}]}
        spec = make_spec(image=image, cluster={"head": {"resources": HEAD, "template": head_pod}, **more}, node=node)
        wish = node_wish("m1", {"image": image, **node}, spec, spec.image)
        slots = assign([Wanted("m1--a", wish, high=3)], []).slots
        owner = Owner("answer", self.world.namespace, "no-uid", "main")
        body = raycluster(owner, self.name, spec, RAY_VERSION, image, self._secret, slots, False)
        # Tests need not wait for Ray's 60 s.
        body["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] = IDLE_S
        # No pipeline owns it.
        del body["metadata"]["ownerReferences"]
        (group,) = body["spec"]["workerGroupSpecs"]
        assert (group["groupName"], group["resources"]) == (GROUP, {SLOT: "1"})
        return body


def is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _named(name: str, **content: Any) -> Object:
    return {"metadata": {"name": name}, **content}
