"""The models: what they take, what they say about everything else, and that the schema says the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from servepipe import api
from servepipe.api.crd import crd
from servepipe.api.problem import InvalidResourceError, Problem
from servepipe.api.v1alpha1 import IDENTITY_FIELDS, INLINE_REFUSES, NodeSpec, ServePipeline, Status
from servepipe.errors import ResourceError

Json = dict[str, Any]
Change = Callable[[Json], Any]


def problems_of(document: Any) -> list[str]:
    with pytest.raises(InvalidResourceError) as caught:
        api.validate(document)
    assert caught.value.where == caught.value.problems[0].where
    return [f"{problem.where}: {problem.what} {problem.fix}".strip() for problem in caught.value.problems]


def node(name: str, **fields: Any) -> Change:
    return lambda spec: spec["nodes"][name].update(fields)


def step(index: int, **fields: Any) -> Change:
    return lambda spec: spec["graph"]["steps"][index].update(fields)


WRONG: list[tuple[Change, str]] = [
    (lambda spec: spec.pop("graph"), 'spec: the field "graph" is missing'),
    (lambda spec: spec.pop("nodes"), 'spec: the field "nodes" is missing'),
    (lambda spec: spec.update(nodes=None), 'spec: the field "nodes" is missing'),
    (lambda spec: spec.update(nodes={}), "spec.nodes: must not be empty"),
    (lambda spec: spec.update(nodes=[]), "spec.nodes: expected an object, not a list"),
    (lambda spec: spec["nodes"].update(m1=None), "spec.nodes.m1: expected an object, not null"),
    (lambda spec: spec["nodes"]["m1"].pop("import"), 'spec.nodes.m1: the field "import" is missing'),
    (lambda spec: spec.update(suspend="yes"), "spec.suspend: expected true or false, not 'yes'"),
    (lambda spec: spec.update(historyLimit=0), "spec.historyLimit: 0 is below the minimum, 1"),
    (lambda spec: spec.update(rayVersion="2.60"), "spec.rayVersion: expected a version such as \"2.60.0\", not '2.60'"),
    (lambda spec: spec.update(rayVersion=2.6), "spec.rayVersion: expected a string, not 2.6"),
    (lambda spec: spec.update(image="a b"), "spec.image: expected an image reference without spaces, not 'a b'"),
    (lambda spec: spec.update(imagePullSecrets=[{}]), 'spec.imagePullSecrets[0]: the field "name" is missing'),
    (lambda spec: spec.update(serviceAccountName="A"), "spec.serviceAccountName: expected a Kubernetes name"),
    (lambda spec: spec["graph"].pop("output"), 'spec.graph: the field "output" is missing'),
    (lambda spec: spec["graph"].update(steps={}), "spec.graph.steps: expected a list, not an object"),
    (
        lambda spec: spec["graph"].update(steps=[{"name": f"s{i}", "node": "m1"} for i in range(129)]),
        "spec.graph.steps: 129 entries are too many, at most 128 are allowed",
    ),
    (step(0, name="M1"), "spec.graph.steps[0].name: expected lower case letters"),
    (step(0, nod="m1"), "spec.graph.steps[0]: unknown field 'nod' Did you mean \"node\"?"),
    (step(0, timeout="5"), "spec.graph.steps[0].timeout: expected a duration such as"),
    (step(0, retries=-1), "spec.graph.steps[0].retries: -1 is below the minimum, 0"),
    (step(0, args={"a": 1}), "spec.graph.steps[0].args: expected a list, not an object"),
    (step(0, method=""), "spec.graph.steps[0].method: must not be empty"),
    (
        lambda spec: spec["graph"]["steps"].append({"name": "s", "switch": {"on": 1, "cases": []}}),
        "spec.graph.steps[3].switch.cases: must not be empty",
    ),
    (
        lambda spec: spec["graph"]["steps"].append({"name": "s", "split": {"branches": [{"weight": 101, "then": 1}]}}),
        "spec.graph.steps[3].split.branches[0].weight: 101 is above the maximum, 100",
    ),
    (lambda spec: spec["nodes"].update({"a--b": {"import": "a:b"}}), "spec.nodes.a--b: two hyphens in a row"),
    (lambda spec: spec["nodes"].update({"A": {"import": "a:b"}}), "spec.nodes.A: expected lower case letters"),
    (lambda spec: spec["nodes"].update({"a" * 41: {"import": "a:b"}}), f"spec.nodes.{'a' * 41}: "),
    (node("m1", **{"import": "diamond"}), "spec.nodes.m1.import: expected \"module:name\", not 'diamond'"),
    (node("m1", code="sha256:1"), 'spec.nodes.m1.code: expected "sha256:" and 64 hex'),
    (
        node("m1", replicas="3"),
        "spec.nodes.m1.replicas: expected an integer, not '3' Write a whole number without quotes, such as 2.",
    ),
    (node("m1", blocking="no"), "spec.nodes.m1.blocking: expected true or false, not 'no' Write it without quotes."),
    (node("m1", env={"A": "b"}), 'spec.nodes.m1.env: expected a list, not an object Begin each entry with "- ".'),
    (node("m1", autoscaling=3), "spec.nodes.m1.autoscaling: expected an object, not 3 Write its fields as"),
    (node("m1", replicas=1.5), "spec.nodes.m1.replicas: expected an integer, not 1.5"),
    (node("m1", replicas=True), "spec.nodes.m1.replicas: expected an integer, not true"),
    (node("m1", replicas=10**30), "spec.nodes.m1.replicas: an integer beyond 64 bits is above the maximum, 10000"),
    (
        node("m1", resources={"cpu": "1e3"}),
        'spec.nodes.m1.resources.cpu: expected a Kubernetes quantity such as "500m"',
    ),
    (node("m1", resources={"cpu": -1}), "spec.nodes.m1.resources.cpu: expected a Kubernetes quantity"),
    (
        node("m1", resources={"cpu": 0.5}),
        "spec.nodes.m1.resources.cpu: expected a string, not 0.5 Write it as a string",
    ),
    (node("m1", resources={"cpu": True}), "spec.nodes.m1.resources.cpu: expected a string, not true"),
    (
        node("m1", resources={"custom": {"tpu": []}}),
        "spec.nodes.m1.resources.custom.tpu: expected a string, not a list",
    ),
    (
        node("m1", placement="inline"),
        "spec.nodes.m1.placement: expected one of Auto, Dedicated, Inline, not 'inline' Did",
    ),
    (node("m1", placement=3), "spec.nodes.m1.placement: expected one of Auto, Dedicated, Inline, not 3"),
    (node("m1", autoscaling={}), 'spec.nodes.m1.autoscaling: the field "maxReplicas" is missing'),
    (
        node("m1", env=[{"name": "A", "valu": "b"}]),
        "spec.nodes.m1.env[0]: unknown field 'valu' Did you mean \"value\"?",
    ),
    (
        node("m1", volumes=[{"name": "v", "mountPath": "x", "source": {}}]),
        "spec.nodes.m1.volumes[0].mountPath: expected an",
    ),
    (node("m1", nodeSelector={"a": 1}), "spec.nodes.m1.nodeSelector.a: expected a string, not 1"),
    (node("m1", userConfig=[1]), "spec.nodes.m1.userConfig: expected an object, not a list"),
    (node("m1", maxQueuedRequests=-2), "spec.nodes.m1.maxQueuedRequests: -2 is below the minimum, -1"),
    (node("m1", gpuResourceName="x" * 300), "spec.nodes.m1.gpuResourceName: longer than 253 characters"),
    (lambda spec: spec["ingress"].update(route="x"), "spec.ingress.route: expected a path that starts with"),
    (lambda spec: spec["ingress"]["service"].update(port=0), "spec.ingress.service.port: 0 is below the minimum, 1"),
    (lambda spec: spec["ingress"].update(replicas=0), "spec.ingress.replicas: 0 is below the minimum, 1"),
    (lambda spec: spec["cluster"]["workers"].update(maxReplicas=0), "spec.cluster.workers.maxReplicas: 0 is below"),
]


@pytest.mark.parametrize(("change", "wanted"), WRONG, ids=[wanted[:60] for _, wanted in WRONG])
def test_what_is_wrong_is_named_and_the_schema_refuses_it_too(change: Change, wanted: str, document: Json) -> None:
    change(document["spec"])
    assert any(found.startswith(wanted) for found in problems_of(document)), problems_of(document)
    # Names of nodes are CEL's; and a null node is one that is not there to an API server, which drops it silently.
    if not wanted.startswith(("spec.nodes.a", "spec.nodes.A", "spec.nodes.m1: expected an object, not null")):
        spec = without_nulls(document["spec"])
        assert list(schema().iter_errors(spec)) or unknown_fields(spec, schema().schema)


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        (None, ": expected a ServePipeline, not null"),
        ([], ": expected a ServePipeline, not a list"),
        ("x", ": expected a ServePipeline, not 'x'"),
        ({}, "kind: expected ServePipeline, not null"),
        ({"kind": "Deployment"}, "kind: expected ServePipeline, not 'Deployment'"),
        ({"kind": "List", "items": []}, "kind: expected ServePipeline, not 'List' Name one object: kubectl get"),
        ({"kind": "ServePipeline"}, "apiVersion: expected servepipe.dev/v1alpha1, not null"),
        (
            {"kind": "ServePipeline", "apiVersion": "servepipe.dev/v2"},
            "apiVersion: expected servepipe.dev/v1alpha1, not 'servepipe.dev/v2'",
        ),
    ],
)
def test_other_documents_are_named(document: Any, wanted: str) -> None:
    assert problems_of(document)[0].startswith(wanted)


@pytest.mark.parametrize("name", ["", "9a", "A", "a-", "a" * 45, "a.b", "a\n", "a b"])
def test_names_that_a_cluster_could_not_use_are_refused(name: str, document: Json) -> None:
    document["metadata"]["name"] = name
    assert problems_of(document)[0].startswith("metadata.name: ")


def test_all_problems_are_told_at_once_in_order(document: Json) -> None:
    document["spec"]["nodes"]["m1"]["replicas"] = "3"
    document["spec"]["pausd"] = True
    document["spec"]["nodes"]["m2"].pop("import")
    with pytest.raises(ResourceError) as caught:
        api.validate(document)
    assert str(caught.value).splitlines() == [
        "spec.nodes.m1.replicas: expected an integer, not '3'",
        "  Write a whole number without quotes, such as 2.",
        'spec.nodes.m2: the field "import" is missing',
        "spec: unknown field 'pausd'",
        '  Did you mean "paused"?',
    ]


@pytest.mark.parametrize("when", [1.5, [1], {"$int": "1"}, 2**64])
def test_cases_compare_with_scalars(when: Any, document: Json) -> None:
    document["spec"]["graph"]["steps"].append({"name": "s", "switch": {"on": 1, "cases": [{"when": when, "then": 1}]}})
    assert problems_of(document) == [
        "spec.graph.steps[3].switch.cases[0].when: expected a string, a 64-bit integer or a boolean"
    ]
    document["spec"]["graph"]["steps"][3]["switch"]["cases"][0]["when"] = True
    assert api.validate(document).spec.graph.steps[3].switch is not None


@pytest.mark.parametrize("value", [b"x", {1, 2}, object(), float("nan"), {1: 2}, 1 + 2j])
def test_free_form_fields_take_json_only(value: Any, document: Json) -> None:
    document["spec"]["nodes"]["m1"]["args"] = [[value]]
    assert "spec.nodes.m1.args[0]" in problems_of(document)[0]


def test_free_form_fields_are_bounded_in_depth(document: Json) -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    document["spec"]["nodes"]["m1"]["args"] = value
    assert "nested deeper than" in problems_of(document)[0]


def test_free_form_objects_are_sorted_as_a_cluster_gives_them_back(document: Json) -> None:
    document["spec"]["nodes"]["m1"]["userConfig"] = {"b": [{"d": 1, "c": 2}], "a": 1}
    kept = api.validate(document).spec.nodes["m1"].user_config
    assert kept is not None
    assert list(kept) == ["a", "b"]
    assert list(kept["b"][0]) == ["c", "d"]


def test_whole_numbers_are_quantities_too(document: Json) -> None:
    document["spec"]["nodes"]["m1"]["resources"] = {"cpu": 4, "custom": {"tpu": 1}}
    resources = api.validate(document).spec.nodes["m1"].resources
    assert resources is not None
    assert (resources.cpu, resources.custom) == ("4", {"tpu": "1"})


def test_models_do_not_change(diamond: ServePipeline) -> None:
    with pytest.raises(ValueError, match="frozen"):
        diamond.spec.paused = True  # type: ignore[misc]


def test_a_node_knows_what_makes_a_new_revision(diamond: ServePipeline) -> None:
    assert diamond.spec.nodes["m1"].identity() == {
        "import": "diamond:Model",
        "args": [1],
        "resources": {"cpu": "500m", "memory": "1Gi", "gpu": "1"},
    }
    aliases = {field.alias for field in NodeSpec.model_fields.values()}
    assert set(IDENTITY_FIELDS) < aliases
    assert set(INLINE_REFUSES) < aliases


def test_graph_and_name_are_at_hand(diamond: ServePipeline) -> None:
    assert diamond.name == "diamond"
    assert [step.name for step in diamond.spec.graph.to_ir().steps] == ["m1-output", "m2-output", "ray-dag"]


def test_a_status_of_another_release_is_kept_as_it_is(document: Json) -> None:
    document["status"] = {"phase": "Old", "conditions": "none"}
    assert api.validate(document).status == {"conditions": "none", "phase": "Old"}


def test_the_status_model_takes_what_the_columns_show() -> None:
    status = Status.model_validate(
        {
            "observedGeneration": 7,
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "Ready", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            ],
            "nodesReady": "2/2",
            "nodes": {"m1": {"revision": "6f3a91c2", "candidate": {"revision": "b81d02aa", "weight": 10}}},
        }
    )
    assert status.to_json()["nodes"]["m1"]["candidate"]["weight"] == 10


def test_problems_read_well() -> None:
    assert str(Problem("spec.x", "is wrong", "Do this.")) == "spec.x: is wrong\n  Do this."
    assert str(Problem("", "is wrong")) == "is wrong"
    assert Problem.of(ResourceError("is wrong", where="a", fix="b")) == Problem("a", "is wrong", "b")


# --- The schema as a JSON schema --------------------------------------------------------------------------------------


def schema() -> jsonschema.Draft7Validator:
    spec = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return jsonschema.Draft7Validator(spec)


def without_nulls(value: Any) -> Any:
    """What an API server does with nulls of typed fields."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def unknown_fields(value: Any, part: Json) -> list[str]:
    """What an API server would prune, or refuse with fieldValidation=Strict."""
    if part.get("x-kubernetes-preserve-unknown-fields"):
        return []
    if isinstance(value, list):
        return [found for item in value for found in unknown_fields(item, part["items"])]
    if not isinstance(value, dict):
        return []
    known = part.get("properties", {})
    extra = part.get("additionalProperties")
    found = [key for key in value if key not in known and extra is None]
    for key, item in value.items():
        if key in known or extra is not None:
            found += unknown_fields(item, known.get(key) or extra)
    return found


def test_the_schema_takes_the_diamond(document: Json) -> None:
    assert list(schema().iter_errors(document["spec"])) == []
    assert unknown_fields(document["spec"], schema().schema) == []
    changed = copy.deepcopy(document["spec"])
    changed["nodes"]["m1"]["replicsa"] = 1
    assert unknown_fields(changed, schema().schema) == ["replicsa"]
