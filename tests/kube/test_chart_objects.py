"""What the chart makes, at a real API server: it takes every object, pods are `restricted`, roles aggregate."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from chart_render import MONITORING, Helm, Object, kinds, one

from servepipe_operator.objects.network import operator_peer
from servepipe_operator.objects.pods import DASHBOARD_PORT, METRICS_PORT, SERVE_PORT

Json = dict[str, Any]
#: Of Prometheus' operator, whose CRDs are not here.
NOT_BUILT_IN = {"ServiceMonitor", "PrometheusRule"}
POLICY = {"networkPolicy": {"enabled": True}}

VALUES: dict[str, Json] = {
    "defaults": {},
    "everything": {
        **MONITORING,
        "imagePullSecrets": [{"name": "pull"}],
        "serviceAccount": {"annotations": {"a": "b"}},
        "podLabels": {"team": "ml"},
        "podAnnotations": {"a": "b"},
        "priorityClassName": "important",
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
        "networkPolicy": {
            "enabled": True,
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "apiServerTo": [{"ipBlock": {"cidr": "10.0.0.1/32"}}],
            "extraEgress": [{"ports": [{"protocol": "TCP", "port": 3128}]}],
        },
    },
    "least": {
        "replicas": 1,
        "crds": {"enabled": False},
        "serviceAccount": {"create": False, "name": "mine"},
        "userRoles": {"create": False},
        "topologySpreadConstraints": [],
        "nodeSelector": None,
        "resources": None,
        "image": {"digest": "sha256:" + "a" * 64},
    },
    "openshift": {"podSecurityContext": {"runAsUser": None, "runAsGroup": None}},
    "long-names": {"fullnameOverride": "o" * 63, "crds": {"keep": False}},
    "proxy": {**POLICY, "settings": {"dashboard": "proxy", "apiServerFrom": ["10.0.0.0/24"], "httpPort": 9000}},
}


@pytest.fixture(scope="module")
def restricted(control_plane: ControlPlane) -> str:
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
    return control_plane.create_namespace("chart-restricted", labels)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("where", ["cluster-wide", "namespaced"])
def test_the_api_server_takes_every_object(
    control_plane: ControlPlane, helm: Helm, restricted: str, name: str, where: str
) -> None:
    watched = {"watchNamespaces": ["default", restricted]} if where == "namespaced" else {}
    objects = helm.objects(VALUES[name] | watched, namespace=restricted)
    taken = [each for each in objects if each["kind"] not in NOT_BUILT_IN]
    if where == "namespaced":
        assert ("ClusterRoleBinding" not in kinds(taken)) and kinds(taken).count("Role") == 3
    template = one(objects, "Deployment")["spec"]["template"]
    # Without a name for the account, which a dry run does not make, and without a class that is not there.
    spec = {key: value for key, value in template["spec"].items() if key != "priorityClassName"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "name": "as-pod"}}
    pod |= {"spec": {**spec, "serviceAccountName": "default"}}
    for each in (*taken, pod):
        each["metadata"].setdefault("namespace", restricted)
    done = control_plane.kubectl(
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "--force-conflicts",
        "-f",
        "-",
        stdin=yaml.safe_dump_all([*taken, pod]),
    )
    assert done.stderr == "", "warnings, for instance of Pod Security"
    assert len(done.stdout.splitlines()) == len(taken) + 1


def test_a_pod_that_is_not_restricted_is_told(control_plane: ControlPlane, helm: Helm, restricted: str) -> None:
    """So that the test above can fail."""
    objects = helm.objects({"securityContext": {"allowPrivilegeEscalation": True}}, namespace=restricted)
    done = control_plane.kubectl(
        "apply", "--server-side", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(one(objects, "Deployment"))
    )
    assert "would violate PodSecurity" in done.stderr


def test_roles_of_people(control_plane: ControlPlane, helm: Helm, namespace: str) -> None:
    roles = [
        each for each in helm.objects(release="roles") if each["metadata"]["name"].endswith((":viewer", ":editor"))
    ]
    assert len(roles) == 2
    bindings = [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": role, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": f"chart-{role}"}],
        }
        for role in ("view", "edit", "admin")
    ]

    def may(user: str, verb: str, what: str = "servepipelines.servepipe.dev", *more: str) -> bool:
        done = control_plane.kubectl(
            "-n", namespace, "auth", "can-i", verb, what, *more, f"--as=chart-{user}", check=False
        )
        return done.stdout.strip() == "yes"

    control_plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all([*roles, *bindings]))
    try:
        for user in ("view", "edit", "admin"):
            wait_for(f"{user} to read pipelines", lambda user=user: may(user, "list"), 30)
        for user in ("edit", "admin"):
            wait_for(f"{user} to change pipelines", lambda user=user: may(user, "patch"), 30)
            assert may(user, "create")
            assert may(user, "delete")
            assert not may(user, "patch", "servepipelines.servepipe.dev", "--subresource=status")
        assert not may("view", "patch")
        assert may("view", "get", "servepipelines.servepipe.dev", "--subresource=status")
    finally:
        control_plane.kubectl("delete", "-f", "-", stdin=yaml.safe_dump_all([*roles, *bindings]))


# --- The operator's NetworkPolicy -------------------------------------------------------------------------------------


def policy(helm: Helm, **more: Any) -> Json:
    found: Json = one(helm.objects({"networkPolicy": {"enabled": True}, **more}), "NetworkPolicy")["spec"]
    return found


def ports(rule: Json) -> set[tuple[str, int]]:
    return {(port["protocol"], port["port"]) for port in rule["ports"]}


def test_there_is_no_policy_unless_asked_for(helm: Helm) -> None:
    assert "NetworkPolicy" not in kinds(helm.objects())


def test_what_the_operator_may_reach(helm: Helm) -> None:
    spec = policy(helm)
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    dns, api_server, pods = spec["egress"]
    assert (ports(dns), "to" in dns) == ({("UDP", 53), ("TCP", 53)}, False)
    assert (ports(api_server), "to" in api_server) == ({("TCP", 443), ("TCP", 6443)}, False)
    assert ports(pods) == {("TCP", port) for port in (DASHBOARD_PORT, METRICS_PORT, SERVE_PORT)}
    selector = {"matchExpressions": [{"key": "ray.io/cluster", "operator": "Exists"}]}
    assert pods["to"] == [{"podSelector": selector, "namespaceSelector": {}}]
    [peer] = policy(helm, watchNamespaces=["a", "b"])["egress"][2]["to"]
    assert peer["namespaceSelector"]["matchExpressions"] == [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}
    ]
    # Through the API server's proxy, it reaches no pod itself.
    assert len(policy(helm, settings={"dashboard": "proxy"})["egress"]) == 2


def test_who_may_reach_the_operator(helm: Helm) -> None:
    [rule] = policy(helm, settings={"httpPort": 9000})["ingress"]
    assert (ports(rule), "from" in rule) == ({("TCP", 9000)}, False)
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    objects = helm.objects({"networkPolicy": {"enabled": True, "metricsFrom": [monitoring]}})
    [rule] = one(objects, "NetworkPolicy")["spec"]["ingress"]
    test_pod = one(objects, "Pod")["metadata"]["labels"]
    own, others = rule["from"]
    assert own["podSelector"]["matchLabels"].items() <= test_pod.items()
    assert others == monitoring


def test_both_ends_agree(helm: Helm) -> None:
    """Pipelines' policies let in whom the operator's policy lets out."""
    objects = helm.objects({"networkPolicy": {"enabled": True}}, namespace="ops")
    labels = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    peer = operator_peer("ops", {"app.kubernetes.io/name": "servepipe-operator"})
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    assert one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


# --- helm test --------------------------------------------------------------------------------------------------------


def test_the_pod_of_helm_test(helm: Helm) -> None:
    objects = helm.objects(release="svp", namespace="ops")
    pod = one(objects, "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    service = one(objects, "Service")
    assert not service["spec"]["selector"].items() <= pod["metadata"]["labels"].items(), "it would be an endpoint"
    [container] = pod["spec"]["containers"]
    code, url, seconds = container["args"]
    assert container["command"] == ["python", "-c"]
    compile(code, "helm test", "exec")
    port = service["spec"]["ports"][0]["port"]
    assert url == f"http://{service['metadata']['name']}.ops.svc:{port}/readyz"
    assert seconds == "60"


def answers(*replies: tuple[int, str]) -> ThreadingHTTPServer:
    """A server whose answers to GET are these, the last of them for ever."""
    left = list(replies)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, text = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: Any) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Answer)


@pytest.mark.parametrize(
    ("replies", "seconds", "code", "told"),
    [
        ([(200, "ok")], 30, 0, "ok"),
        ([(503, "rayclusters.ray.io: is missing"), (200, "ok")], 30, 0, "rayclusters.ray.io: is missing\nok"),
        ([(503, "rayclusters.ray.io: is missing")], 0.1, 1, "rayclusters.ray.io: is missing"),
    ],
    ids=["ready", "ready-later", "never-ready"],
)
def test_what_helm_test_runs(helm: Helm, replies: list[tuple[int, str]], seconds: float, code: int, told: str) -> None:
    program, *_ = one(helm.objects(), "Pod")["spec"]["containers"][0]["args"]
    server = answers(*replies)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/readyz"
        done = subprocess.run(
            [sys.executable, "-c", program, url, str(seconds)], capture_output=True, text=True, timeout=60
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert (done.returncode, done.stdout.strip()) == (code, told)
    assert (f"{url} was not ready within {seconds:g} s" in done.stderr) == (code == 1)


def test_objects_say_what_they_belong_to(helm: Helm) -> None:
    objects: list[Object] = helm.objects({**MONITORING, **POLICY}, release="svp")
    for each in objects:
        labels = each["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "svp", each["kind"]
