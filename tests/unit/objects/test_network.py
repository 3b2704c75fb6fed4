"""NetworkPolicies, disruption budgets, the caller's Service and the token's Secret."""

from __future__ import annotations

import base64
from typing import Any

from small_specs import make_spec

from servepipe.api.v1alpha1 import Ingress
from servepipe_operator.engine.state import Json
from servepipe_operator.objects.disruption import head_budget, ingress_budget
from servepipe_operator.objects.names import Owner
from servepipe_operator.objects.network import network_policies, operator_peer
from servepipe_operator.objects.services import service, token_secret

OPERATOR = operator_peer("servepipe-system", {"app": "servepipe"})
MONITORING = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
API_SERVER = {"ipBlock": {"cidr": "10.0.0.1/32"}}


def rules(policy: Json) -> list[tuple[Any, Any]]:
    return [(one["from"], [port["port"] for port in one.get("ports", [])]) for one in policy["spec"]["ingress"]]


def test_policies_by_default(owner: Owner) -> None:
    everywhere, callers = network_policies(owner, "diamond-1", make_spec(), [OPERATOR])
    inside = {"podSelector": {"matchLabels": {"ray.io/cluster": "diamond-1"}}}
    assert rules(everywhere) == [([inside], []), ([OPERATOR], [8265, 8080, 8000])]
    assert "ports" not in everywhere["spec"]["ingress"][0]
    assert rules(callers) == [([{"podSelector": {}}], [8000])]
    for policy in (everywhere, callers):
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        assert policy["spec"]["podSelector"]["matchLabels"]["ray.io/cluster"] == "diamond-1"
    assert callers["spec"]["podSelector"]["matchLabels"]["servepipe.dev/role"] == "ingress"
    assert everywhere["metadata"]["name"] != callers["metadata"]["name"]


def test_policies_as_the_spec_says(owner: Owner) -> None:
    spec = make_spec(monitoring={"from": [MONITORING]}, ingress={"from": [API_SERVER], "grpc": {}})
    everywhere, callers = network_policies(owner, "diamond-1", spec, [API_SERVER])
    assert rules(everywhere)[1:] == [([API_SERVER], [8265, 8080, 8000]), ([MONITORING], [8080])]
    assert rules(callers) == [([API_SERVER], [8000, 9000])]


def test_an_empty_list_of_peers_is_nobody_and_not_everybody(owner: Owner) -> None:
    spec = make_spec(monitoring={"from": []}, ingress={"from": []})
    everywhere, callers = network_policies(owner, "diamond-1", spec, [])
    assert len(rules(everywhere)) == 1
    assert rules(callers) == []


def test_budgets(owner: Owner) -> None:
    assert ingress_budget(owner, 0) is None
    assert ingress_budget(owner, 1) is None
    budget = ingress_budget(owner, 3)
    assert budget is not None
    assert budget["spec"]["minAvailable"] == 2
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert budget["spec"]["selector"]["matchLabels"]["servepipe.dev/role"] == "ingress"
    assert head_budget(owner)["metadata"]["name"] != budget["metadata"]["name"]


def test_the_service_selects_only_ingress_pods(owner: Owner) -> None:
    made = service(owner, Ingress(), "diamond-1")
    assert made["metadata"]["name"] == "diamond"
    assert made["spec"] == {
        "type": "ClusterIP",
        "selector": {
            "servepipe.dev/pipeline": "diamond",
            "servepipe.dev/role": "ingress",
            "ray.io/cluster": "diamond-1",
        },
        "ports": [{"name": "http", "port": 8000, "targetPort": 8000, "protocol": "TCP"}],
    }


def test_the_service_as_the_spec_says(owner: Owner) -> None:
    ingress = make_spec(ingress={"service": {"type": "NodePort", "port": 80}, "grpc": {"port": 9001}}).ingress
    assert ingress is not None
    made = service(owner, ingress, "diamond-1")["spec"]
    assert (made["type"], [port["port"] for port in made["ports"]]) == ("NodePort", [80, 9001])


def test_the_secret_holds_the_token_where_kuberay_looks(owner: Owner) -> None:
    assert base64.b64decode(token_secret(owner, "t0ken")["data"]["auth_token"]) == b"t0ken"
