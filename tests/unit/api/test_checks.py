"""What is wrong with a resource beyond its schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from servepipe import api
from servepipe.api.v1alpha1 import INLINE_REFUSES, ServePipeline

Json = dict[str, Any]
Change = Callable[[Json], Any]


def node(name: str, **fields: Any) -> Change:
    return lambda spec: spec["nodes"][name].update(fields)


def step(index: int, **fields: Any) -> Change:
    return lambda spec: spec["graph"]["steps"][index].update(fields)


def add_step(**fields: Any) -> Change:
    return lambda spec: spec["graph"]["steps"].append(fields)


WRONG: list[tuple[Change, str]] = [
    (step(0, node="m3"), "spec.graph.steps[0].node: there is no node 'm3'"),
    (step(2, args=[{"$step": "m1-outpt"}]), "spec.graph.steps[2].args[0]: there is no step 'm1-outpt'"),
    (step(0, args=[{"$stp": "a"}]), 'spec.graph.steps[0].args[0]: "$stp" is not a form that servepipe knows'),
    (step(0, method="for ward"), "spec.graph.steps[0].method: 'for ward' is not the name of a method"),
    (step(0, kwargs={"a b": 1}), "spec.graph.steps[0].kwargs: 'a b' is not the name of an argument"),
    (step(0, timeout="0s"), "spec.graph.steps[0].timeout: a timeout of 0 s never lets the step answer"),
    (add_step(name="x", node="m1"), "spec.graph.steps[3]: nothing needs step 'x'"),
    (add_step(name="x"), "spec.graph.steps[3]: a step has one of node, switch, split"),
    (add_step(name="x", fallback=[1], retries=1), "spec.graph.steps[3]: unknown field 'retries'"),
    (
        add_step(name="x", split={"branches": [{"weight": 9, "then": 1}]}),
        "spec.graph.steps[3].split.branches: the weights",
    ),
    (
        lambda spec: spec["graph"].update(response={"postprocessor": "a-b:c"}),
        "spec.graph.response.postprocessor: 'a-b:c'",
    ),
    (lambda spec: spec["graph"]["input"].update(preprocessor="a:b-c"), "spec.graph.input.preprocessor: 'a:b-c' cannot"),
    (lambda spec: spec["nodes"].update(input={"import": "a:b"}), "spec.nodes.input: the name 'input' is reserved"),
    (node("m1", **{"import": "a..b:C"}), "spec.nodes.m1.import: 'a..b:C' cannot be imported"),
    (node("m1", kwargs={"a-b": 1}), "spec.nodes.m1.kwargs: 'a-b' is not the name of an argument"),
    (node("m1", args=[{"$node": "m9"}]), "spec.nodes.m1.args[0]: there is no node 'm9'"),
    (node("m1", args=[{"$input": []}]), "spec.nodes.m1.args[0]: a constructor of node 'm1' cannot receive"),
    (node("m1", args=[{"$float": "x"}]), "spec.nodes.m1.args[0].$float: 'x' is not a finite number"),
    (node("m1", args=[2**70]), "spec.nodes.m1.args[0]: an integer beyond 64 bits"),
    (node("m1", args=[{"$node": "m1"}]), "spec.nodes.m1: these nodes hold handles to each other: m1 -> m1"),
    (node("m1", userConfig={"$tuple": []}), "spec.nodes.m1.userConfig: expected an object, not a tuple"),
    (
        node("m1", userConfig={"a": {"$step": "x"}}),
        "spec.nodes.m1.userConfig: a reference stands where only a constant",
    ),
    (node("m1", runtimeEnv={"env_vars": {"A": None}}), "spec.nodes.m1.runtimeEnv.env_vars.A: a null does not survive"),
    (node("m1", autoscaling={"maxReplicas": 2}), "spec.nodes.m1.replicas: replicas and autoscaling exclude each other"),
    (
        node("m2", autoscaling={"minReplicas": 3, "maxReplicas": 2}),
        "spec.nodes.m2.autoscaling.minReplicas: minReplicas 3",
    ),
    (node("m1", upgrade={"strategy": "Canary"}), "spec.nodes.m1.upgrade: strategy Canary needs steps"),
    (node("m1", upgrade={"steps": [{"weight": 1}]}), "spec.nodes.m1.upgrade.steps: strategy BlueGreen has no steps"),
    (
        node("m1", upgrade={"strategy": "Canary", "steps": [{"weight": 50}, {"weight": 50}]}),
        "spec.nodes.m1.upgrade.steps[1].weight: 50 does not exceed the step before, 50",
    ),
    (
        node("m1", env=[{"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {}}}]),
        "spec.nodes.m1.env[0]: value and valueFrom exclude each other",
    ),
    (node("m1", env=[{"name": "A"}, {"name": "A"}]), "spec.nodes.m1.env[1].name: the name 'A' stands twice"),
    (
        node("m1", volumes=[{"name": "v", "mountPath": "/a", "source": {}}] * 2),
        "spec.nodes.m1.volumes[1].name: the name 'v' stands twice",
    ),
    (lambda spec: spec["ingress"].update(route="/a/"), "spec.ingress.route: '/a/' ends in a slash"),
    (lambda spec: spec["ingress"].update(route="/-/x"), "spec.ingress.route: paths below /- are the ingress's own"),
    (lambda spec: spec["ingress"].update(route="/a/../b"), "spec.ingress.route: no client can ask for '/a/../b'"),
    (lambda spec: spec["ingress"].update(route="/%2e%2e"), "spec.ingress.route: no client can ask for '/%2e%2e'"),
    (
        lambda spec: spec["ingress"].update(grpc={"port": 8080}),
        "spec.ingress.grpc.port: port 8080 belongs to Ray's metrics in every pod",
    ),
    (
        lambda spec: spec["ingress"].update(grpc={"port": 81}, service={"port": 81}),
        "spec.ingress.grpc.port: the Service has port 81 for HTTP already",
    ),
    (
        lambda spec: spec["nodes"]["m1"].update(resources={"custom": {"svp-default-a": "1"}}),
        "spec.nodes.m1.resources.custom.svp-default-a: names that start with 'svp-' are servepipe's own",
    ),
    (
        lambda spec: spec["ingress"].update(resources={"custom": {"CPU": "1"}}),
        "spec.ingress.resources.custom.CPU: CPU is not a custom resource of Ray",
    ),
    (lambda spec: spec["ingress"].update(autoscaling={"maxReplicas": 2}), "spec.ingress.replicas: replicas and"),
    (
        lambda spec: spec["cluster"]["workers"].update(minReplicas=11),
        "spec.cluster.workers.minReplicas: minReplicas 11",
    ),
]


@pytest.mark.parametrize(("change", "wanted"), WRONG, ids=[wanted[:60] for _, wanted in WRONG])
def test_what_is_wrong_is_named(change: Change, wanted: str, document: Json) -> None:
    change(document["spec"])
    found = [f"{problem.where}: {problem.what}" for problem in api.problems(api.validate(document))]
    assert any(line.startswith(wanted) for line in found), found


def test_a_typo_in_the_key_of_a_node_is_not_taken_for_the_right_name(document: Json) -> None:
    nodes = document["spec"]["nodes"]
    nodes["emsemble"] = nodes.pop("ensemble")
    [problem] = api.problems(api.validate(document))
    assert problem.what == "there is no node 'ensemble'"
    assert problem.fix.startswith('Did you mean "emsemble"? Nothing uses that node: either name may be the misspelt')


def test_a_node_that_is_used_under_its_name_is_the_right_one(document: Json) -> None:
    # By another step, or by a node that holds it.
    nodes, steps = document["spec"]["nodes"], document["spec"]["graph"]["steps"]
    nodes["model"] = dict(nodes.pop("m1"))
    steps[0]["node"] = "modle"
    nodes["m2"]["args"] = [{"$node": "model"}]
    assert [problem.fix for problem in api.problems(api.validate(document))] == ['Did you mean "model"?']
    nodes["m2"]["args"] = []
    steps[1]["node"] = "model"
    assert {problem.fix for problem in api.problems(api.validate(document))} >= {'Did you mean "model"?'}


VALUES: Json = {
    "image": "x",
    "runtimeEnv": {},
    "env": [],
    "volumes": [],
    "nodeSelector": {},
    "tolerations": [],
    "gpuResourceName": "x",
    "resources": {},
    "template": {},
    "replicas": 1,
    "autoscaling": {"maxReplicas": 1},
}


@pytest.mark.parametrize("field", INLINE_REFUSES)
def test_inline_nodes_have_nothing_that_needs_replicas(field: str, document: Json) -> None:
    document["spec"]["nodes"]["ensemble"][field] = VALUES[field]
    [problem] = api.problems(api.validate(document))
    assert problem.where == f"spec.nodes.ensemble.{field}"
    document["spec"]["nodes"]["ensemble"]["placement"] = "Dedicated"
    assert api.problems(api.validate(document)) == []


def test_several_problems_are_found_at_once(document: Json) -> None:
    for change in (step(0, node="m3"), node("m1", args=[{"$node": "m9"}]), node("m2", **{"import": "a:b c"[:3] + "-"})):
        change(document["spec"])
    assert len(api.problems(api.validate(document))) >= 3


def test_the_diamond_has_none(diamond: ServePipeline) -> None:
    assert api.problems(diamond) == []
    assert api.notices(diamond) == []


def test_a_resource_with_everything_has_none(document: Json) -> None:
    document["spec"]["nodes"]["m1"] |= {
        "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "volumes": [{"name": "w", "mountPath": "/w", "source": {"emptyDir": {}}, "readOnly": True}],
        "runtimeEnv": {"pip": ["numpy"], "env_vars": {"A": "b"}},
        "kwargs": {"größe": {"$null": True}},
        "healthCheck": {"periodSeconds": 5},
    }
    document["spec"]["ingress"] |= {"route": "/diamond", "grpc": {}}
    assert api.problems(api.validate(document)) == []


def test_a_pipeline_without_ingress_and_cluster_is_complete(document: Json) -> None:
    del document["spec"]["ingress"], document["spec"]["cluster"], document["spec"]["graph"]["input"]
    assert api.problems(api.validate(document)) == []
