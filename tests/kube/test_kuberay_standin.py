"""What the stand-in does beyond KubeRay: pods that fail, Ray and its autoscaler, Serve in slots, dashboards."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import pytest
from bed.client import Object
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from kuberay.control import KubeRay, in_process
from kuberay.samples import application, autoscaled, group, raycluster, serve_config, template
from kuberay.standin import Pace
from kuberay_contract import World

SLOT = {"svp-m-a": "1"}


class Pipeline:
    """One RayCluster named c and what its head answers."""

    def __init__(self, kuberay: KubeRay, world: World) -> None:
        self.kuberay, self.world = kuberay, world
        self.token = ""

    def created(self, body: Object) -> Pipeline:
        self.world.api.create(self.world.clusters(), body)
        self.ip = self.kuberay.head_ip(self.world.namespace, "c")
        return self

    def call(self, method: str, path: str, port: int = 8265, **more: Any) -> httpx.Response:
        headers = {"X-Ray-Authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx.request(method, f"http://{self.ip}:{port}{path}", headers=headers, trust_env=False, **more)

    def put(self, *applications: Object) -> httpx.Response:
        return self.call("PUT", "/api/serve/applications/", json=serve_config(*applications))

    def applications(self) -> dict[str, Object]:
        found: dict[str, Object] = self.call("GET", "/api/serve/applications/").json()["applications"]
        return found

    def look(self) -> Object:
        return self.kuberay.look(self.world.namespace, "c")

    def wait(self, what: str, check: Any) -> Any:
        return wait_for(what, check, 30, lambda: f"{self.look()}\n{self.world.evidence()}")

    def running(self, *names: str) -> None:
        def all_running() -> bool:
            found = self.applications()
            return all(found[name]["status"] == "RUNNING" for name in names)

        self.wait(f"{names} RUNNING", all_running)

    def phases(self, kind: str) -> list[str]:
        return [pod["status"]["phase"] for pod in self.world.pods("c", kind)]


@pytest.fixture
def pipeline(kuberay: KubeRay, control_plane: ControlPlane, namespace: str) -> Pipeline:
    return Pipeline(kuberay, World(control_plane.api, namespace))


# -- pods


def test_pods_start_and_the_cluster_becomes_ready(pipeline: Pipeline) -> None:
    pipeline.created(raycluster("c", group("g", 2)))
    status = pipeline.wait("ready", lambda: (s := pipeline.world.status("c")).get("state") == "ready" and s)
    assert status["head"]["podIP"] == pipeline.ip
    assert status["readyWorkerReplicas"] == 2


def test_workers_wait_for_the_head(pipeline: Pipeline) -> None:
    world = pipeline.world
    pipeline.kuberay.pods(world.namespace, "c", "unschedulable", group="headgroup")
    world.given(raycluster("c", group("g", 1)))
    pipeline.wait("the worker to wait", lambda: world.pods("c", "g")[0]["status"].get("containerStatuses"))
    assert pipeline.phases("headgroup") == pipeline.phases("g") == ["Pending"]
    pipeline.kuberay.pods(world.namespace, "c", "ok")
    pipeline.wait("ready", lambda: world.status("c").get("state") == "ready")


@pytest.mark.parametrize("outcome", ["ImagePullBackOff", "ErrImagePull", "CrashLoopBackOff"])
def test_a_group_s_pods_go_wrong_and_recover(pipeline: Pipeline, outcome: Any) -> None:
    world = pipeline.world
    pipeline.kuberay.pods(world.namespace, "c", outcome, group="g")
    pipeline.created(raycluster("c", group("g", 1)))

    def reason() -> str:
        found = world.pods("c", "g")[0]["status"].get("containerStatuses") or [{"state": {}}]
        return str(found[0]["state"].get("waiting", {}).get("reason"))

    pipeline.wait(outcome, lambda: reason() == outcome)
    pipeline.kuberay.pods(world.namespace, "c", "ok", group="g")
    pipeline.wait("ready", lambda: world.status("c").get("state") == "ready")


def test_pods_that_crash_and_may_not_restart_are_made_again_and_again(pipeline: Pipeline) -> None:
    world = pipeline.world
    pipeline.kuberay.pods(world.namespace, "c", "crash", group="g")
    pipeline.created(autoscaled("c", group("g", 1, minReplicas=1)))
    seen: set[str] = set()
    pipeline.wait("a third pod", lambda: (seen.update(world.uids("c", "g")), len(seen) > 2)[1])


def test_a_head_waits_for_the_secret_with_its_token(pipeline: Pipeline) -> None:
    world = pipeline.world
    world.given(raycluster("c", authOptions={"mode": "token", "secretName": "mine"}))
    world.wait_condition("c", "HeadPodReady", "False", "CreateContainerConfigError")
    data = {"auth_token": base64.b64encode(b"secret").decode()}
    world.api.create(world.path("secrets"), {"metadata": {"name": "mine"}, "data": data})
    pipeline.ip = pipeline.kuberay.head_ip(world.namespace, "c")
    assert pipeline.call("GET", "/api/ray/version").status_code == 401
    pipeline.token = "wrong"
    assert pipeline.call("GET", "/api/ray/version").status_code == 403
    pipeline.token = "secret"
    assert pipeline.call("GET", "/api/ray/version").json()["ray_version"] == "2.60.0"
    pipeline.kuberay.ray_version(world.namespace, "c", "2.9.9")
    assert pipeline.call("GET", "/api/ray/version").json()["ray_version"] == "2.9.9"


# -- Serve and the autoscaler


def test_an_actor_starts_only_where_its_slot_is_and_the_autoscaler_brings_it(pipeline: Pipeline) -> None:
    pipeline.created(autoscaled("c", group("other", 1), group("m-a", 0, resources=SLOT)))
    assert pipeline.call("GET", "/api/serve/applications/").json()["controller_info"] == {}
    assert pipeline.put(application("m--1", "m-a", 2)).status_code == 200
    pipeline.running("m--1")
    groups = {one["groupName"]: one["replicas"] for one in pipeline.world.cluster("c")["spec"]["workerGroupSpecs"]}
    assert groups == {"other": 1, "m-a": 2}
    nodes = {replica["node"] for replica in pipeline.look()["applications"]["m--1"]["replicas"]}
    assert nodes == {pod["metadata"]["name"] for pod in pipeline.world.pods("c", "m-a")}
    shown = pipeline.applications()["m--1"]["deployments"]["node"]["replicas"]
    assert {one["node_ip"] for one in shown} == {p["status"]["podIP"] for p in pipeline.world.pods("c", "m-a")}


def test_no_room_up_to_the_maximum_means_waiting(pipeline: Pipeline) -> None:
    pipeline.created(autoscaled("c", group("m-a", 0, maxReplicas=1, resources=SLOT)))
    pipeline.put(application("m--1", "m-a", 2))
    pipeline.wait("one node", lambda: len(pipeline.look()["nodes"]) == 2)
    pipeline.wait("one of two", lambda: [r["state"] for r in replicas(pipeline, "m--1")].count("RUNNING") == 1)
    assert pipeline.look()["waiting"] == [{"CPU": 1.0, "svp-m-a": 1.0}]
    assert pipeline.applications()["m--1"]["status"] == "DEPLOYING"
    pipeline.world.json_patch("c", ("replace", "/spec/workerGroupSpecs/0/maxReplicas", 2))
    pipeline.running("m--1")


def test_cpus_count_not_only_slots(pipeline: Pipeline) -> None:
    pipeline.created(autoscaled("c", group("m-a", 0, resources={"svp-m-a": "100"}, template=template(cpu="2"))))
    pipeline.put(application("m--1", "m-a", 3))
    pipeline.running("m--1")
    assert len(pipeline.world.pods("c", "m-a")) == 2


def test_idle_pods_go_down_to_the_minimum_by_name(pipeline: Pipeline) -> None:
    options = {"version": "v2", "idleTimeoutSeconds": 5}
    body = autoscaled("c", group("m-a", 0, minReplicas=1, resources=SLOT))
    body["spec"]["autoscalerOptions"] = options
    pipeline.created(body)
    pipeline.put(application("m--1", "m-a", 3))
    pipeline.running("m--1")
    pipeline.put()
    pipeline.wait("one pod", lambda: len(pipeline.world.pods("c", "m-a")) == 1)
    (found,) = pipeline.world.cluster("c")["spec"]["workerGroupSpecs"]
    assert found["replicas"] == 1
    assert len(found["scaleStrategy"]["workersToDelete"]) == 2


def test_a_pod_that_is_deleted_takes_its_replica_and_both_come_back(pipeline: Pipeline) -> None:
    pipeline.created(autoscaled("c", group("m-a", 0, resources=SLOT)))
    pipeline.put(application("m--1", "m-a", 1))
    pipeline.running("m--1")
    (before,) = pipeline.world.pods("c", "m-a")
    pipeline.world.delete_pod(before)
    pipeline.wait(
        "another node", lambda: [r["node"] for r in replicas(pipeline, "m--1")] != [before["metadata"]["name"]]
    )
    pipeline.running("m--1")


def test_orphans_stop_the_autoscaler(pipeline: Pipeline) -> None:
    pipeline.created(autoscaled("c", group("m-a", 0, resources=SLOT), group("b", 1)))
    pipeline.wait("b's pod", lambda: pipeline.phases("b") == ["Running"])
    pipeline.world.json_patch("c", ("remove", "/spec/workerGroupSpecs/1"))
    pipeline.put(application("m--1", "m-a", 1))
    pipeline.wait("a demand", lambda: pipeline.look()["waiting"])
    # Were it at work, this replica would be first.
    pipeline.world.passes()
    assert pipeline.world.pods("c", "m-a") == []
    pipeline.world.delete_pod(pipeline.world.pods("c", "b")[0])
    pipeline.running("m--1")


def test_a_new_head_knows_nothing_and_ends_the_workers(pipeline: Pipeline) -> None:
    pipeline.created(autoscaled("c", group("m-a", 0, resources=SLOT)))
    pipeline.put(application("m--1", "m-a", 1))
    pipeline.running("m--1")
    old_ip, workers = pipeline.ip, pipeline.world.uids("c", "m-a")
    pipeline.world.delete_pod(pipeline.world.head("c"))
    pipeline.wait("another head", lambda: (pipeline.look()["head"] or {"ip": old_ip})["ip"] != old_ip)
    with pytest.raises(httpx.TransportError):
        pipeline.call("GET", "/api/ray/version")
    pipeline.ip = pipeline.kuberay.head_ip(pipeline.world.namespace, "c")
    assert pipeline.applications() == {}
    pipeline.wait("the workers to end", lambda: not workers & pipeline.world.uids("c", "m-a"))
    assert pipeline.kuberay.puts(pipeline.world.namespace, "c") == 1


def test_with_fault_tolerance_serve_outlives_the_head(pipeline: Pipeline) -> None:
    options = {"redisAddress": "redis:6379"}
    pipeline.created(autoscaled("c", group("m-a", 0, resources=SLOT), gcsFaultToleranceOptions=options))
    pipeline.put(application("m--1", "m-a", 1))
    pipeline.running("m--1")
    old_ip, workers = pipeline.ip, pipeline.world.uids("c", "m-a")
    pipeline.world.delete_pod(pipeline.world.head("c"))
    pipeline.wait("another head", lambda: (pipeline.look()["head"] or {"ip": old_ip})["ip"] != old_ip)
    pipeline.ip = pipeline.kuberay.head_ip(pipeline.world.namespace, "c")
    pipeline.running("m--1")
    assert pipeline.world.uids("c", "m-a") == workers


def test_a_pod_with_a_probe_of_serve_s_proxy_is_ready_while_it_has_a_replica(pipeline: Pipeline) -> None:
    probe = {"httpGet": {"path": "/-/healthz", "port": 8000}}
    pipeline.created(raycluster("c", group("m-a", 1, resources=SLOT, template=template(readinessProbe=probe))))
    pipeline.wait("a node", lambda: len(pipeline.look()["nodes"]) == 2)
    assert "readyWorkerReplicas" not in pipeline.world.status("c")
    pipeline.put(application("m--1", "m-a", 1))
    pipeline.wait("ready", lambda: pipeline.world.status("c").get("readyWorkerReplicas") == 1)
    (worker,) = pipeline.world.pods("c", "m-a")
    ip = worker["status"]["podIP"]
    assert httpx.get(f"http://{ip}:8000/-/healthz", trust_env=False).text == "success"
    pipeline.put()
    pipeline.wait("not ready", lambda: "readyWorkerReplicas" not in pipeline.world.status("c"))
    # A proxy without replicas drains before it stops to answer.
    url = f"http://{ip}:8000/-/healthz"
    pipeline.wait("no proxy", lambda: httpx.get(url, trust_env=False).status_code == 503)


def test_the_ingress_answers_through_its_pod(pipeline: Pipeline) -> None:
    table = {
        "table": "t1",
        "pipeline": "p",
        "graphRevision": "7",
        "graph": {},
        "nodes": {"m": {"routes": [{"revision": "1", "weight": 100}], "off": False}},
    }
    ingress = application("ingress", "in-a", route="/p")
    ingress["deployments"][0]["user_config"] = table
    slots = (group("m-a", 0, resources=SLOT), group("in-a", 0, resources={"svp-in-a": "1"}))
    pipeline.created(autoscaled("c", *slots))
    assert pipeline.call("GET", "/-/ready", 8000).status_code == 503
    pipeline.put(ingress)
    pipeline.running("ingress")
    pipeline.ip = pipeline.world.pods("c", "in-a")[0]["status"]["podIP"]
    ready = pipeline.call("GET", "/p/-/ready", 8000)
    assert (ready.status_code, ready.json()) == (503, {"ready": False, "notReady": ["m"]})
    assert pipeline.call("POST", "/p", 8000, json={}).status_code == 503
    pipeline.ip = pipeline.kuberay.head_ip(pipeline.world.namespace, "c")
    pipeline.put(ingress, application("m--1", "m-a"))
    pipeline.running("ingress", "m--1")
    assert pipeline.call("GET", "/p/-/ready", 8000).json() == {"ready": True, "notReady": []}
    acks = {ack["application"]: ack["table"] for ack in pipeline.call("GET", "/p/-/routing", 8000).json()["replicas"]}
    assert acks == {"ingress": "t1"}
    assert pipeline.call("GET", "/p/-/graph", 8000).json()["graphRevision"] == "7"
    assert pipeline.call("POST", "/p", 8000, json={}).json() == {"graphRevision": "7", "revisions": {"m": "1"}}


# -- dashboards


def test_puts_are_counted_and_kept(pipeline: Pipeline) -> None:
    pipeline.created(raycluster("c"))
    pipeline.put(application("m--1", "m-a"))
    assert pipeline.call("PUT", "/api/serve/applications/", content=b"{").status_code == 400
    twice = application("m--2", "m-a", route="/")
    assert pipeline.put(twice, {**twice, "name": "m--3"}).status_code == 400
    namespace = pipeline.world.namespace
    assert pipeline.kuberay.puts(namespace, "c") == 3
    first, unreadable, refused = pipeline.kuberay.last_puts(namespace, "c")
    assert (first.code, unreadable.code, refused.code) == (200, 400, 400)
    assert first.config["applications"][0]["name"] == "m--1"
    assert pipeline.kuberay.put_counts()[f"{namespace}/c"] == 3


def test_a_dashboard_hangs_refuses_and_fails_alone(pipeline: Pipeline) -> None:
    pipeline.created(raycluster("c"))
    namespace = pipeline.world.namespace
    pipeline.world.api.create(pipeline.world.clusters(), raycluster("d"))
    other = pipeline.kuberay.head_ip(namespace, "d")
    for mood, error in (("hang", httpx.ReadTimeout), ("refuse", httpx.ConnectError)):
        pipeline.kuberay.behave(namespace, "c", mood)  # type: ignore[arg-type]
        with pytest.raises(error):
            pipeline.call("GET", "/api/ray/version", timeout=0.5)
        assert httpx.get(f"http://{other}:8265/api/ray/version", trust_env=False).status_code == 200
    pipeline.kuberay.behave(namespace, "c", "error")
    assert pipeline.call("GET", "/api/ray/version").status_code == 500
    pipeline.kuberay.behave(namespace, "c", "slow", 0.3)
    assert pipeline.call("GET", "/api/ray/version").elapsed.total_seconds() > 0.3
    pipeline.kuberay.behave(namespace, "c", "ok")
    assert pipeline.call("GET", "/api/ray/version").status_code == 200


def test_while_the_controller_is_paused_nothing_is_made_and_dashboards_answer(pipeline: Pipeline) -> None:
    pipeline.created(raycluster("c", group("g", 0)))
    pipeline.kuberay.pause("controller")
    try:
        pipeline.world.scale("c", 0, 1)
        assert pipeline.call("GET", "/api/ray/version").status_code == 200
        assert pipeline.world.pods("c", "g") == []
    finally:
        pipeline.kuberay.resume()
    pipeline.world.wait_pods("c", 1, "g")


def test_a_namespace_can_be_left_out(kuberay: KubeRay, control_plane: ControlPlane, namespace: str) -> None:
    name = control_plane.create_namespace(f"{namespace[:40]}-out", {"kuberay-stand-in/controller": "off"})
    left, served = World(control_plane.api, name), World(control_plane.api, namespace)
    left.api.create(left.clusters(), raycluster("c"))
    served.passes()
    assert left.pods("c") == []
    control_plane.api.delete(f"/api/v1/namespaces/{name}")


def test_it_works_as_a_process_of_its_own(control_plane: ControlPlane, tmp_path: Path, namespace: str) -> None:
    outside = in_process(control_plane.kubeconfig, tmp_path, Pace(faster=20))
    try:
        assert outside.pid
        assert outside.puts(namespace, "c") == 0
        with pytest.raises(ValueError, match="mood 'sad'"):
            outside.behave(namespace, "c", "sad")  # type: ignore[arg-type]
    finally:
        outside.stop()


def replicas(pipeline: Pipeline, name: str) -> list[Object]:
    found: list[Object] = pipeline.look()["applications"].get(name, {"replicas": []})["replicas"]
    return found
