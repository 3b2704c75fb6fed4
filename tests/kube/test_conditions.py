"""What goes wrong around a pipeline is said in its conditions, and over when the cause goes."""

from __future__ import annotations

from typing import Any

from scenes import Outcome, Scenes, Stage, model

SCENES = Scenes()
Json = dict[str, Any]

OUTCOME = "kuberay-stand-in/outcome"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def going(outcome: str) -> Json:
    """A pod template whose pods go like that."""
    return {"metadata": {"annotations": {OUTCOME: outcome}}}


# --- Pods -------------------------------------------------------------------------------------------------------------


@SCENES.add()
def the_heads_image_cannot_be_pulled(stage: Stage) -> None:
    name = "head-image"
    head = {"template": going("ImagePullBackOff")}
    stage.apply(stage.resource(name, {"m1": model("good")}, cluster={"head": head}, progressDeadlineSeconds=4))
    stage.told(name, "ClusterReady", "False", "HeadPodNotReady", "cannot pull its image servepipe/runtime")
    stage.told(name, "Available", "False", "IngressNotReady")
    stage.told(name, "Stalled", "True", "ProgressDeadlineExceeded", "cannot pull its image")
    stage.patch(name, cluster=None, progressDeadlineSeconds=None)
    stage.wait_settled(name)


@SCENES.add()
def a_workers_image_cannot_be_pulled(stage: Stage) -> None:
    name = "worker-image"
    stage.ready(name, {"m1": model("good"), "m2": model("good")})
    before = stage.replicas(name)
    with stage.callers(name):
        wrong = {"image": "shop/m1:none", "template": going("ImagePullBackOff"), "progressDeadlineSeconds": 5}
        stage.patch(name, nodes={"m1": wrong})
        stage.told(name, "ClusterReady", "False", "PodsNotReady", "m1-a", "cannot pull its image shop/m1:none")
        stage.told(name, "Stalled", "True", "ProgressDeadlineExceeded", "m1", "cannot pull its image")
        live = stage.get(name)
        assert stage.conditions(live)["Available"] == "True"
        assert {app: stage.replicas(name)[app] for app in before} == before
        stage.patch(name, nodes={"m1": dict.fromkeys(wrong)})
        stage.wait_settled(name)
    # What was given up takes a moment to end after it was taken out.
    stage.until("only the old replicas", lambda: stage.replicas(name) == before, name=name)


@SCENES.add()
def workers_cannot_be_scheduled(stage: Stage) -> None:
    name = "unschedulable"
    m1 = model("good", template=going("unschedulable"), progressDeadlineSeconds=4)
    stage.apply(stage.resource(name, {"m1": m1}))
    stage.told(name, "ClusterReady", "False", "PodsNotReady", "m1-a", "nodes are available")
    stage.told(name, "Reconciling", "True", "InsufficientCapacity", "m1-a", "nodes are available")
    stage.looked(name, 30)
    live = stage.get(name)
    assert not stage.condition(live, "Stalled"), "what waits for room is not given up"
    assert live["status"]["nodes"]["m1"]["candidate"]["reason"] == "InsufficientCapacity"
    stage.patch(name, nodes={"m1": {"template": None, "progressDeadlineSeconds": None}})
    stage.wait_settled(name)


@SCENES.add()
def the_head_cannot_be_scheduled(stage: Stage) -> None:
    name = "no-room-for-head"
    stage.ready(name)
    cluster = stage.cluster(name)
    stage.kuberay.pods(stage.namespace, cluster, "unschedulable", group="headgroup")
    stage.end_head(name)
    stage.told(name, "ClusterReady", "False", "HeadPodNotReady", "nodes are available")
    stage.kuberay.pods(stage.namespace, cluster, "ok", group="headgroup")
    stage.wait_settled(name)


# --- Ray's version ----------------------------------------------------------------------------------------------------


@SCENES.add()
def ray_in_the_image_is_of_another_version(stage: Stage) -> None:
    name = "other-ray"
    stage.ready(name)
    cluster = stage.cluster(name)
    stage.kuberay.ray_version(stage.namespace, cluster, "2.59.1")
    stage.end_head(name)
    stage.told(name, "Stalled", "True", "RayVersionMismatch", "2.59.1", "2.60.0", "image")
    stage.kuberay.ray_version(stage.namespace, cluster, "")
    stage.end_head(name)
    stage.wait_settled(name)


@SCENES.add()
def a_version_of_ray_that_is_too_old_is_refused(stage: Stage) -> None:
    name = "old-ray"
    stage.apply(stage.resource(name, {"m1": model("good")}, rayVersion="2.51.0"))
    stage.told(name, "Accepted", "False", "InvalidSpec", "spec.rayVersion", "2.52")
    assert stage.conditions(stage.get(name))["Ready"] != "True"
    stage.patch(name, rayVersion=None)
    stage.wait_settled(name)


# --- Templates --------------------------------------------------------------------------------------------------------


@SCENES.add()
def a_template_that_the_api_server_refuses(stage: Stage) -> None:
    name = "template"
    stage.ready(name)
    before = stage.replicas(name)
    port = {"name": "Not_A_Port_Name", "containerPort": 9000}
    wrong = {"spec": {"containers": [{"name": "ray-worker", "ports": [port]}]}}
    stage.patch(name, nodes={"m1": {"template": wrong}})
    stage.told(name, "Accepted", "False", "InvalidSpec", "spec.nodes.m1", "Not_A_Port_Name", "goes on serving")
    assert stage.conditions(stage.get(name))["Available"] == "True"
    stage.patch(name, nodes={"m1": {"template": None}})
    stage.wait_settled(name)
    assert stage.replicas(name) == before


@SCENES.add()
def what_a_template_removes_is_in_no_pod(stage: Stage) -> None:
    name = "removes"
    template = {"spec": {"securityContext": {"runAsUser": {"$null": True}}}}
    m1 = model("good", template=template)
    parts = {"ingress": {"template": template}, "cluster": {"head": {"template": template}}}
    stage.ready(name, {"m1": m1}, **parts)
    pods = stage.pods(name)
    assert len(pods) >= 3
    for pod in pods:
        security = pod["spec"]["securityContext"]
        assert ("runAsUser" in security, security["runAsNonRoot"]) == (False, True), pod["metadata"]["name"]
    before = stage.replicas(name)
    nulls = {"spec": {"securityContext": {"runAsUser": None}}}
    live = stage.get(name)
    spec = {**live["spec"], "nodes": {"m1": {**live["spec"]["nodes"]["m1"], "template": nulls}}}
    stage.plane.api.replace(stage.at("apis/servepipe.dev/v1alpha1:servepipelines", name), {**live, "spec": spec})
    stage.wait_settled(name)
    assert stage.replicas(name) == before, "another way to write the same is no change"


@SCENES.add()
def a_service_account_that_does_not_exist(stage: Stage) -> None:
    name = "account"
    stage.apply(stage.resource(name, {"m1": model("good")}, serviceAccountName="model-reader"))
    stage.told(name, "Accepted", "False", "InvalidSpec", "serviceaccount", "model-reader")
    account = {"metadata": {"name": "model-reader"}}
    stage.plane.api.create(stage.at("api/v1:serviceaccounts"), account)
    stage.wait_settled(name)


@SCENES.add(own=RESTRICTED)
def a_namespace_that_enforces_restricted_pods(stage: Stage) -> None:
    name = "restricted"
    stage.ready(name)
    stage.patch(name, nodes={"m1": {"template": {"spec": {"hostNetwork": True}}}})
    stage.told(name, "Accepted", "False", "InvalidSpec", "spec.nodes.m1", "PodSecurity", "restricted", "hostNetwork")
    assert stage.conditions(stage.get(name))["Available"] == "True"
    stage.patch(name, nodes={"m1": {"template": None}})
    stage.wait_settled(name)


# --- A second RayCluster ----------------------------------------------------------------------------------------------

REPLACED = {
    "spec.rayVersion": ({"rayVersion": "2.61.0"}, {"rayVersion": None}),
    "spec.cluster.head": (
        {"cluster": {"head": {"template": {"metadata": {"annotations": {"team": "shop"}}}}}},
        {"cluster": None},
    ),
    "spec.cluster.head resources": ({"cluster": {"head": {"resources": {"cpu": "3"}}}}, {"cluster": None}),
    "spec.cluster.head image": ({"cluster": {"head": {"image": "shop/head:2"}}}, {"cluster": None}),
    "spec.ingress.grpc": ({"ingress": {"grpc": {}}}, {"ingress": None}),
    "spec.cluster.gcsFaultTolerance": (
        {"cluster": {"gcsFaultTolerance": {"redisAddress": "redis:6379"}}},
        {"cluster": None},
    ),
}


@SCENES.add()
def what_needs_a_second_raycluster_is_refused(stage: Stage) -> None:
    name = "second"
    stage.ready(name)
    cluster, replicas = stage.raycluster(name), stage.replicas(name)
    with stage.callers(name):
        for field, (change, back) in REPLACED.items():
            stage.patch(name, **change)
            where = field.split()[0]
            stage.told(name, "Stalled", "True", "ClusterReplacementRequired", where, "second RayCluster")
            stage.told(name, "Accepted", "False", "ClusterReplacementRequired", where, "goes on serving")
            assert stage.conditions(stage.get(name))["Available"] == "True", field
            stage.patch(name, **back)
            stage.wait_settled(name)
    assert stage.replicas(name) == replicas
    assert stage.raycluster(name)["metadata"]["generation"] == cluster["metadata"]["generation"]


@SCENES.as_tests
def test_scene(outcome: Outcome) -> None:
    outcome()
