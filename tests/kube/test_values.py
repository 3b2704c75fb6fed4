"""Values come back from a real cluster as they were bound, whichever kubectl brought them there."""

import json
from typing import Any

import pytest
from bed.client import Object
from bed.control_plane import ControlPlane
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_values import LEAVES, NAMES, VALUES, exactly

from servepipe import api
from servepipe.api.document import MAX_BYTES, WARN_BYTES
from servepipe.errors import GraphTooLargeError, ServePipeError
from servepipe.graph.wire import MAX_DEPTH, decode_value, encode_value

APPLY = {"plain": ["apply"], "server-side": ["apply", "--server-side"]}
# Each example is six runs of kubectl with this many nodes in one resource.
NODES = 20
SETTINGS = settings(
    deadline=None,
    max_examples=5,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would run kubectl for minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)

Bound = dict[str, Any]


def in_file(nodes: list[Bound], namespace: str) -> str:
    """What is written for nodes that each have these values as args, kwargs and userConfig."""
    return api.write(api.validate(document(nodes, namespace)))


def document(nodes: list[Bound], namespace: str) -> Object:
    return {
        "apiVersion": "servepipe.dev/v1alpha1",
        "kind": "ServePipeline",
        "metadata": {"name": "values", "namespace": namespace},
        "spec": {
            "graph": {
                "steps": [{"name": "a", "node": "n0", "args": [encode_value(list(nodes[0].values()), "x")]}],
                "output": {"$step": "a"},
            },
            "nodes": {
                f"n{number}": {
                    "import": "mod:Class",
                    "args": [None if value is None else encode_value(value, "x") for value in values.values()],
                    "kwargs": {key: encode_value(value, "x") for key, value in values.items()},
                    "userConfig": encode_value(values, "x"),
                }
                for number, values in enumerate(nodes)
            },
        },
    }


def out_of(resource: api.ServePipeline) -> list[Any]:
    """The values of every node as its replicas get them."""
    nodes = [resource.spec.nodes[f"n{number}"] for number in range(len(resource.spec.nodes))]
    return [
        (
            [decode_value(arg) for arg in node.args],
            {key: decode_value(value) for key, value in node.kwargs.items()},
            decode_value(node.user_config),
        )
        for node in nodes
    ]


class Cluster:
    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane, self.namespace = plane, namespace
        self.folder = f"/apis/servepipe.dev/v1alpha1/namespaces/{namespace}/servepipelines"

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.plane.kubectl("-n", self.namespace, *arguments, stdin=stdin).stdout

    def clear(self) -> None:
        if self.plane.api.find(f"{self.folder}/values"):
            self.plane.api.delete(f"{self.folder}/values")

    def holds(self, nodes: list[Bound], text: str, printed_as: str) -> None:
        """The object has exactly these values, and is written as it was, however it is read."""
        wanted = exactly([(list(values.values()), values, values) for values in nodes])
        printed = self.kubectl("get", "svp", "values", "-o", printed_as)
        for resource in (api.validate(self.plane.api.get(f"{self.folder}/values")), api.read(printed)):
            assert exactly(out_of(resource)) == wanted
            assert api.write(resource) == text


@pytest.fixture
def cluster(control_plane: ControlPlane, namespace: str) -> Cluster:
    return Cluster(control_plane, namespace)


def printable(value: Any) -> Any:
    """The value without strings that `kubectl get -o yaml` prints bare and that our reader refuses."""
    if isinstance(value, str):
        return value.replace("<<", "?")
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return type(value)(map(printable, value)) if isinstance(value, list | tuple) else value


#: What becomes of a null in a field that preserves what it does not know, by the way in which it came.
WAYS = {
    ("apply",): "dropped",
    ("apply", "--server-side"): "kept",
    ("create",): "kept",
    ("replace",): "kept",
    ("patch", "--type=merge"): "dropped",
}


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
@pytest.mark.parametrize("before", ["a value", "nothing"])
def test_what_a_template_removes_arrives_by_every_way(cluster: Cluster, way: tuple[str, ...], before: str) -> None:
    def file(fields: Object) -> str:
        made = document([{"a": 1}], cluster.namespace)
        made["spec"]["nodes"]["n0"]["template"] = {"spec": fields}
        return json.dumps(made)

    def stored(sent: str) -> Object:
        cluster.clear()
        if way != ("create",):
            there = {"marked": "x", "plain": "x"} if before == "a value" else {}
            cluster.kubectl(*(("create",) if way[0] in ("replace", "patch") else way), "-f", "-", stdin=file(there))
        if way[0] == "patch":
            cluster.kubectl(*way, "svp", "values", "-p", sent)
        else:
            cluster.kubectl(*way, "-f", "-", stdin=sent)
        live = cluster.plane.api.get(f"{cluster.folder}/values")
        found: Object = live["spec"]["nodes"]["n0"]["template"]["spec"]
        return found

    mark = {"$null": True}
    sent = file({"marked": mark, "plain": None})
    assert stored(sent) == {"marked": mark} | ({"plain": None} if WAYS[way] == "kept" else {})
    assert stored(
        api.write(api.validate(json.loads(sent))) if way[0] != "patch" else file({"marked": mark, "plain": mark})
    ) == {
        "marked": mark,
        "plain": mark,
    }


WILD = LEAVES | st.floats() | st.binary(max_size=3) | st.text(st.characters(), max_size=3) | st.just("\ud800")
MANY = st.lists(st.dictionaries(NAMES, VALUES, min_size=1, max_size=2), min_size=NODES, max_size=NODES)


@pytest.mark.parametrize("way", APPLY)
def test_values_come_back_after_create_and_update(cluster: Cluster, way: str) -> None:
    @SETTINGS
    @given(MANY, MANY)
    def check(first: list[Bound], second: list[Bound]) -> None:
        cluster.clear()
        for nodes, printed_as in ((first, "json"), (printable(second), "yaml")):
            text = in_file(nodes, cluster.namespace)
            cluster.kubectl(*APPLY[way], "-f", "-", stdin=text)
            cluster.holds(nodes, text, printed_as)

    check()


@pytest.mark.parametrize("way", APPLY)
def test_what_nests_as_deeply_as_we_allow_comes_back(cluster: Cluster, way: str) -> None:
    values: Bound = {"lists": 1, "tuples": 1, "escaped": 1}
    # One less: userConfig holds the values in an object.
    for _ in range(MAX_DEPTH - 1):
        values = {
            "lists": [values["lists"]],
            "tuples": (values["tuples"],),
            "escaped": {"$a": values["escaped"]},
        }
    text = in_file([values], cluster.namespace)
    cluster.kubectl(*APPLY[way], "-f", "-", stdin=text)
    cluster.holds([values], text, "yaml")


@pytest.mark.parametrize("way", APPLY)
@pytest.mark.parametrize("character", ["x", "<", "\u2028", "\n"])
def test_a_size_that_the_api_server_refuses_is_refused_before(cluster: Cluster, character: str, way: str) -> None:
    """The largest text that passes without an error, for plain apply without a notice, is taken."""
    limit = WARN_BYTES if way == "plain" else MAX_BYTES
    count = (limit - 500) // (len(go_writes(character)))
    resource = large(cluster, character * count)
    assert api.notices(resource) == [] if way == "plain" else api.problems(resource) == []
    cluster.kubectl(*APPLY[way], "-f", "-", stdin=api.write(resource))
    longer = large(cluster, character * (count + 600))
    if way == "plain":
        assert "stops at 256 KiB" in api.notices(longer)[0].what
    else:
        with pytest.raises(GraphTooLargeError):
            api.write(longer)


def large(cluster: Cluster, text: str) -> api.ServePipeline:
    resource = document([{"a": 1}], cluster.namespace)
    resource["spec"]["nodes"]["n0"]["userConfig"] = {"a": text}
    return api.validate(resource)


def go_writes(character: str) -> bytes:
    """As JSON with what Go escapes besides."""
    if character in "<>&\u2028\u2029":
        return f"\\u{ord(character):04x}".encode()
    return json.dumps(character, ensure_ascii=False)[1:-1].encode()


@settings(SETTINGS, max_examples=100)
@given(st.recursive(WILD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)))
def test_what_is_bound_is_refused_here_or_taken_there(cluster: Cluster, value: Any) -> None:
    try:
        resource = api.validate(document([{"a": value}], cluster.namespace))
    except ServePipeError as error:
        assert "x" in str(error)
    else:
        cluster.plane.api.create(cluster.folder, json.loads(json.dumps(resource.to_json())), dry_run=True)


@pytest.mark.parametrize("way", APPLY)
@pytest.mark.parametrize("character", ["\x7f", "\x85", "\x9f", "\ufeff", "\ufffe", "\uffff"])
def test_what_yaml_does_not_allow_comes_back(cluster: Cluster, character: str, way: str) -> None:
    nodes = [{"a": f"x{character}y\\u0085"}]
    text = in_file(nodes, cluster.namespace)
    cluster.kubectl(*APPLY[way], "-f", "-", stdin=text)
    cluster.holds(nodes, text, "yaml")


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, -(2**63)])
def test_large_integers_survive_an_update_by_plain_apply(cluster: Cluster, number: int) -> None:
    for nodes in ([{"a": [0]}], [{"a": [1, number]}]):
        text = in_file(nodes, cluster.namespace)
        cluster.kubectl("apply", "-f", "-", stdin=text)
        cluster.holds(nodes, text, "json")
