"""The end of a pipeline, and what keeps its objects from being made: said, and over when the cause goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from bed.client import RefusedError
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from kuberay.control import KubeRay
from operator_process import StartOperator
from pipelines import ENV
from scenes import RAYCLUSTERS, Outcome, Scenes, Stage, model

SCENES = Scenes()
Json = dict[str, Any]

SERVICES = "api/v1:services"
SECRETS = "api/v1:secrets"
PODS = "api/v1:pods"
POLICIES = "apis/networking.k8s.io/v1:networkpolicies"
PDBS = "apis/policy/v1:poddisruptionbudgets"
REVISIONS = "apis/apps/v1:controllerrevisions"
QUOTAS = "api/v1:resourcequotas"
ALL = (SERVICES, SECRETS, PODS, POLICIES, PDBS, RAYCLUSTERS)


def left(stage: Stage, name: str, uid: str) -> list[str]:
    """What there still is of a pipeline that was deleted."""
    found = [f"{kind} {one['metadata']['name']}" for kind in ALL for one in stage.children(kind, name)]
    history = stage.plane.api.get(stage.at(REVISIONS), labelSelector=f"servepipe.dev/pipeline-uid={uid}")["items"]
    return found + [one["metadata"]["name"] for one in history]


# --- Deletion ---------------------------------------------------------------------------------------------------------


@SCENES.add()
def everything_goes_with_the_pipeline(stage: Stage) -> None:
    name = "gone"
    uid = stage.ready(name, ingress={"replicas": 2})["metadata"]["uid"]
    assert len(left(stage, name, uid)) > 10
    stage.delete(name)
    stage.until("everything to be gone", lambda: not left(stage, name, uid))


@SCENES.add()
def a_pipeline_is_made_again_at_once_under_its_name(stage: Stage) -> None:
    name = "again"
    first = stage.ready(name)
    cluster = stage.cluster(name)
    for _ in range(2):
        stage.delete(name)
        stage.apply(stage.resource(name, {"m1": ["good"], "m2": ["good"]}))
    live = stage.wait_settled(name)
    assert live["metadata"]["uid"] != first["metadata"]["uid"]
    assert stage.cluster(name) != cluster
    stage.until("the first RayCluster to be gone", lambda: not stage.find(RAYCLUSTERS, cluster))
    owners = {one["metadata"]["ownerReferences"][0]["uid"] for kind in ALL[:2] for one in stage.children(kind, name)}
    assert live["metadata"]["uid"] in owners


@SCENES.add()
def what_is_left_of_a_former_pipeline_is_waited_for(stage: Stage) -> None:
    name = "held"
    stage.ready(name)
    held = ((SECRETS, "Secret", f"{name}-token"), (SERVICES, "Service", name))
    for resource, _, child in held:
        stage.plane.api.merge(stage.at(resource, child), {"metadata": {"finalizers": ["tests.example/hold"]}})
    stage.delete(name)
    stage.apply(stage.resource(name, {"m1": ["good"]}))
    for resource, kind, child in held:
        stage.told(name, "Ready", "False", "PreviousDeletionPending", f"{kind} {stage.namespace}/{child}", "finalizers")
        assert not stage.condition(stage.get(name), "Stalled"), "it goes by itself"
        stage.plane.api.merge(stage.at(resource, child), {"metadata": {"finalizers": None}})
    stage.wait_settled(name)


@SCENES.add(own=True)
def a_namespace_that_is_deleted_goes(stage: Stage) -> None:
    stage.ready("doomed")
    path = f"/api/v1/namespaces/{stage.namespace}"
    stage.plane.api.delete(path)
    # Kubernetes looks again at longer and longer intervals while something is left.
    stage.until("the namespace to be gone", lambda: stage.plane.api.find(path) is None, timeout=240)
    stage.operator.must_run()
    mine = [record for record in stage.operator.logs() if stage.namespace in record.get("pipeline", "")]
    assert not [record for record in mine if record["level"] in ("error", "critical")]


# --- Quotas -----------------------------------------------------------------------------------------------------------


def quota(stage: Stage, **hard: str) -> None:
    """Sets the namespace's quota and waits until it is enforced."""
    named = {key.replace("__", "/").replace("_", "."): value for key, value in hard.items()}
    path = stage.at(QUOTAS, "tight")
    if stage.plane.api.find(path) is None:
        stage.plane.api.create(stage.at(QUOTAS), {"metadata": {"name": "tight"}, "spec": {"hard": named}})
    else:
        stage.plane.api.merge(path, {"spec": {"hard": named}})
    stage.until("the quota", lambda: stage.plane.api.get(path).get("status", {}).get("hard") == named)


@SCENES.add(own=True)
def a_quota_without_room_for_our_objects(stage: Stage) -> None:
    name = "objects"
    quota(stage, secrets="0", count__networkpolicies_networking_k8s_io="0")
    stage.apply(stage.resource(name, {"m1": ["good"]}))
    stage.told(name, "Stalled", "True", "QuotaExceeded", "secrets", "tight", "raise the ResourceQuota")
    assert stage.conditions(stage.get(name))["Available"] != "True"
    quota(stage, secrets="9", count__networkpolicies_networking_k8s_io="0")
    # Nothing would keep other pods out of Ray's dashboard.
    stage.told(
        name, "Stalled", "True", "QuotaExceeded", "NetworkPolicy", "no pod is started", "raise the ResourceQuota"
    )
    assert stage.children(RAYCLUSTERS, name) == []
    assert stage.conditions(stage.get(name))["Ready"] == "False"
    quota(stage, secrets="9", count__networkpolicies_networking_k8s_io="9")
    stage.wait_settled(name)


@SCENES.add(own=True)
def a_policy_that_cannot_be_made_again_stops_nothing_that_runs(stage: Stage) -> None:
    name = "open"
    stage.ready(name)
    uid, before = stage.raycluster(name)["metadata"]["uid"], stage.replicas(name)
    policy = stage.cluster(name)
    with stage.callers(name):
        quota(stage, count__networkpolicies_networking_k8s_io="0")
        stage.plane.api.delete(stage.at(POLICIES, policy))
        stage.told(name, "Stalled", "True", "QuotaExceeded", f"NetworkPolicy {stage.namespace}/{policy}", "goes on")
        stage.looked(name)
        live = stage.get(name)
        assert (stage.conditions(live)["Available"], stage.conditions(live)["Ready"]) == ("True", "False")
        assert stage.raycluster(name)["metadata"]["uid"] == uid
        assert stage.replicas(name) == before
    # Suspended it is stopped, and does not start open to everybody.
    stage.patch(name, suspend=True)
    stage.until("the pods to be gone", lambda: not stage.pods(name), name=name)
    stage.patch(name, suspend=None)
    stage.told(name, "Stalled", "True", "QuotaExceeded", "no pod is started without it")
    assert stage.raycluster(name)["spec"]["suspend"]
    assert stage.pods(name) == []
    quota(stage, count__networkpolicies_networking_k8s_io="9")
    stage.wait_settled(name)
    assert stage.find(POLICIES, policy) is not None


@SCENES.add(own=True)
def a_quota_without_room_for_pods(stage: Stage) -> None:
    name = "pods"
    quota(stage, pods="1")
    stage.apply(stage.resource(name, {"m1": ["good"]}))
    stage.told(name, "Stalled", "True", "FailedCreateWorkerPod", "exceeded quota: tight")
    stage.told(name, "ClusterReady", "False", "FailedCreateWorkerPod", "KubeRay cannot make pods")
    quota(stage, pods="20")
    stage.wait_settled(name)


# --- Foreign objects --------------------------------------------------------------------------------------------------

FOREIGN: tuple[tuple[str, str, str, Json], ...] = (
    (SECRETS, "Secret", "taken-token", {"data": {"auth_token": "bWluZQ=="}}),
    (SERVICES, "Service", "taken", {"spec": {"ports": [{"port": 80}], "selector": {"app": "mine"}}}),
    (PDBS, "PodDisruptionBudget", "taken-ingress", {"spec": {"minAvailable": 5, "selector": {}}}),
)


@SCENES.add()
def what_has_a_childs_name_and_is_not_ours_is_left_alone(stage: Stage) -> None:
    name = "taken"
    made = {}
    for resource, _, child, body in FOREIGN:
        made[child] = stage.plane.api.create(stage.at(resource), {"metadata": {"name": child}, **body})
    stage.apply(stage.resource(name, {"m1": ["good"]}, ingress={"replicas": 2}))
    for resource, kind, child, _ in FOREIGN:
        stage.told(
            name, "Stalled", "True", "NameTaken", f"{kind} {stage.namespace}/{child}", "belongs to somebody else"
        )
        assert stage.conditions(stage.get(name))["Ready"] == "False"
        stage.looked(name, 5) if kind != "Secret" else None
        live = stage.find(resource, child)
        assert live is not None
        # The disruption controller writes the status of a budget.
        assert live["spec" if "spec" in live else "data"] == made[child]["spec" if "spec" in live else "data"]
        assert "ownerReferences" not in live["metadata"]
        stage.plane.api.delete(stage.at(resource, child))
    stage.wait_settled(name)


@SCENES.add()
def a_child_that_somebody_took_over_is_left_alone(stage: Stage) -> None:
    name = "lost"
    stage.ready(name)
    cluster = stage.cluster(name)
    taken = ((POLICIES, "NetworkPolicy", cluster), (POLICIES, "NetworkPolicy", f"{cluster}-ingress"))
    for resource, kind, child in (*taken, (RAYCLUSTERS, "RayCluster", cluster)):
        path = stage.at(resource, child)
        stage.plane.api.merge(path, {"metadata": {"ownerReferences": None}})
        stage.told(
            name, "Stalled", "True", "NameTaken", f"{kind} {stage.namespace}/{child}", "belongs to somebody else"
        )
        before = stage.plane.api.get(path)
        stage.told(name, "Ready", "False", "NameTaken")
        after = stage.plane.api.get(path)
        assert after["metadata"]["generation"] == before["metadata"]["generation"]
        assert "ownerReferences" not in after["metadata"]
        stage.plane.api.delete(path)
        stage.wait_settled(name)


# --- KubeRay ----------------------------------------------------------------------------------------------------------


@SCENES.add()
def a_raycluster_that_kuberay_refuses(stage: Stage) -> None:
    name = "invalid"
    template = {"spec": {"restartPolicy": "Always"}}
    stage.apply(stage.resource(name, {"m1": model("good")}, cluster={"head": {"template": template}}))
    stage.told(name, "Stalled", "True", "InvalidRayCluster", "restartPolicy for head Pod", "KubeRay refuses")
    stage.told(name, "ClusterReady", "False", "InvalidRayCluster")
    stage.patch(name, cluster=None)
    stage.wait_settled(name)


@SCENES.as_tests
def test_scene(outcome: Outcome) -> None:
    outcome()


# --- Alone, because they need an operator of their own or change the whole cluster ------------------------------------

SERVED = (
    ("", "services"),
    ("", "secrets"),
    ("", "pods"),
    ("", "events"),
    ("events.k8s.io", "events"),
    ("apps", "controllerrevisions"),
    ("networking.k8s.io", "networkpolicies"),
    ("policy", "poddisruptionbudgets"),
    ("ray.io", "rayclusters"),
    ("servepipe.dev", "servepipelines"),
    ("servepipe.dev", "servepipelines/status"),
    ("servepipe.dev", "servepipelines/finalizers"),
    ("coordination.k8s.io", "leases"),
)


def rules(**only: list[str]) -> list[Json]:
    """Everything that an operator may need; of the resources named, only these verbs."""
    return [{"apiGroups": [group], "resources": [name], "verbs": only.get(name, ["*"])} for group, name in SERVED]


def test_rights_that_are_revoked_and_given_back(
    control_plane: ControlPlane, kuberay: KubeRay, namespace: str, start_operator: StartOperator
) -> None:
    kubeconfig = control_plane.service_account(namespace, "operator", rules())
    role = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/{namespace}-operator"
    operator = start_operator(namespace, kubeconfig, namespaces=[namespace], env=ENV)
    operator.wait_ready()
    stage = Stage(control_plane, kuberay, namespace, operator)
    name = "rights"
    stage.ready(name)
    look = ["get", "list", "watch"]

    control_plane.api.merge(role, {"rules": rules(services=look)})
    wait_for_right(control_plane, kubeconfig, "create", "services", allowed=False)
    control_plane.api.delete(stage.at(SERVICES, name))
    stage.told(name, "Stalled", "True", "Forbidden", "services", "give the operator's Role that right")
    assert stage.conditions(stage.get(name))["Available"] == "False"
    control_plane.api.merge(role, {"rules": rules()})
    stage.wait_settled(name)

    control_plane.api.merge(role, {"rules": rules(pods=look)})
    wait_for_right(control_plane, kubeconfig, "create", "pods", allowed=False)
    stage.patch(name, nodes={"m1": {"args": ["good", 2]}})
    stage.told(name, "Stalled", "True", "Forbidden", 'cannot create resource "pods"')
    assert stage.condition(stage.get(name), "Accepted")["reason"] != "InvalidSpec"
    control_plane.api.merge(role, {"rules": rules()})
    stage.wait_settled(name)


def wait_for_right(plane: ControlPlane, kubeconfig: Any, verb: str, resource: str, *, allowed: bool) -> None:
    """Rights take a moment to come into force."""

    def answer() -> bool:
        done = plane.kubectl("auth", "can-i", verb, resource, kubeconfig=kubeconfig, check=False)
        return (done.stdout.strip() == "yes") is allowed

    wait_for(f"{verb} {resource} to be {'allowed' if allowed else 'refused'}", answer)


CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/rayclusters.ray.io"


@pytest.fixture
def without_kuberay(control_plane: ControlPlane) -> Iterator[None]:
    """The API server does not serve RayClusters; what there is of them stays."""
    serve(control_plane, served=False)
    yield
    serve(control_plane, served=True)


def serve(plane: ControlPlane, *, served: bool) -> None:
    versions = plane.api.get(CRD)["spec"]["versions"]
    plane.api.merge(CRD, {"spec": {"versions": [{**one, "served": served} for one in versions]}})

    def done() -> bool:
        try:
            return (plane.api.find("/apis/ray.io/v1/rayclusters") is not None) is served
        except RefusedError as refused:
            if refused.code in (429, 503):
                return False
            raise

    wait_for(f"RayClusters to be {'served' if served else 'unknown'}", done)


def test_kuberay_that_is_installed_later(
    control_plane: ControlPlane,
    kuberay: KubeRay,
    namespace: str,
    without_kuberay: None,
    start_operator: StartOperator,
) -> None:
    operator = start_operator(namespace, namespaces=[namespace], env=ENV)
    operator.wait_for_message("^watching ")
    stage = Stage(control_plane, kuberay, namespace, operator)
    name = "early"
    stage.apply(stage.resource(name, {"m1": ["good"]}))
    stage.told(name, "Stalled", "True", "KubeRayMissing", "install KubeRay")
    serve(control_plane, served=True)
    stage.wait_settled(name)
