"""The chart, rendered by Helm: the operator's Deployment, the CRD, and which values are taken."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import CHART
from chart_render import Helm, Object, kinds, one

from servepipe import __version__
from servepipe_operator.controller.settings import Settings, from_environment

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
CRD = "servepipelines.servepipe.dev"


def pod(objects: list[Object]) -> Json:
    found: Json = one(objects, "Deployment")["spec"]["template"]
    return found


def environment(objects: list[Object]) -> dict[str, str]:
    """The container's variables; those that the kubelet fills in have their field path."""
    env = pod(objects)["spec"]["containers"][0]["env"]
    names = [each["name"] for each in env]
    assert len(names) == len(set(names)), names
    return {
        each["name"]: each["value"] if "value" in each else each["valueFrom"]["fieldRef"]["fieldPath"] for each in env
    }


def test_lint(helm: Helm) -> None:
    done = helm.run("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


# --- The operator -----------------------------------------------------------------------------------------------------


def test_without_values_the_operator_has_its_own_defaults(helm: Helm) -> None:
    variables = environment(helm.objects())
    assert variables["SERVEPIPE_NAMESPACE"] == "metadata.namespace"
    assert variables["SERVEPIPE_INSTANCE"] == "metadata.name"
    settings = from_environment({**variables, "SERVEPIPE_NAMESPACE": "ops", "SERVEPIPE_INSTANCE": "operator-0"})
    assert settings == Settings("ops", "operator-0")


def test_every_setting_reaches_the_operator(helm: Helm) -> None:
    values = {
        "installation": "second",
        "watchNamespaces": ["a", "b"],
        "settings": {
            "dashboard": "proxy",
            "apiServerFrom": ["10.0.0.0/24", "10.0.1.0/24"],
            "clusterDomain": "example.internal",
            "rayVersion": "2.60.0",
            "runtimeImage": "shop/runtime:{ray_version}",
            "workers": 1000,
            "steadySeconds": 11,
            "changingSeconds": 1.5,
            "resyncSeconds": 301,
            "apiPerSecond": 0.5,
            "apiTimeoutSeconds": 9,
            "lookSeconds": 1e6,
            "stopSeconds": 14.5,
            "httpPort": 8081,
            "logLevel": "debug",
            "leaseDurationSeconds": 40,
            "leaseMarginSeconds": 12,
            "leaseRenewSeconds": 6,
            "leaseRetrySeconds": 3,
        },
    }
    objects = helm.objects(values)
    variables = environment(objects) | {"SERVEPIPE_NAMESPACE": "ops", "SERVEPIPE_INSTANCE": "operator-0"}
    got, default = from_environment(variables), Settings("ops", "operator-0")
    # The pods' labels are the chart's own, and the probes need every address.
    same = {name for name in Settings.__slots__ if getattr(got, name) == getattr(default, name)}
    assert same == {"namespace", "instance", "ray_version", "pod_labels", "http_host"}
    assert got.watch_namespaces == ("a", "b")
    assert got.api_server_from == ("10.0.0.0/24", "10.0.1.0/24")
    assert (got.look_s, got.stop_s, got.lease.duration_s) == (1e6, 14.5, 40)
    spec = pod(objects)["spec"]
    assert spec["containers"][0]["ports"] == [{"name": "http", "containerPort": 8081}]
    assert spec["terminationGracePeriodSeconds"] >= got.stop_s + got.api_timeout_s


def test_pipelines_let_the_operator_in(helm: Helm) -> None:
    objects = helm.objects({"podLabels": {"app.kubernetes.io/name": "another", "team": "ml"}}, "any-name")
    labels = pod(objects)["metadata"]["labels"]
    assert dict(Settings("n", "i").pod_labels).items() <= labels.items()
    assert labels["team"] == "ml"
    assert one(objects, "Deployment")["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, f"servepipe/operator:{__version__}"),
        ({"image": {"repository": "r.example.com/x", "tag": "1.2"}}, "r.example.com/x:1.2"),
        ({"image": {"tag": "1", "digest": "sha256:" + "a" * 64}}, "servepipe/operator@sha256:" + "a" * 64),
    ],
)
def test_image(helm: Helm, values: Json, image: str) -> None:
    assert pod(helm.objects(values))["spec"]["containers"][0]["image"] == image


def test_what_is_set_for_pods_is_in_their_template(helm: Helm) -> None:
    values: Json = {
        "imagePullSecrets": [{"name": "pull"}],
        "priorityClassName": "important",
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"},
            {"maxSkew": 1, "topologyKey": "host", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}},
        ],
        "podAnnotations": {"a": "b"},
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
        "podSecurityContext": {"runAsUser": None},
        "resources": {"limits": None},
    }
    objects = helm.objects(values)
    spec = pod(objects)["spec"]
    for name in ("imagePullSecrets", "priorityClassName", "tolerations", "affinity"):
        assert spec[name] == values[name]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "system"}
    selector = one(objects, "Deployment")["spec"]["selector"]
    assert [each["labelSelector"] for each in spec["topologySpreadConstraints"]] == [selector, {}]
    assert "runAsUser" not in spec["securityContext"]
    assert "limits" not in spec["containers"][0]["resources"]
    assert environment(objects)["HTTPS_PROXY"] == "http://proxy"
    assert pod(objects)["metadata"]["annotations"]["a"] == "b"


@pytest.mark.parametrize("replicas", [0, 1, 2, 3])
def test_a_budget_never_keeps_the_only_pod(helm: Helm, replicas: int) -> None:
    objects = helm.objects({"replicas": replicas})
    assert one(objects, "Deployment")["spec"]["replicas"] == replicas
    assert ("PodDisruptionBudget" in kinds(objects)) == (replicas > 1)
    assert "PodDisruptionBudget" not in kinds(
        helm.objects({"replicas": replicas, "podDisruptionBudget": {"enabled": False}})
    )


# --- The CRD ----------------------------------------------------------------------------------------------------------


def test_the_crd_is_the_generated_one(helm: Helm) -> None:
    crd = one(helm.objects(), "CustomResourceDefinition")
    generated = yaml.safe_load((ROOT / "crds" / f"{CRD}.yaml").read_text())
    assert crd["spec"] == generated["spec"]
    assert crd["apiVersion"] == generated["apiVersion"]
    assert crd["metadata"]["name"] == generated["metadata"]["name"]


def test_the_crd_is_kept_unless_told_otherwise(helm: Helm) -> None:
    assert one(helm.objects(), "CustomResourceDefinition")["metadata"]["annotations"] == {
        "helm.sh/resource-policy": "keep"
    }
    lost = one(helm.objects({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert "annotations" not in lost["metadata"]
    assert "CustomResourceDefinition" not in kinds(helm.objects({"crds": {"enabled": False}}))


def test_braces_in_the_crds_text_are_no_template(helm: Helm, tmp_path: Path) -> None:
    copy = tmp_path / "servepipe"
    shutil.copytree(CHART, copy)
    file = copy / "files" / "crds" / f"{CRD}.yaml"
    text = file.read_text()
    assert text.count("A graph of models that runs") == 1
    tricky = "{{ fail `rendered` }} {{- /* */ -}} }} {{"
    file.write_text(text.replace("A graph of models that runs", f"{tricky} runs"))
    crd = one(Helm(helm.binary, helm.home, chart=copy).objects(), "CustomResourceDefinition")
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert schema["description"].startswith(f"{tricky} runs")


# --- Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"replica": 3}, ["additional properties 'replica' not allowed"]),
        ({"settings": {"steadyS": 3}}, ["/settings", "additional properties 'steadyS' not allowed"]),
        ({"crds": {"install": True}}, ["/crds", "'install' not allowed"]),
        ({"replicas": "two"}, ["/replicas", "got string, want integer"]),
        ({"replicas": -1}, ["/replicas", "minimum"]),
        ({"image": {"digest": "abc"}}, ["/image/digest", "pattern"]),
        ({"image": {"pullPolicy": "Sometimes"}}, ["/image/pullPolicy", "'Always', 'IfNotPresent', 'Never'"]),
        ({"settings": {"dashboard": "ingress"}}, ["/settings/dashboard", "'service', 'pod-ip', 'proxy'"]),
        ({"settings": {"steadySeconds": 0}}, ["/settings/steadySeconds", "exclusiveMinimum"]),
        ({"watchNamespaces": ["Upper"]}, ["/watchNamespaces/0", "pattern"]),
        ({"watchNamespaces": "shop"}, ["/watchNamespaces", "want array"]),
        ({"installation": ""}, ["/installation", "pattern"]),
        ({"podLabels": {"a": 1}}, ["/podLabels/a", "want string"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_values_are_refused_by_name(helm: Helm, values: Json, told: list[str]) -> None:
    refusal = helm.refusal(values)
    for words in told:
        assert words in refusal


def test_it_can_be_part_of_another_chart(helm: Helm) -> None:
    assert helm.template({"global": {"registry": "x"}}).returncode == 0
