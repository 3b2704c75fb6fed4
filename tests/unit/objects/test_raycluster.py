"""The RayCluster's body, its pods, and the patch of a live one."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import cloudpickle
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.version import DeploymentVersion
from small_specs import make_spec

from servepipe.api.v1alpha1 import Spec
from servepipe.runtime.flags import serve_environment
from servepipe_operator.engine.pools import PodWish, Wanted, assign
from servepipe_operator.engine.state import Json
from servepipe_operator.engine.wishes import ingress_wish, node_wish
from servepipe_operator.objects.environment import MAX_INLINE_BYTES, cluster_environment, environment_of, switches
from servepipe_operator.objects.names import Owner
from servepipe_operator.objects.patch import patch
from servepipe_operator.objects.pods import (
    CONTENTS_ANNOTATION,
    DRAIN_SECONDS,
)
from servepipe_operator.objects.raycluster import raycluster, slots_of
from servepipe_operator.objects.templates import problems_of_templates
from servepipe_operator.objects.templates import templates as all_templates

OWNER = Owner("diamond", "shop", "uid-1", "main")
FULL_NODE: Json = {
    "image": "acme/own:1",
    "env": [
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "0"},
    ],
    "volumes": [
        {"name": "w", "mountPath": "/w", "readOnly": True, "source": {"persistentVolumeClaim": {"claimName": "p"}}}
    ],
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "gpuResourceName": "amd.com/gpu",
    "resources": {"cpu": "2", "gpu": "1", "custom": {"licence": "1k"}},
    "template": {
        "metadata": {"labels": {"team": "x", "servepipe.dev/role": "ingress"}},
        "spec": {"containers": [{"name": "side", "image": "side:1"}, {"name": "ray-worker", "workingDir": "/app"}]},
    },
}


def wanted_of(spec: Spec) -> list[Wanted]:
    node = {"image": "acme/diamond:1", **FULL_NODE}
    return [
        Wanted("ingress", ingress_wish({"image": "acme/diamond:1"}, spec), high=2),
        Wanted("m2--a", node_wish("m2", {"image": spec.image}, spec, spec.image), low=1, high=10),
        Wanted("m1--b", node_wish("m1", node, spec, spec.image), high=3),
    ]


def body(spec: Spec | None = None, wanted: list[Wanted] | None = None) -> Json:
    spec = spec or make_spec()
    slots = assign(wanted_of(spec) if wanted is None else wanted, []).slots
    return raycluster(OWNER, "diamond-12345", spec, "2.60.0", "runtime:2.60.0", "diamond-token", slots, spec.suspend)


def live(made: Json) -> Json:
    made = copy.deepcopy(made)
    made["metadata"]["resourceVersion"] = "7"
    for group in made["spec"]["workerGroupSpecs"]:
        group |= {"numOfHosts": 1, "scaleStrategy": {"workersToDelete": ["pod"]}}
    return made


def templates(made: Json) -> dict[str, Json]:
    groups = made["spec"]["workerGroupSpecs"]
    return {"head": made["spec"]["headGroupSpec"]["template"], **{one["groupName"]: one["template"] for one in groups}}


FULL_SPEC: Json = {
    "imagePullSecrets": [{"name": "pull"}],
    "serviceAccountName": "reader",
    "suspend": True,
    "cluster": {
        "gcsFaultTolerance": {"redisAddress": "redis:6379"},
        "head": {"image": "head:1", "template": {"spec": {"priorityClassName": "high"}}},
        "workers": {"resources": {"gpu": 1}, "template": {"spec": {"priorityClassName": "low"}}},
    },
    "ingress": {"template": {"metadata": {"annotations": {"a": "b"}}}},
}


@pytest.mark.parametrize("fields", [{}, FULL_SPEC])
def test_kuberays_schema_takes_it(fields: Json, kuberay_schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(kuberay_schema).validate(body(make_spec(**fields)))


def test_the_cluster_itself() -> None:
    spec = body(make_spec(**FULL_SPEC))["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["autoscalerOptions"]["resources"]["requests"] == {"cpu": "100m", "memory": "256Mi"}
    assert spec["authOptions"] == {"mode": "token", "secretName": "diamond-token"}
    assert spec["gcsFaultToleranceOptions"] == {"redisAddress": "redis:6379"}
    assert (spec["rayVersion"], spec["suspend"]) == ("2.60.0", True)
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    container = head["template"]["spec"]["containers"][0]
    assert container["image"] == "head:1"
    assert {port["name"] for port in container["ports"]} == {"dashboard", "metrics", "gcs-server", "client", "serve"}
    assert head["template"]["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    # KubeRay gives it the autoscaler's.
    assert "serviceAccountName" not in head["template"]["spec"]
    assert "gcsFaultToleranceOptions" not in body()["spec"]


def test_the_head_never_has_the_pipelines_image() -> None:
    assert templates(body())["head"]["spec"]["containers"][0]["image"] == "runtime:2.60.0"


def test_every_pod_passes_the_restricted_level() -> None:
    made = body()
    contexts = [template["spec"]["containers"][0]["securityContext"] for template in templates(made).values()]
    for context in [*contexts, made["spec"]["autoscalerOptions"]["securityContext"]]:
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for template in templates(made).values():
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True


def test_serves_flags_are_equal_on_all_pods() -> None:
    found = []
    for template in templates(body()).values():
        env = template["spec"]["containers"][0]["env"]
        found.append({one["name"]: one["value"] for one in env if one["name"].startswith("RAY_")})
    assert all(one == found[0] for one in found)
    assert found[0].items() >= serve_environment(callback=False).items()


def test_a_flag_in_the_template_of_the_head_counts_for_all_pods() -> None:
    own = [
        {"name": "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "value": "1"},
        {"name": "RAY_SERVE_OF_MINE", "value": "x"},
        {"name": "RAY_SERVE_THROUGHPUT_OPTIMIZED", "value": {"$null": True}},
        {"name": "SERVEPIPE_CHANNEL", "value": "off"},
        {"name": "HTTP_PROXY", "value": "http://proxy"},
    ]
    template = {"spec": {"containers": [{"name": "ray-head", "env": own}]}}
    spec = make_spec(cluster={"head": {"template": template}})
    pods = templates(body(spec))
    asked_about = {one.where: one.template for one in all_templates(OWNER, spec, "runtime:1")}
    assert len(pods) > 1 and len(asked_about) > 1
    pods["head"], asked_about["head"] = pods["head"], asked_about.pop("spec.cluster.head")
    for role, pod in (*pods.items(), *asked_about.items()):
        env = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
        assert env["RAY_SERVE_OF_MINE"] == "x"
        assert env["SERVEPIPE_CHANNEL"] == "off"
        assert env["RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"] == "1"
        assert not env.get("RAY_SERVE_THROUGHPUT_OPTIMIZED")
        assert (
            env["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"]
            == cluster_environment()["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"]
        )
        assert ("HTTP_PROXY" in env) == (role == "head")


@pytest.mark.parametrize(
    "env", [5, "x", {"a": 1}, ["x"], [{"value": "x"}], [{"name": 5, "value": "x"}], [{"name": ["x"], "value": "x"}]]
)
def test_an_environment_that_is_none_is_left_to_the_api_server(env: Any) -> None:
    head = {"spec": {"containers": [{"name": "ray-head", "env": env}]}}
    assert environment_of(head) == switches(head) == {}
    spec = make_spec(cluster={"head": {"template": head}})
    if not problems_of_templates(spec):
        assert all_templates(OWNER, spec, "runtime:1")[0].template["spec"]["containers"][0]["env"]


def test_channels_are_the_nodes_own_business_until_the_head_says_something() -> None:
    own = {"name": "SERVEPIPE_CHANNEL", "value": "off"}

    def of_m1(**fields: Any) -> list[Json]:
        spec = make_spec(**fields)
        wanted = [Wanted("m1--b", node_wish("m1", {"image": "acme/own:1", "env": [own]}, spec, spec.image))]
        env: list[Json] = templates(body(spec, wanted))["m1-a"]["spec"]["containers"][0]["env"]
        return [one for one in env if one["name"] == own["name"]]

    assert of_m1() == [own]
    on = {**own, "value": "on"}
    assert of_m1(cluster={"head": {"template": {"spec": {"containers": [{"name": "ray-head", "env": [on]}]}}}}) == [on]


def test_what_replicas_tell_the_next_controller_comes_with_their_answer() -> None:
    """What Ray would keep in the object store of a pod that does not know the new head yet."""
    told = len(cloudpickle.dumps((DeploymentConfig(), DeploymentVersion("r1", DeploymentConfig(), {}))))
    assert 100 * 1024 < told < MAX_INLINE_BYTES / 4  # a node's own configuration is in it, too
    assert cluster_environment()["RAY_max_direct_call_object_size"] == str(MAX_INLINE_BYTES)


def test_a_pod_for_one_replica() -> None:
    group = next(one for one in body(make_spec(**FULL_SPEC))["spec"]["workerGroupSpecs"] if one["groupName"] == "m1-a")
    assert group["resources"] == {"svp-m1-a": "1", "GPU": "1", "licence": "1000"}
    pod = group["template"]["spec"]
    ray, side = pod["containers"]
    assert (ray["name"], ray["image"], ray["workingDir"], side["name"]) == ("ray-worker", "acme/own:1", "/app", "side")
    assert ray["resources"]["limits"]["amd.com/gpu"] == "1"
    assert ray["resources"]["limits"] == ray["resources"]["requests"]
    assert {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}} in ray["env"]
    assert ray["volumeMounts"] == [{"name": "w", "mountPath": "/w", "readOnly": True}]
    assert pod["volumes"] == [{"name": "w", "persistentVolumeClaim": {"claimName": "p"}}]
    assert (pod["nodeSelector"], pod["tolerations"]) == ({"zone": "a"}, [{"key": "gpu", "operator": "Exists"}])
    assert (pod["automountServiceAccountToken"], pod["serviceAccountName"]) == (False, "reader")
    found = group["template"]["metadata"]["labels"]
    assert (found["team"], found["servepipe.dev/role"], found["servepipe.dev/pool"]) == ("x", "worker", "m1")


def test_ray_may_use_every_processor_that_it_counts() -> None:
    small = {"cpu": "100m", "memory": "1Gi"}
    spec = make_spec(cluster={"head": {"resources": small}}, node={"resources": small})
    wish = node_wish("m1", {"image": "acme/own:1", "resources": {"cpu": "1500m"}}, spec, spec.image)
    made = body(spec, [Wanted("ingress", ingress_wish({"resources": small}, spec)), Wanted("m1--a", wish)])
    sizes = {name: one["spec"]["containers"][0]["resources"] for name, one in templates(made).items()}
    cpus = {name: (size["requests"]["cpu"], size["limits"]["cpu"]) for name, size in sizes.items()}
    assert cpus == {"head": ("100m", "1"), "ingress-a": ("100m", "1"), "m1-a": ("1500m", "2")}
    assert all(size["requests"]["memory"] == size["limits"]["memory"] for size in sizes.values())


def test_only_pods_of_the_ingress_are_ready_by_serves_proxy() -> None:
    probes = {name: one["spec"]["containers"][0].get("readinessProbe") for name, one in templates(body()).items()}
    assert probes.pop("ingress-a")["httpGet"] == {"path": "/-/healthz", "port": 8000}
    assert not any(probes.values())


def hook_of(template: Json) -> str:
    """The last argument of the command before the pod ends."""
    command = template["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:2] == ["sh", "-c"]
    (program,) = command[2:]
    return str(program)


def test_workers_hand_their_replicas_over_before_they_end() -> None:
    found = templates(body())
    assert "lifecycle" not in found.pop("head")["spec"]["containers"][0]
    for name, template in found.items():
        assert template["spec"]["terminationGracePeriodSeconds"] == DRAIN_SECONDS
        program, _, otherwise = hook_of(template).partition(" || ")
        proxy = " --proxy" if name == "ingress-a" else ""
        assert program == f"python -m servepipe.runtime.drain --grace {DRAIN_SECONDS}{proxy}"
        # An image without it: its pods end as they always have, not after all of the grace period.
        assert otherwise == "{ sleep 25; ray stop --force; }"


def test_a_worker_that_waits_for_its_head_ends_at_sigterm() -> None:
    """Nothing in it is process 1, which ignores the signal; a template may say otherwise."""
    raw = {"spec": {"shareProcessNamespace": False}}
    spec = make_spec(ingress={"template": raw})
    found = templates(body(spec, [Wanted("ingress", ingress_wish({"template": raw}, spec))]))
    assert "shareProcessNamespace" not in found["head"]["spec"]
    assert found["ingress-a"]["spec"]["shareProcessNamespace"] is False
    workers = templates(body())
    del workers["head"]
    assert [template["spec"]["shareProcessNamespace"] for template in workers.values()] == [True] * len(workers)


@pytest.mark.parametrize(("grace", "pause"), [(10, 5), (3, 0), (3600, 25)])
def test_a_template_may_give_pods_another_time_to_end(grace: int, pause: int) -> None:
    raw = {"spec": {"terminationGracePeriodSeconds": grace}}
    spec = make_spec(cluster={"workers": {"template": raw}}, ingress={"template": raw})
    found = templates(body(spec, [Wanted("ingress", ingress_wish({"template": raw}, spec), high=2)]))["ingress-a"]
    assert found["spec"]["terminationGracePeriodSeconds"] == grace
    assert f"--grace {grace} " in hook_of(found)
    assert f"sleep {pause};" in hook_of(found)


def test_a_time_that_is_no_number_is_left_to_the_api_server() -> None:
    raw = {"spec": {"terminationGracePeriodSeconds": "soon"}}
    spec = make_spec(ingress={"template": raw})
    found = templates(body(spec, [Wanted("ingress", ingress_wish({"template": raw}, spec))]))["ingress-a"]
    assert found["spec"]["terminationGracePeriodSeconds"] == "soon"


@pytest.mark.parametrize("own", [{"preStop": {"sleep": {"seconds": 5}}}, {"preStop": None}, None])
def test_a_template_may_have_a_hook_of_its_own_or_none(own: Json | None) -> None:
    raw = {"spec": {"containers": [{"name": "ray-worker", "lifecycle": own}]}}
    spec = make_spec()
    wish = node_wish("m1", {"image": "acme/own:1", "template": raw}, spec, spec.image)
    pod = templates(body(spec, [Wanted("m1--a", wish)]))["m1-a"]["spec"]
    assert "exec" not in ((pod["containers"][0].get("lifecycle") or {}).get("preStop") or {})
    # Nothing would end Ray before that, so Kubernetes' own 30 s it is.
    assert "terminationGracePeriodSeconds" not in pod


def test_a_live_group_without_the_hook_is_left_as_it_is() -> None:
    """Its pods are those of an operator that knew none, and a new operator starts none anew."""
    older = live(body())
    for template in templates(older).values():
        template["spec"].pop("terminationGracePeriodSeconds", None)
        template["spec"]["containers"][0].pop("lifecycle", None)
    pods = {group["groupName"]: 1 for group in older["spec"]["workerGroupSpecs"]}
    slots = assign(wanted_of(make_spec()), slots_of(older, pods)).slots
    assert patch(older, OWNER, slots, "runtime:2.60.0", False, pods) == []


def test_a_template_cannot_take_the_labels_by_which_pods_are_found() -> None:
    labels = {"servepipe.dev/pipeline": "other", "servepipe.dev/role": "ingress", "servepipe.dev/installation": "x"}
    raw = {"template": {"metadata": {"labels": {**labels, "team": "x"}}}}
    spec = make_spec(cluster={"head": raw, "workers": raw})
    wish = node_wish("m1", {"image": "acme/own:1", **raw}, spec, spec.image)
    for name, template in templates(body(spec, [Wanted("m1--a", wish)])).items():
        found = template["metadata"]["labels"]
        assert found["servepipe.dev/pipeline"] == "diamond"
        assert found["servepipe.dev/installation"] == "main"
        assert found["servepipe.dev/role"] == ("head" if name == "head" else "worker")
        assert found["team"] == "x"


@pytest.mark.parametrize("removed", [None, {"$null": True}])
def test_what_a_template_removes_is_in_no_pod(removed: Any) -> None:
    raw: Json = {"spec": {"securityContext": {"runAsUser": removed}, "tolerations": [{"key": "x", "effect": removed}]}}
    spec = make_spec(
        nodes={"m1": {"import": "m:M", "template": raw}, "m2": {"import": "m:M"}},
        cluster={"head": {"template": raw}, "workers": {"template": raw}},
        ingress={"template": raw},
    )
    assert problems_of_templates(spec) == []

    made = all_templates(OWNER, spec, "runtime:1")

    assert len(made) == 4
    for one in made:
        assert "runAsUser" not in one.template["spec"]["securityContext"], one.where
        assert one.template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert one.template["spec"]["tolerations"] == [{"key": "x"}]
    assert "$null" not in json.dumps([one.template for one in made])


@pytest.mark.parametrize(
    "raw", [{"spec": None}, {"spec": {"$null": True}}, {"metadata": "x"}, {"metadata": None}, {"spec": []}]
)
def test_a_template_that_is_no_template_is_named(raw: Json) -> None:
    spec = make_spec(cluster={"head": {"template": raw}}, ingress={"template": raw})
    (field,) = raw
    assert [problem.where for problem in problems_of_templates(spec)] == [
        f"spec.ingress.template.{field}",
        f"spec.cluster.head.template.{field}",
    ]


def test_slots_are_read_back() -> None:
    made = body()
    slots = slots_of(made, {"m1-a": 2})
    assert [(slot.name, slot.pool, slot.pods) for slot in slots] == [
        ("ingress-a", "ingress", 0),
        ("default-a", "default", 0),
        ("m1-a", "m1", 2),
    ]
    again = assign([Wanted(one.application, one.wish) for one in wanted_of(make_spec())], slots)
    assert all(slot.wish is None for slot in again.slots)
    bare = {"groupName": "default-b", "template": {}}
    assert [(slot.pool, slot.contents) for slot in slots_of({"spec": {"workerGroupSpecs": [bare]}}, {})] == [
        ("default", "")
    ]
    assert slots_of({"spec": {}}, {}) == []


# --- Patches ----------------------------------------------------------------------------------------------------------


def applied(document: Json, operations: list[Json]) -> Json:
    """JSON patch, as far as ours use it."""
    document = copy.deepcopy(document)
    for one in operations:
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in one["path"].split("/")[1:]]
        target: Any = document
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target[part]
        if one["op"] == "test":
            assert target[last] == one["value"]
        elif last == "-":
            target.append(one["value"])
        else:
            target[last] = one["value"]
    return document


def patched(found: Json, wanted: list[Wanted], pods: dict[str, int], suspend: bool = False) -> list[Json]:
    slots = assign(wanted, slots_of(found, pods)).slots
    return patch(found, OWNER, slots, "runtime:2.60.0", suspend, pods)


def test_nothing_where_nothing_differs() -> None:
    assert patched(live(body()), wanted_of(make_spec()), {}) == []


def test_what_a_patch_tests_first() -> None:
    operations = patched(live(body()), wanted_of(make_spec()), {}, suspend=True)
    assert [(one["op"], one["path"]) for one in operations] == [
        ("test", "/metadata/resourceVersion"),
        *[("test", f"/spec/workerGroupSpecs/{index}/groupName") for index in range(3)],
        ("add", "/spec/suspend"),
    ]


def test_labels_are_put_back() -> None:
    found = live(body())
    found["metadata"]["labels"].pop("servepipe.dev/pipeline")
    operations = patched(found, wanted_of(make_spec()), {})
    assert operations[-1]["path"] == "/metadata/labels/servepipe.dev~1pipeline"
    del found["metadata"]["labels"]
    assert "servepipe.dev/pipeline" in patched(found, wanted_of(make_spec()), {})[-1]["value"]


def test_the_first_groups() -> None:
    found = live(body(wanted=[]))
    del found["spec"]["workerGroupSpecs"]
    after = applied(found, patched(found, wanted_of(make_spec()), {}))
    assert [group["groupName"] for group in after["spec"]["workerGroupSpecs"]] == ["ingress-a", "default-a", "m1-a"]


def test_a_slot_that_got_pods_meanwhile_is_left_alone() -> None:
    found = live(body())
    found["spec"]["workerGroupSpecs"][1]["replicas"] = 0
    wanted = [Wanted("m2--b", PodWish("default", {"image": "new"}))]
    slots = assign(wanted, slots_of(found, {})).slots
    operations = patch(found, OWNER, slots, "runtime:2.60.0", False, {"default-a": 1})
    assert not [one for one in operations if one["path"].endswith("template")]


def test_a_group_that_no_slot_names_is_left_alone() -> None:
    found = live(body())
    assert patch(found, OWNER, [], "runtime:2.60.0", False, {}) == []


def test_new_groups_have_the_environment_of_the_head_that_lives() -> None:
    found = live(body())
    env = found["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    env[:] = [{"name": "RAY_SERVE_OLD", "value": "1"}, {"name": "HOME", "value": "/h"}, {"name": "X", "valueFrom": {}}]
    assert environment_of(found["spec"]["headGroupSpec"]["template"]) == {"RAY_SERVE_OLD": "1"}
    after = applied(found, patched(found, [*wanted_of(make_spec()), Wanted("m3--a", PodWish("m3", {}))], {}))
    group = after["spec"]["workerGroupSpecs"][-1]
    container = group["template"]["spec"]["containers"][0]
    assert container["env"] == [{"name": "RAY_SERVE_OLD", "value": "1"}]
    assert container["image"] == "runtime:2.60.0"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_patch_makes_the_next_one_empty_and_leaves_the_autoscalers_fields(data: st.DataObject) -> None:
    found = live(body())
    pods: dict[str, int] = {}
    for group in found["spec"]["workerGroupSpecs"]:
        group["replicas"] = data.draw(st.integers(0, 2))
        pods[group["groupName"]] = data.draw(st.integers(0, 2))
    pools = st.sampled_from(["default", "m1", "m2"])
    wanted = [
        Wanted(f"app-{index}", PodWish(pool, {"image": image}), low=low, high=low + 1)
        for index, (pool, image, low) in enumerate(
            data.draw(st.lists(st.tuples(pools, st.sampled_from("xyz"), st.integers(0, 3)), max_size=5))
        )
    ]
    slots = assign(wanted, slots_of(found, pods)).slots
    suspend = data.draw(st.booleans())
    after = applied(found, patch(found, OWNER, slots, "runtime:2.60.0", suspend, pods))
    assert patch(after, OWNER, slots, "runtime:2.60.0", suspend, pods) == []
    for before, now in zip(found["spec"]["workerGroupSpecs"], after["spec"]["workerGroupSpecs"], strict=False):
        for key in ("groupName", "replicas", "scaleStrategy", "numOfHosts"):
            assert now[key] == before[key]
        if before["replicas"] or pods[before["groupName"]]:
            assert now["template"] == before["template"]
    held = {
        group["groupName"]: group["template"]["metadata"]["annotations"][CONTENTS_ANNOTATION]
        for group in after["spec"]["workerGroupSpecs"]
    }
    assert held == {slot.name: slot.contents for slot in slots}
    assert after["spec"]["headGroupSpec"] == found["spec"]["headGroupSpec"]
