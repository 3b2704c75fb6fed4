"""KubeRay's contract, part 5: what the pods run, and with what around it.

Each test is a row, as in part 1: see `test_kuberay_contract_objects` and `kuberay_contract`.
"""

from __future__ import annotations

import shlex

import pytest
from kuberay.samples import autoscaled, group, raycluster, template
from kuberay_contract import Object, World
from small_specs import make_spec

from servepipe_operator.engine.pools import Wanted, assign
from servepipe_operator.engine.wishes import ingress_wish, node_wish
from servepipe_operator.objects.names import Owner
from servepipe_operator.objects.raycluster import raycluster as raycluster_of

SHELL = ["/bin/bash", "-c", "--"]
OPEN_FILES = "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; "
ALWAYS = {"metrics-export-port": "8080", "dashboard-agent-listen-port": "52365", "block": ""}
SIZE = {"num-cpus": "1", "memory": str(1024**3)}
SMALL = {"cpu": "200m", "memory": "256Mi"}
FROM_POD = ["RAY_CLUSTER_NAME", "RAY_CLUSTER_NAMESPACE", "RAY_CLOUD_INSTANCE_ID", "RAY_NODE_TYPE_NAME"]
LATE = ["RAY_ADDRESS", "RAY_USAGE_STATS_KUBERAY_IN_USE"]


def head_with(parameters: dict[str, str] | None = None, **container: object) -> Object:
    return {"rayStartParams": parameters or {}, "template": template(**container)}


def worker(world: World, name: str = "c") -> Object:
    (found,) = world.pods(name, "g")
    return found


def ray(pod: Object) -> Object:
    container: Object = pod["spec"]["containers"][0]
    return container


def env(container: Object) -> dict[str, Object]:
    """Of two with the same name the last counts."""
    return {one["name"]: one for one in container["env"]}


def values(container: Object) -> dict[str, str | None]:
    return {name: one.get("value") for name, one in env(container).items()}


def started(pod: Object) -> str:
    """The whole of what bash is given, its spaces evened."""
    assert ray(pod)["command"] == SHELL
    (line,) = ray(pod)["args"]
    return " ".join(line.split())


def flags(pod: Object) -> dict[str, str]:
    """Of ``ray start``, without dashes; "" where one has no value."""
    words = shlex.split(started(pod).rpartition("ray start ")[2])
    return {key.removeprefix("--"): value for key, _, value in (word.partition("=") for word in words)}


def volume(pod: Object, path: str, container: int = 0) -> Object:
    """What is mounted at ``path``."""
    (mount,) = [one for one in pod["spec"]["containers"][container]["volumeMounts"] if one["mountPath"] == path]
    return next(one for one in pod["spec"]["volumes"] if one["name"] == mount["name"])


# -- commands


def test_the_head_starts_ray_and_stays(world: World) -> None:
    world.given(raycluster("c", headGroupSpec=head_with({"num-cpus": "0"})))
    head = world.head("c")
    assert started(head).startswith(OPEN_FILES + "ray start --head ")
    wanted = {**ALWAYS, **SIZE, "num-cpus": "0", "head": "", "dashboard-host": "0.0.0.0"}
    assert flags(head) == wanted


def test_a_worker_starts_ray_with_the_head_s_address(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    address = f"c-head-svc.{world.namespace}.svc.cluster.local:6379"
    assert started(worker(world)).startswith(OPEN_FILES + "ray start --")
    assert flags(worker(world)) == {**ALWAYS, **SIZE, "address": address}


def test_with_the_autoscaler_the_head_runs_no_monitor(world: World) -> None:
    world.given(autoscaled("c"))
    assert flags(world.head("c"))["no-monitor"] == ""


def test_the_command_is_in_the_environment_too(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    for pod in (world.head("c"), worker(world)):
        told = str(env(ray(pod))["KUBERAY_GEN_RAY_START_CMD"]["value"])
        assert started(pod) == OPEN_FILES + " ".join(told.split())


def test_a_command_of_the_template_is_run_first(world: World) -> None:
    world.given(raycluster("c", group("g", 1, template=template(command=["echo"], args=["a", "b"]))))
    assert started(worker(world)).startswith(f"echo a b && {OPEN_FILES}ray start --")


def test_a_template_that_starts_ray_itself_is_left_alone(world: World) -> None:
    own = {"command": ["sh", "-c"], "args": ["ray start --address=mine --block"]}
    world.given(raycluster("c", group("g", 1, template=template(**own))))
    assert (ray(worker(world))["command"], ray(worker(world))["args"]) == (own["command"], own["args"])


def test_an_annotation_leaves_all_commands_to_the_templates(world: World) -> None:
    annotations = {"ray.io/overwrite-container-cmd": "true"}
    pod = template(command=["sleep", "1"])
    world.given(raycluster("c", group("g", 1, template=pod), metadata={"annotations": annotations}))
    assert ray(worker(world))["command"] == ["sleep", "1"]
    assert "args" not in ray(world.head("c"))
    assert "--address" in str(values(ray(worker(world)))["KUBERAY_GEN_RAY_START_CMD"])


def test_parameters_of_a_group_win_and_switches_have_no_value(world: World) -> None:
    given = {"metrics-export-port": "9", "num-cpus": "7", "log-color": "false", "no-redirect-output": "true"}
    world.given(raycluster("c", group("g", 1, rayStartParams=given | {"disable-usage-stats": "false"})))
    found = flags(worker(world))
    assert found.items() >= {**given, "no-redirect-output": ""}.items()
    assert "disable-usage-stats" not in found


def test_labels_of_a_group_are_labels_of_ray(world: World) -> None:
    world.given(raycluster("c", group("g", 1, labels={"zone": "z", "tier": "t"})))
    assert flags(worker(world))["labels"] == "tier=t,zone=z"


def test_another_port_of_the_head_reaches_everything_that_needs_it(world: World) -> None:
    world.given(raycluster("c", group("g", 1), headGroupSpec=head_with({"port": "7000"})))
    address = f"c-head-svc.{world.namespace}.svc.cluster.local:7000"
    assert flags(worker(world))["address"] == address
    assert values(ray(worker(world))).items() >= {"RAY_PORT": "7000", "RAY_ADDRESS": address}.items()
    assert values(ray(world.head("c")))["RAY_ADDRESS"] == "127.0.0.1:7000"
    assert address in str(worker(world)["spec"]["initContainers"])


def test_without_a_limit_of_cpu_ray_counts_the_request(world: World) -> None:
    pod = template(resources={"requests": {"cpu": "1500m", "memory": "1Gi"}})
    world.given(raycluster("c", group("g", 1, template=pod)))
    assert flags(worker(world))["num-cpus"] == "2"
    assert "memory" not in flags(worker(world))


# -- environment


def test_what_a_head_finds_in_its_environment(world: World) -> None:
    given = [{"name": "A", "value": "b"}]
    body = autoscaled("c", authOptions={"mode": "token"}, headGroupSpec=head_with(env=given))
    world.given(body)
    names = ["A", "RAY_enable_autoscaler_v2", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", *FROM_POD, "KUBERAY_GEN_RAY_START_CMD"]
    names += ["RAY_PORT", *LATE, "RAY_USAGE_STATS_EXTRA_TAGS", "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE"]
    found = ray(world.head("c"))
    assert [one["name"] for one in found["env"]] == names
    assert values(found)["RAY_ADDRESS"] == "127.0.0.1:6379"
    assert "kuberay_crd=RayCluster" in str(values(found)["RAY_USAGE_STATS_EXTRA_TAGS"])


def test_what_a_worker_finds_in_its_environment(world: World) -> None:
    world.given(autoscaled("c", group("g", 1), authOptions={"mode": "token"}))
    names = ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "FQ_RAY_IP", "RAY_IP", *FROM_POD, "KUBERAY_GEN_RAY_START_CMD"]
    names += ["RAY_PORT", *LATE, "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE"]
    found = ray(worker(world))
    assert [one["name"] for one in found["env"]] == names
    head = f"c-head-svc.{world.namespace}.svc.cluster.local"
    assert values(found).items() >= {"FQ_RAY_IP": head, "RAY_IP": "c-head-svc"}.items()


def test_who_a_pod_is_comes_from_the_pod_whatever_the_template_says(world: World) -> None:
    given = [{"name": name, "value": "mine"} for name in FROM_POD]
    world.given(raycluster("c", group("g", 1, template=template(env=given))))
    paths = {
        "RAY_CLUSTER_NAME": "metadata.labels['ray.io/cluster']",
        "RAY_CLUSTER_NAMESPACE": "metadata.namespace",
        "RAY_CLOUD_INSTANCE_ID": "metadata.name",
        "RAY_NODE_TYPE_NAME": "metadata.labels['ray.io/group']",
    }
    found = env(ray(worker(world)))
    assert {name: found[name]["valueFrom"]["fieldRef"]["fieldPath"] for name in FROM_POD} == paths


@pytest.mark.parametrize(("version", "value"), [("v2", "true"), ("v1", "false"), (None, None)])
def test_the_autoscaler_s_version_is_told_to_ray_where_it_is_chosen(
    world: World, version: str | None, value: str | None
) -> None:
    body = autoscaled("c")
    body["spec"]["autoscalerOptions"] = {"version": version} if version else {}
    world.given(body)
    assert values(ray(world.head("c"))).get("RAY_enable_autoscaler_v2") == value


# -- beside Ray's container


def test_the_autoscaler_is_ray_s_command_for_this_cluster(world: World) -> None:
    world.given(autoscaled("c", authOptions={"mode": "token"}))
    (_, found) = world.head("c")["spec"]["containers"]
    (line,) = found["args"]
    assert found["command"] == SHELL
    wanted = "ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME) --cluster-namespace $(RAY_CLUSTER_NAMESPACE)"
    assert " ".join(line.split()) == wanted
    names = ["RAY_CLUSTER_NAME", "RAY_CLUSTER_NAMESPACE", "RAY_HEAD_POD_NAME", "KUBERAY_CRD_VER"]
    names += ["KUBERAY_GEN_AUTOSCALER_START_CMD", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"]
    assert [one["name"] for one in found["env"]] == names
    assert (found["image"], found["imagePullPolicy"]) == ("rayproject/ray:2.60.0", "IfNotPresent")


def test_the_autoscaler_s_container_can_be_overridden(world: World) -> None:
    body = autoscaled("c")
    given = {
        "image": "mine:1",
        "imagePullPolicy": "Never",
        "args": ["sleep 1; $KUBERAY_GEN_AUTOSCALER_START_CMD"],
        "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "100m"}},
    }
    mine = {"env": [{"name": "A", "value": "b"}], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    body["spec"]["autoscalerOptions"] |= {**given, **mine}
    body["spec"]["headGroupSpec"]["template"]["spec"]["volumes"] = [{"name": "v", "emptyDir": {}}]
    world.given(body)
    (_, found) = world.head("c")["spec"]["containers"]
    assert {key: found[key] for key in given} == given
    assert found["env"][-1] == {"name": "A", "value": "b"}
    assert {one["mountPath"] for one in found["volumeMounts"]} >= {"/v", "/tmp/ray"}


def test_workers_wait_until_the_head_answers(world: World) -> None:
    mount = {"name": "v", "mountPath": "/v"}
    pod = template(env=[{"name": "A", "value": "b"}], volumeMounts=[mount], imagePullPolicy="Never")
    pod["spec"] |= {"volumes": [{"name": "v", "emptyDir": {}}], "initContainers": [{"name": "mine", "image": "i"}]}
    world.given(raycluster("c", group("g", 1, template=pod), authOptions={"mode": "token"}))
    mine, found = worker(world)["spec"]["initContainers"]
    head = f"c-head-svc.{world.namespace}.svc.cluster.local"
    (script,) = found["args"]
    assert found["command"] == SHELL
    assert f"ray health-check --address {head}:6379" in script
    assert (found["image"], found["imagePullPolicy"]) == ("rayproject/ray:2.60.0", "Never")
    assert found["resources"] == {"limits": SMALL, "requests": SMALL}
    assert mount in found["volumeMounts"]
    assert [one["name"] for one in found["env"]] == ["A", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "FQ_RAY_IP", "RAY_IP"]
    assert [one["name"] for one in mine["env"]] == ["FQ_RAY_IP", "RAY_IP"]


# -- volumes


def test_shared_memory_is_as_large_as_the_container_s(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    for pod in (world.head("c"), worker(world)):
        assert volume(pod, "/dev/shm")["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}


def test_shared_memory_of_the_template_stays_and_a_plasma_directory_needs_none(world: World) -> None:
    pod = template(volumeMounts=[{"name": "mine", "mountPath": "/dev/shm"}])
    pod["spec"]["volumes"] = [{"name": "mine", "emptyDir": {}}]
    parameters = {"plasma-directory": "/plasma"}
    world.given(raycluster("c", group("g", 1, template=pod), headGroupSpec=head_with(parameters)))
    assert volume(worker(world), "/dev/shm")["name"] == "mine"
    assert "/dev/shm" not in {one["mountPath"] for one in ray(world.head("c"))["volumeMounts"]}


def test_the_autoscaler_writes_its_logs_beside_the_head_s(world: World) -> None:
    world.given(autoscaled("c", group("g", 1)))
    assert volume(world.head("c"), "/tmp/ray") == volume(world.head("c"), "/tmp/ray", 1)
    assert volume(world.head("c"), "/tmp/ray")["emptyDir"] == {}
    assert "/tmp/ray" not in {one["mountPath"] for one in ray(worker(world))["volumeMounts"]}


# -- probes


def probe(container: Object, kind: str) -> dict[str, int]:
    found = container[kind]
    keys = ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold")
    return {key: found[key] for key in keys}


@pytest.mark.parametrize(("kind", "timeout"), [("head", 5), ("worker", 2)])
def test_ray_s_health_is_asked_at_the_agent(world: World, kind: str, timeout: int) -> None:
    world.given(raycluster("c", group("g", 1)))
    found = ray(world.head("c") if kind == "head" else worker(world))
    for name, delay, failures in (("livenessProbe", 30, 120), ("readinessProbe", 10, 10)):
        assert (found[name]["httpGet"]["path"], found[name]["httpGet"]["port"]) == ("/api/healthz", 52365)
        assert probe(found, name) == {
            "initialDelaySeconds": delay,
            "timeoutSeconds": timeout,
            "periodSeconds": 5,
            "successThreshold": 1,
            "failureThreshold": failures,
        }


def test_another_port_of_the_agent_is_asked(world: World) -> None:
    world.given(raycluster("c", group("g", 1, rayStartParams={"dashboard-agent-listen-port": "9"})))
    assert ray(worker(world))["livenessProbe"]["httpGet"]["port"] == 9


def test_an_older_ray_is_asked_by_commands(world: World) -> None:
    world.given(raycluster("c", group("g", 1), rayVersion="2.52.0"))
    for pod, parts in ((world.head("c"), ("52365", "8265")), (worker(world), ("52365",))):
        asked = str(ray(pod)["readinessProbe"]["exec"]["command"])
        assert [part for part in ("52365", "8265", "8000") if f":{part}/" in asked] == list(parts)


# -- what the operator writes


def test_a_restricted_namespace_takes_all_pods_of_the_operator_s_raycluster(world: World) -> None:
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    world.api.merge(f"/api/v1/namespaces/{world.namespace}", {"metadata": {"labels": enforced}})
    spec = make_spec()
    wanted = [
        Wanted("ingress", ingress_wish({"image": spec.image}, spec), low=1),
        Wanted("m1--a", node_wish("m1", {"image": spec.image}, spec, spec.image), low=1),
    ]
    owner = Owner("diamond", world.namespace, "no-uid", "main")
    body = raycluster_of(owner, "c", spec, "2.60.0", "runtime:1", "token", assign(wanted, []).slots, False)
    del body["metadata"]["ownerReferences"]
    world.given(body)
    (_, sidecar) = world.head("c")["spec"]["containers"]
    (waiting,) = world.pods("c", "default-a")[0]["spec"]["initContainers"]
    for container in (sidecar, waiting):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    # Its own probe is not replaced.
    (ingress,) = world.pods("c", "ingress-a")
    assert ray(ingress)["readinessProbe"]["httpGet"]["path"] == "/-/healthz"


# -- GCS fault tolerance


def test_the_head_keeps_its_state_in_redis_under_its_uid_and_workers_wait_for_it(world: World) -> None:
    world.given(raycluster("c", group("g", 1), gcsFaultToleranceOptions={"redisAddress": "redis:6379"}))
    uid = world.cluster("c")["metadata"]["uid"]
    head = world.head("c")
    wanted = {"RAY_REDIS_ADDRESS": "redis:6379", "RAY_external_storage_namespace": uid}
    assert values(ray(head)).items() >= wanted.items()
    annotations = {"ray.io/ft-enabled": "true", "ray.io/external-storage-namespace": uid}
    assert head["metadata"]["annotations"].items() >= annotations.items()
    assert values(ray(worker(world)))["RAY_gcs_rpc_server_reconnect_timeout_s"] == "600"
    assert not values(ray(worker(world))).keys() & wanted.keys()


def test_redis_may_have_users_and_the_state_another_name(world: World) -> None:
    secret = {"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    options = {"redisAddress": "redis:6379", "redisUsername": {"value": "u"}, "redisPassword": secret}
    world.given(raycluster("c", gcsFaultToleranceOptions={**options, "externalStorageNamespace": "mine"}))
    found = ray(world.head("c"))
    assert values(found).items() >= {"RAY_external_storage_namespace": "mine", "REDIS_USERNAME": "u"}.items()
    assert env(found)["REDIS_PASSWORD"]["valueFrom"] == secret["valueFrom"]
    told = flags(world.head("c"))
    assert (told["redis-username"], told["redis-password"]) == ("$REDIS_USERNAME", "$REDIS_PASSWORD")


def test_without_fault_tolerance_the_head_says_so(world: World) -> None:
    world.given(raycluster("c", group("g", 1)))
    assert world.head("c")["metadata"]["annotations"]["ray.io/ft-enabled"] == "false"
    assert "ray.io/ft-enabled" not in worker(world)["metadata"].get("annotations", {})
