"""KubeRay's contract, part 1: what it makes of a RayCluster.

Each test is a row: given this RayCluster, then these objects. All parts run on the stand-in, and on KubeRay itself
where KUBERAY_KUBECONFIG names a cluster without nodes in which it works; see `kuberay_contract`.
"""

from __future__ import annotations

import base64

from kuberay.samples import autoscaled, group, raycluster, template
from kuberay_contract import Object, World

PORTS = {"client": 10001, "gcs-server": 6379, "dashboard": 8265, "metrics": 8080, "serve": 8000}


def ports(service: Object) -> dict[str, int]:
    return {port["name"]: port["port"] for port in service["spec"]["ports"]}


def head_with(**container: object) -> Object:
    return {"rayStartParams": {}, "template": template(**container)}


def env(pod: Object, container: int = 0) -> dict[str, Object]:
    return {one["name"]: one for one in pod["spec"]["containers"][container]["env"]}


def command(pod: Object) -> str:
    return str(env(pod)["KUBERAY_GEN_RAY_START_CMD"]["value"])


# -- Services


def test_the_head_service_is_headless_and_shows_heads_that_are_not_ready(world: World) -> None:
    world.given(raycluster("c"))
    service = world.service("c-head-svc")["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    assert service["selector"].items() >= {"ray.io/cluster": "c", "ray.io/node-type": "head"}.items()


def test_a_head_without_ports_gets_ray_s_five(world: World) -> None:
    world.given(raycluster("c"))
    assert ports(world.service("c-head-svc")) == PORTS


def test_a_head_with_ports_gets_only_those_and_metrics(world: World) -> None:
    listed = [{"name": "dashboard", "containerPort": 9000}]
    world.given(raycluster("c", headGroupSpec=head_with(ports=listed)))
    assert ports(world.service("c-head-svc")) == {"dashboard": 9000, "metrics": 8080}


def test_the_head_service_may_have_another_name_which_status_tells(world: World) -> None:
    head = {**head_with(), "headService": {"metadata": {"name": "mine"}, "spec": {}}}
    world.given(raycluster("c", headGroupSpec=head))
    world.service("mine")
    world.wait("serviceName", lambda: world.status("c").get("head", {}).get("serviceName") == "mine")
    assert world.find(world.path("services", "c-head-svc")) is None


def test_no_serve_service_without_its_annotation(world: World) -> None:
    world.given(raycluster("c"))
    assert world.find(world.path("services", "c-serve-svc")) is None


def test_the_serve_service_of_a_bare_cluster_selects_all_its_pods(world: World) -> None:
    world.given(raycluster("c", metadata={"annotations": {"ray.io/enable-serve-service": "true"}}))
    service = world.service("c-serve-svc")
    assert service["spec"]["selector"] == {"ray.io/cluster": "c"}
    assert ports(service) == {"serve": 8000}


def test_a_serve_service_without_a_port_for_it_keeps_all_pods_away(world: World) -> None:
    head = head_with(ports=[{"name": "dashboard", "containerPort": 8265}])
    annotations = {"ray.io/enable-serve-service": "true"}
    world.given(raycluster("c", headGroupSpec=head, metadata={"annotations": annotations}), made=0)
    world.service("c-head-svc")
    world.passes()
    assert world.pods("c") == []


# -- pods


def test_pods_are_named_and_labelled(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    (worker,) = world.pods("c", "g")
    head = world.head("c")
    common = {
        "ray.io/is-ray-node": "yes",
        "ray.io/cluster": "c",
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    heads = {"ray.io/node-type": "head", "ray.io/group": "headgroup", "ray.io/identifier": "c-head"}
    workers = {"ray.io/node-type": "worker", "ray.io/group": "g", "ray.io/identifier": "c-worker"}
    assert head["metadata"]["name"].startswith("c-head-")
    assert worker["metadata"]["name"].startswith("c-g-worker-")
    assert head["metadata"]["labels"].items() >= {**common, **heads}.items()
    assert worker["metadata"]["labels"].items() >= {**common, **workers}.items()
    assert "ray.io/serve" not in head["metadata"]["labels"].keys() | worker["metadata"]["labels"].keys()


def test_labels_of_a_template_cannot_hide_a_pod_and_those_of_a_group_are_on_it(world: World) -> None:
    labels = {"ray.io/cluster": "other", "ray.io/node-type": "head", "ray.io/group": "h", "app.kubernetes.io/name": "n"}
    pod = {**template(), "metadata": {"labels": labels, "annotations": {"a": "b"}}}
    world.given(raycluster("c", group("g", 1, template=pod, labels={"zone": "z"})))
    (worker,) = world.pods("c", "g")
    found = worker["metadata"]["labels"]
    assert (found["ray.io/cluster"], found["ray.io/node-type"], found["ray.io/group"]) == ("c", "worker", "g")
    assert (found["app.kubernetes.io/name"], found["zone"]) == ("n", "z")
    assert worker["metadata"]["annotations"]["a"] == "b"


def test_long_names_are_cut_at_different_ends(world: World) -> None:
    name = "r" + "0123456789" * 5 + "ab"
    assert len(name) == 53
    world.given(autoscaled(name))
    account = name[3:]
    assert world.head(name)["metadata"]["name"].startswith(f"{name[:50]}-head-")
    assert world.head(name)["spec"]["serviceAccountName"] == "r" + account[1:]
    assert world.find(world.path("serviceaccounts", "r" + account[1:]))


def test_a_replica_of_two_hosts_is_two_pods_with_a_service_of_their_own(world: World) -> None:
    world.given(raycluster("c", group("g", 1, numOfHosts=2)), made=3)
    first, second = world.pods("c", "g")
    labels = [pod["metadata"]["labels"] for pod in (first, second)]
    assert {one["ray.io/replica-host-index"] for one in labels} == {"0", "1"}
    assert len({one["ray.io/worker-group-replica-name"] for one in labels}) == 1
    assert {one["ray.io/worker-group-replica-index"] for one in labels} == {"0"}
    service = world.service("c-headless")["spec"]
    assert service["selector"] == {"ray.io/cluster": "c", "ray.io/node-type": "worker"}


def test_everything_made_has_the_cluster_as_its_controller(world: World) -> None:
    world.given(autoscaled("c", group("g", 1), authOptions={"mode": "token"}))
    uid = world.cluster("c")["metadata"]["uid"]
    made = [*world.pods("c"), world.service("c-head-svc"), world.find(world.path("secrets", "c"))]
    made += [world.find(world.path("serviceaccounts", "c")), world.find(world.rbac("roles", "c"))]
    for obj in made:
        assert obj is not None
        (owner,) = obj["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (uid, True), obj["metadata"]["name"]


def test_workers_wait_for_the_head_in_a_container_with_the_worker_s_security(world: World) -> None:
    security = {"runAsUser": 7, "allowPrivilegeEscalation": False}
    world.given(raycluster("c", group("g", 1, template=template(securityContext=security))))
    (waiting,) = world.pods("c", "g")[0]["spec"]["initContainers"]
    assert waiting["name"] == "wait-gcs-ready"
    assert waiting["securityContext"] == security


def test_the_environment_of_the_template_comes_first_and_kuberay_adds_to_it(world: World) -> None:
    given = [{"name": "RAY_PORT", "value": "mine"}, {"name": "A", "value": "b"}]
    world.given(raycluster("c", group("g", 1, template=template(env=given))))
    found = world.pods("c", "g")[0]["spec"]["containers"][0]["env"]
    assert found[:2] == given
    added = {one["name"]: one.get("value") for one in found[2:]}
    assert added["RAY_ADDRESS"] == f"c-head-svc.{world.namespace}.svc.cluster.local:6379"
    assert {"FQ_RAY_IP", "RAY_IP", "RAY_CLUSTER_NAME", "RAY_NODE_TYPE_NAME"} <= added.keys()
    assert "RAY_PORT" not in added


def test_ray_counts_the_limit_of_the_first_container(world: World) -> None:
    pod = template(cpu="3", memory="2Gi")
    pod["spec"]["containers"].append({"name": "beside", "image": "i", "resources": {"limits": {"cpu": "5"}}})
    world.given(raycluster("c", group("g", 1, template=pod)))
    started = command(world.pods("c", "g")[0])
    assert "--num-cpus=3" in started
    assert f"--memory={2 * 1024**3}" in started


def test_resources_of_a_group_reach_ray(world: World) -> None:
    world.given(raycluster("c", group("g", 1, resources={"svp-g": "4"})))
    assert "--resources='{\"svp-g\":4}'" in command(world.pods("c", "g")[0]).replace(" ", "").replace("4.0", "4")


def test_a_bare_cluster_s_workers_are_not_asked_for_serve_s_proxy(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    (worker,) = world.pods("c", "g")
    probe = worker["spec"]["containers"][0]["readinessProbe"]
    assert (probe["httpGet"]["path"], probe["httpGet"]["port"]) == ("/api/healthz", 52365)
    assert not env(worker).keys() & {"RAY_SERVE_KV_TIMEOUT_S", "RAY_gcs_server_request_timeout_seconds"}


def test_the_label_of_a_rayservice_switches_that_on(world: World) -> None:
    labels = {"ray.io/originated-from-crd": "RayService"}
    world.given(raycluster("c", group("g", 1), metadata={"labels": labels}))
    (worker,) = world.pods("c", "g")
    assert "8000" in str(worker["spec"]["containers"][0]["readinessProbe"]["exec"])
    assert env(world.head("c"))["RAY_SERVE_KV_TIMEOUT_S"]["value"] == "5"
    assert worker["metadata"]["labels"]["ray.io/serve"] == "true"
    assert world.head("c")["metadata"]["labels"]["ray.io/serve"] == "false"


def test_a_probe_of_the_template_stays(world: World) -> None:
    probe = {"httpGet": {"path": "/-/healthz", "port": 8000}, "periodSeconds": 2}
    world.given(raycluster("c", group("g", 1, template=template(readinessProbe=probe))))
    found = world.pods("c", "g")[0]["spec"]["containers"][0]["readinessProbe"]
    assert found["httpGet"]["path"] == "/-/healthz"


# -- the token


def test_a_token_is_made_and_given_to_all_pods(world: World) -> None:
    world.given(autoscaled("c", group("g", 1), authOptions={"mode": "token"}))
    secret = world.find(world.path("secrets", "c"))
    assert secret is not None
    assert len(base64.b64decode(base64.b64decode(secret["data"]["auth_token"]))) == 32
    reference = {"name": "c", "key": "auth_token"}
    for pod, container in ((world.head("c"), 0), (world.head("c"), 1), (world.pods("c", "g")[0], 0)):
        found = env(pod, container)
        assert found["RAY_AUTH_MODE"]["value"] == "token"
        assert found["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == reference


def test_a_token_secret_of_one_s_own_is_used_though_it_does_not_exist(world: World) -> None:
    world.given(raycluster("c", authOptions={"mode": "token", "secretName": "mine"}))
    assert env(world.head("c"))["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "mine"
    assert world.find(world.path("secrets", "c")) is None


# -- the autoscaler


def test_the_autoscaler_is_a_container_beside_the_head(world: World) -> None:
    security = {"runAsNonRoot": True, "runAsUser": 1000}
    body = autoscaled("c", group("g", 0, idleTimeoutSeconds=9))
    body["spec"]["autoscalerOptions"]["securityContext"] = security
    world.given(body)
    (_, sidecar) = world.head("c")["spec"]["containers"]
    assert sidecar["name"] == "autoscaler"
    assert sidecar["resources"]["limits"] == {"cpu": "500m", "memory": "512Mi"}
    assert sidecar["securityContext"] == security
    assert env(world.head("c"))["RAY_enable_autoscaler_v2"]["value"] == "true"
    assert world.head("c")["spec"]["serviceAccountName"] == "c"


def test_the_autoscaler_may_patch_rayclusters_and_pods(world: World) -> None:
    world.given(autoscaled("c"))
    role, binding = world.find(world.rbac("roles", "c")), world.find(world.rbac("rolebindings", "c"))
    assert role is not None
    assert binding is not None
    allowed = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    pods = {("pods", verb) for verb in ("get", "list", "watch", "patch")}
    assert allowed == pods | {("pods/resize", "patch"), ("rayclusters", "get"), ("rayclusters", "patch")}
    assert (binding["roleRef"]["name"], binding["subjects"][0]["name"]) == ("c", "c")


def test_the_autoscaler_version_2_forces_pods_to_end_for_good(world: World) -> None:
    world.given(autoscaled("c", group("g", 1)))
    world.given(raycluster("d", group("g", 1)))
    assert {pod["spec"]["restartPolicy"] for pod in world.pods("c")} == {"Never"}
    assert {pod["spec"]["restartPolicy"] for pod in world.pods("d")} == {"Always"}


def test_a_service_account_of_the_head_is_not_made(world: World) -> None:
    world.api.create(world.path("serviceaccounts"), {"metadata": {"name": "mine"}})
    head = head_with()
    head["template"]["spec"]["serviceAccountName"] = "mine"
    world.given(autoscaled("c", headGroupSpec=head))
    assert world.head("c")["spec"]["serviceAccountName"] == "mine"
    assert world.find(world.path("serviceaccounts", "c")) is None
