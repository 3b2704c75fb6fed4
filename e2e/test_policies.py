"""NetworkPolicies rule by rule: what each allows is possible, and the same from anybody else is not.

The policies are what the operator and the chart make. The pods only listen: see `stand_ins`.
"""

import json
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import policies
import pytest
from bed import build
from chart_render import Helm, one
from clusters.cluster import Cluster
from machine import archive
from machine.configs import PAUSE_IMAGE
from policies import Json, Row
from policy_scene import RAY_CLUSTER, TEAM, Scene, at
from small_specs import make_spec
from stand_ins import GRPC_PORT, OTHER_PORT, RAYLET_PORT, ray_pods

from servepipe_operator.objects.network import network_policies
from servepipe_operator.objects.pods import DASHBOARD_PORT, HEAD_PORTS, METRICS_PORT, SERVE_PORT

Say = Callable[[str], None]
GCS_PORT = HEAD_PORTS["gcs-server"]


@pytest.fixture(scope="module")
def scene(cluster: Cluster, say: Say, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Skips where the network does not enforce policies, and says so."""
    if cluster.mode == "current":
        pytest.skip("the pods' program is in no registry from which this cluster could have it")
    if cluster.mode != "machine":  # where each sandbox runs it
        image = tmp_path_factory.mktemp("pod") / "pod.tar"
        archive.write(image, PAUSE_IMAGE, build.pod(say=say))
        cluster.load([image])
    suffix = secrets.token_hex(3)
    found = policies.enforced(cluster, PAUSE_IMAGE, f"probe-{suffix}")
    say(f"policies: {found}")
    if not found.enforced:
        pytest.skip(str(found))
    scene = Scene(cluster, PAUSE_IMAGE, Helm(build.helm(say=say), tmp_path_factory.mktemp("helm")), suffix)
    try:
        scene.start()
        yield scene
    finally:
        scene.end()


# -- of a pipeline

STRANGERS = ("shop/caller", "web/caller", "web/impostor", "ops/bystander")


def _inside(*, operator: bool = True) -> list[Row]:
    """What is so whatever the spec says."""
    seen = ["ops/operator"] if operator else []
    others = STRANGERS if operator else (*STRANGERS, "ops/operator")
    rows = [
        *at("shop/head", GCS_PORT, ["shop/worker"], ["shop/other-head", "stock/head", "ops/operator", *STRANGERS]),
        *at("shop/worker", RAYLET_PORT, ["shop/head"], ["shop/other-head", "stock/head", "ops/operator", *STRANGERS]),
        *at("shop/head", DASHBOARD_PORT, ["shop/worker", *seen], [*others, "ops/helm-test", "monitoring/prometheus"]),
    ]
    for pod in ("shop/head", "shop/worker"):
        rows += at(pod, METRICS_PORT, ["shop/ingress", *seen], others)
        rows += at(pod, SERVE_PORT, ["shop/ingress", *seen], others)  # callers have the ingress
    return rows


@dataclass(frozen=True)
class Case:
    """A spec, whom the policies take for the operator, and who reaches whom then."""

    fields: Callable[[Scene], Json]
    rows: Sequence[Row]
    operator: Callable[[Scene], Sequence[Json]] = lambda scene: [scene.peer()]


CASES = {
    "defaults": Case(
        lambda scene: {},
        [
            *_inside(),
            *at("shop/ingress", SERVE_PORT, ["shop/caller", "shop/other-head", "ops/operator"], STRANGERS[1:]),
            *at("shop/ingress", METRICS_PORT, ["ops/operator"], [*STRANGERS, "monitoring/prometheus"]),
            *at("shop/ingress", GRPC_PORT, ["shop/head"], [*STRANGERS, "ops/operator"]),
            *at("shop/worker", METRICS_PORT, ["ops/operator"], ["monitoring/prometheus"]),
        ],
    ),
    "callers and monitoring of other namespaces": Case(
        lambda scene: {
            "ingress": {"from": [{"namespaceSelector": {"matchLabels": TEAM}}], "grpc": {"port": GRPC_PORT}},
            "monitoring": {"from": [scene.only("monitoring")]},
        },
        [
            *_inside(),
            *at("shop/ingress", SERVE_PORT, ["web/caller", "ops/operator"], ["shop/caller", "monitoring/prometheus"]),
            *at("shop/ingress", GRPC_PORT, ["web/caller"], ["shop/caller", "ops/operator", "monitoring/prometheus"]),
            *at("shop/head", METRICS_PORT, ["monitoring/prometheus"]),
            *at("shop/worker", METRICS_PORT, ["monitoring/prometheus"]),
            *at("shop/ingress", METRICS_PORT, ["monitoring/prometheus"], ["web/caller"]),
            *at("shop/worker", RAYLET_PORT, [], ["monitoring/prometheus"]),
        ],
    ),
    "no callers and no monitoring": Case(
        lambda scene: {"ingress": {"from": []}, "monitoring": {"from": []}},
        [
            *_inside(),
            *at("shop/ingress", SERVE_PORT, ["ops/operator", "shop/head"], STRANGERS),
            *at("shop/worker", METRICS_PORT, ["ops/operator"], ["monitoring/prometheus"]),
        ],
    ),
    # A pod stands for the API server, which may be on the node: nodes are always let in.
    "an operator that comes through the API server": Case(
        lambda scene: {},
        [
            *_inside(operator=False),
            *at("shop/head", DASHBOARD_PORT, ["ops/api-server"]),
            *at("shop/worker", METRICS_PORT, ["ops/api-server"]),
            *at("shop/ingress", SERVE_PORT, ["ops/api-server"], ["ops/operator"]),
            *at("shop/head", GCS_PORT, [], ["ops/api-server"]),
        ],
        lambda scene: [scene.address("ops/api-server")],
    ),
}


def policies_of(scene: Scene, case: Case) -> list[Json]:
    made = network_policies(scene.owner, RAY_CLUSTER, make_spec(**case.fields(scene)), case.operator(scene))
    for policy in made:
        del policy["metadata"]["ownerReferences"]  # there is no pipeline, so they would be collected
    return made


def test_without_policies_every_connection_is_possible(scene: Scene) -> None:
    """So a refusal later is the policy's."""
    every = {(row.source, row.target, row.port) for case in CASES.values() for row in case.rows}
    scene.set([])
    scene.hold([Row(*one, allowed=True) for one in sorted(every)])


@pytest.mark.parametrize("name", CASES)
def test_of_a_pipeline(scene: Scene, name: str) -> None:
    scene.set(policies_of(scene, CASES[name]))
    scene.hold(CASES[name].rows)


def test_the_node_reaches_pods_and_later_pods_are_closed_too(scene: Scene, cluster: Cluster) -> None:
    """The kubelet's probes come from the node, which this process is on where the cluster is on this machine."""
    scene.set(policies_of(scene, CASES["no callers and no monitoring"]))
    worker = ray_pods(scene.owner, RAY_CLUSTER, "shop", "later-")[1]
    scene.add(worker)
    rows = at(worker.key, RAYLET_PORT, ["shop/head"], ["shop/caller", "shop/other-head"])
    scene.hold(rows)
    if cluster.mode == "machine":
        for port in (METRICS_PORT, RAYLET_PORT):
            socket.create_connection((scene.known[worker.key], port), timeout=5).close()
    scene.set([])
    scene.hold([Row(row.source, row.target, row.port, allowed=True) for row in rows])


# -- of the operator itself


def chart_policy(scene: Scene, values: Json) -> Json:
    return one(
        scene.rendered({**values, "networkPolicy": {"enabled": True, **values.get("networkPolicy", {})}}),
        "NetworkPolicy",
    )


@dataclass(frozen=True)
class Reached:
    """Where the API server is: as pods call it, and as it listens."""

    service: str
    port: int
    listens: str
    listens_at: int


@pytest.fixture(scope="module")
def api_server(scene: Scene) -> Reached:
    """Known to rows as `kubernetes`; a node is `node`, and who answers for names is `dns`."""

    def got(kind: str, *more: str) -> Any:
        return json.loads(scene.cluster.kubectl("get", kind, "-n", "default", *more, "-o", "json").stdout)

    service = got("service", "kubernetes")["spec"]
    slices = got("endpointslices", "-l", "kubernetes.io/service-name=kubernetes")["items"]
    endpoint = slices[0]
    of_node = got("nodes")["items"][0]["status"]["addresses"]
    node = next(each["address"] for each in of_node if each["type"] == "InternalIP")
    dns = json.loads(scene.cluster.kubectl("get", "services", "-n", "kube-system", "-o", "json").stdout)["items"]
    named = [each["spec"]["clusterIP"] for each in dns if each["metadata"]["name"] == "kube-dns"]
    scene.known |= {"kubernetes": service["clusterIP"], "node": node, "dns": named[0] if named else node}
    return Reached(
        service["clusterIP"],
        service["ports"][0]["port"],
        endpoint["endpoints"][0]["addresses"][0],
        endpoint["ports"][0]["port"],
    )


def look_up(scene: Scene) -> str:
    """By UDP."""
    arguments = (
        "exec",
        "-n",
        scene.names["ops"],
        "operator",
        "--",
        "/pod",
        "lookup",
        "kubernetes.default.svc.cluster.local",
    )
    return scene.cluster.kubectl(*arguments).stdout.strip()


RAY_PORTS = (DASHBOARD_PORT, METRICS_PORT, SERVE_PORT)
KUBELET_PORT, DNS_PORT = 10250, 53


def test_of_the_operator_by_default(scene: Scene, api_server: Reached) -> None:
    policy = chart_policy(scene, {"networkPolicy": {"apiServerPorts": [api_server.listens_at]}})
    free = ["ops/bystander"]  # whom the policy does not select
    rows = [row for pod in ("shop/head", "stock/head") for port in RAY_PORTS for row in at(pod, port, ["ops/operator"])]
    rows += [
        *at("kubernetes", api_server.port, ["ops/operator"]),
        *at("dns", DNS_PORT, ["ops/operator"]),
        *at("node", KUBELET_PORT, free, ["ops/operator"]),
        *at("shop/head", GCS_PORT, free, ["ops/operator"]),
        *at("shop/caller", SERVE_PORT, free, ["ops/operator"]),  # no pod of a RayCluster
        *at("web/caller", OTHER_PORT, free, ["ops/operator"]),
        *at("ops/operator", METRICS_PORT, ["monitoring/prometheus", "ops/helm-test", "web/caller"]),
        *at("ops/operator", OTHER_PORT, [], ["monitoring/prometheus", "ops/helm-test", "web/caller"]),
    ]
    scene.set([])
    scene.hold([Row(row.source, row.target, row.port, allowed=True) for row in rows])
    scene.set([policy])
    scene.hold(rows)
    assert look_up(scene) == api_server.service


def test_of_the_operator_as_values_say(scene: Scene, api_server: Reached) -> None:
    values = {
        "watchNamespaces": [scene.names["shop"]],
        "networkPolicy": {
            "metricsFrom": [scene.only("monitoring")],
            "apiServerPorts": [api_server.listens_at],
            "apiServerTo": [{"ipBlock": {"cidr": f"{api_server.listens}/32"}}],
            "extraEgress": [{"to": [scene.only("web")], "ports": [{"protocol": "TCP", "port": OTHER_PORT}]}],
        },
    }
    scene.set([chart_policy(scene, values)])
    rows = [
        *(row for port in RAY_PORTS for row in at("shop/head", port, ["ops/operator"])),
        *(row for port in RAY_PORTS for row in at("stock/head", port, ["ops/bystander"], ["ops/operator"])),
        *at("kubernetes", api_server.port, ["ops/operator"]),
        *at("web/caller", OTHER_PORT, ["ops/operator"]),
        *at("shop/caller", OTHER_PORT, ["ops/bystander"], ["ops/operator"]),
        *at("ops/operator", METRICS_PORT, ["monitoring/prometheus", "ops/helm-test"], ["web/caller", "ops/bystander"]),
        *at("ops/operator", OTHER_PORT, [], ["monitoring/prometheus"]),
    ]
    scene.hold(rows)


@pytest.mark.parametrize("wrong", ["port", "address"])
def test_of_an_operator_that_uses_the_proxy_and_whose_api_server_is_elsewhere(
    scene: Scene, api_server: Reached, wrong: str
) -> None:
    """What is said of the API server is all that is reached of it; by the proxy no pod of Ray is."""
    told: Json = {"apiServerPorts": [api_server.listens_at], "apiServerTo": [{"ipBlock": {"cidr": "192.0.2.1/32"}}]}
    if wrong == "port":
        told = {"apiServerPorts": [api_server.listens_at + 1 if api_server.listens_at < 65535 else 1]}
    scene.set([chart_policy(scene, {"settings": {"dashboard": "proxy"}, "networkPolicy": told})])
    rows = [
        *at("kubernetes", api_server.port, ["ops/bystander"], ["ops/operator"]),
        *(row for port in RAY_PORTS for row in at("shop/head", port, ["ops/bystander"], ["ops/operator"])),
        *at("dns", DNS_PORT, ["ops/operator"]),
    ]
    scene.hold(rows)
    assert look_up(scene) == api_server.service


def test_operator_and_pipeline_with_both_their_policies(scene: Scene, api_server: Reached) -> None:
    case = CASES["defaults"]
    policy = chart_policy(scene, {"networkPolicy": {"apiServerPorts": [api_server.listens_at]}})
    scene.set([policy, *policies_of(scene, case)])
    scene.hold([*case.rows, *at("kubernetes", api_server.port, ["ops/operator"])])
