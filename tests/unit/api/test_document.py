"""Reading and writing whole documents."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from servepipe import api
from servepipe.api import InvalidResourceError
from servepipe.api.document import MAX_BYTES, WARN_BYTES, size, to_document
from servepipe.api.v1alpha1 import ServePipeline
from servepipe.api.yaml_reader import MAX_TEXT, read_yaml
from servepipe.api.yaml_writer import write_yaml
from servepipe.errors import GraphTooLargeError, ResourceError


def test_the_canonical_text_is_the_one_in_the_documentation(diamond: ServePipeline, diamond_text: str) -> None:
    assert api.write(diamond) == diamond_text
    assert api.read(diamond_text) == diamond


def test_the_text_does_not_depend_on_the_order_of_what_was_read(document: dict[str, Any], diamond_text: str) -> None:
    # A cluster sorts the keys of all objects.
    assert api.write(api.read(yaml.safe_dump(document, sort_keys=True))) == diamond_text
    nodes = document["spec"]["nodes"]
    document["spec"]["nodes"] = {"z": {"import": "a:b"}, "held": {"import": "a:b"}, **dict(sorted(nodes.items()))}
    assert list(to_document(api.validate(document))["spec"]["nodes"]) == ["m1", "m2", "ensemble", "held", "z"]


def test_fields_are_written_in_the_order_of_the_models(document: dict[str, Any]) -> None:
    document["spec"] = dict(reversed(document["spec"].items()))
    document = dict(reversed(document.items()))
    lines = api.write(api.validate(document)).splitlines()
    assert [line.strip().partition(":")[0] for line in lines if line.startswith(("  ", "a", "k", "m", "s"))][:6] == [
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        "rayVersion",
        "image",
    ]
    assert lines.index("    m1:") < lines.index('    m2: {import: "diamond:Model", args: [2]}')


def test_what_a_cluster_adds_is_read_but_not_written(document: dict[str, Any], diamond_text: str) -> None:
    document["metadata"] |= {
        "uid": "5b5e",
        "resourceVersion": "12",
        "generation": 3,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {"f:nodes": {".": {}}}}}],
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
        "labels": {},
    }
    document["status"] = {"observedGeneration": 3, "conditions": [{"type": "Ready", "status": "True"}]}
    got = api.read(yaml.safe_dump(document))
    assert got.metadata.generation == 3
    assert got.status == document["status"]
    assert api.write(got) == diamond_text
    assert api.write(api.read(json.dumps(document, indent="\t"))) == diamond_text


def test_names_labels_and_annotations_are_kept(document: dict[str, Any]) -> None:
    document["metadata"] |= {"namespace": "ml", "labels": {"a/b": "y"}, "annotations": {"n": "1", "m": ""}}
    text = api.write(api.validate(document))
    assert text.splitlines()[2] == (
        'metadata: {name: diamond, namespace: ml, labels: {a/b: "y"}, annotations: {m: "", "n": "1"}}'
    )


def test_a_file_is_read_from_a_path_or_its_name(tmp_path: Path, diamond: ServePipeline, diamond_text: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"\xef\xbb\xbf---\r\n" + diamond_text.replace("\n", "\r\n").encode() + b"---\n")
    assert api.read(path) == diamond
    assert api.read(str(path)) == diamond


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "cannot be read: not UTF-8 text"),
        (b"", "expected one YAML document, there is none"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None, wanted: str) -> None:
    path = tmp_path / "p.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ResourceError, match=wanted) as caught:
        api.read(path)
    assert caught.value.where == str(path)


def test_a_path_that_no_system_takes_is_an_error_too() -> None:
    with pytest.raises(ResourceError, match="cannot be read"):
        api.read("a\0b")


# --- Size -------------------------------------------------------------------------------------------------------------


def of_size(document: dict[str, Any], length: int) -> ServePipeline:
    document["spec"]["nodes"]["m1"]["args"] = [""]
    document["spec"]["nodes"]["m1"]["args"] = ["x" * (length - size(api.validate(document)))]
    resource = api.validate(document)
    assert size(resource) == length
    return resource


def test_large_resources_are_noticed_and_larger_ones_refused(document: dict[str, Any]) -> None:
    assert api.notices(of_size(document, WARN_BYTES)) == []
    noticed = of_size(document, WARN_BYTES + 1024)
    assert "plain `kubectl apply` stops" in api.notices(noticed)[0].what
    assert api.problems(noticed) == []
    assert api.read(api.write(of_size(document, MAX_BYTES))).name == "diamond"
    refused = of_size(document, MAX_BYTES + 1)
    with pytest.raises(GraphTooLargeError, match="1024 KiB"):
        api.write(refused)
    assert "a cluster stores at most 1024 KiB" in api.problems(refused)[0].what


def test_text_that_is_no_text_is_refused(document: dict[str, Any]) -> None:
    document["metadata"]["labels"] = {"a": "\ud800"}
    document["spec"]["nodes"]["m1"] |= {"args": [["\ud800"]], "userConfig": {"\ud800": 1}}
    with pytest.raises(InvalidResourceError, match="lone surrogate") as caught:
        api.validate(document)
    assert {problem.where for problem in caught.value.problems} == {
        "metadata.labels.a",
        "spec.nodes.m1.args[0][0]",
        "spec.nodes.m1.userConfig",
    }


def test_a_tab_that_indents_is_named() -> None:
    with pytest.raises(ResourceError, match="not YAML") as caught:
        read_yaml("a:\n\tb: 1\n", "f")
    assert (caught.value.where, caught.value.fix) == ("f:2:1", "Indent with spaces: YAML takes no tabs for it.")


# --- Documents that are not what they should be -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: [1\nb: 2\n", "f:2:2", "not YAML: "),
        ("a: 1\n b: 2\n", "f:2:3", "not YAML: "),
        ("a: \x01\n", "f", "not YAML: "),
        ("a: 1\na: 2\n", "f:2:1", "the key 'a' stands twice"),
        ('{"a": 1, "a": 2}', "f", "the key 'a' stands twice"),
        ("{a: 1, a: 2}", "f:1:8", "the key 'a' stands twice"),
        ("1: 2\n", "f:1:1", "the key 1 is not a string"),
        ("yes: 2\n", "f:1:1", "yes is true to kubectl and a string to YAML 1.2"),
        ("~: 2\n", "f:1:1", "the key ~ is not a string"),
        ("[a]: 2\n", "f:1:1", "a key is a string, not a list or an object"),
        ("a: &x 1\nb: *x\n", "f:1:4", "anchors and aliases are not supported"),
        ("a: &x {}\n", "f:1:4", "anchors and aliases are not supported"),
        ("a: !!str 1\n", "f:1:4", "the tag tag:yaml.org,2002:str is not supported"),
        ("a: !x []\n", "f:1:4", "the tag !x is not supported"),
        ("<<: {a: 1}\n", "f:1:1", "<< merges another object"),
        ("a: 1\n---\nb: 2\n", "f", "expected one YAML document, there are 2"),
        ("# nothing\n", "f", "expected one YAML document, there is none"),
        ("a: 010\n", "f:1:4", "010 is a number to some readers of YAML"),
        ("a: .inf\n", "f:1:4", ".inf is a number that JSON does not have"),
        ("a: 'b\u2028c'\n", "f:1", "U+2028 is a line break to some readers"),
        ('{"a": NaN}', "f", "NaN is not JSON"),
        ('{"a": 1e999}', "f", "1e999 is larger than any number can be"),
        ('{"a": "\\ud800"}', "f", "lone surrogate"),
        ("[" * 100_000, "f:1:151", "nested deeper than 150"),
        ('{"a":' * 100_000, "f", "nested"),
        ("x" * (MAX_TEXT + 1), "f", "more than any resource may have"),
    ],
)
def test_text_that_is_not_plain_json_values_is_refused_at_its_place(text: str, where: str, what: str) -> None:
    with pytest.raises(ResourceError) as caught:
        read_yaml(text, "f")
    assert what in caught.value.what
    assert caught.value.where.startswith(where)


def test_places_without_a_file_are_lines() -> None:
    with pytest.raises(ResourceError) as caught:
        api.read("a: 1\na: 2\n")
    assert caught.value.where == "line 2:1"
    with pytest.raises(ResourceError) as caught:
        read_yaml("a: '\x85'")
    assert caught.value.where == "line 1"


def test_aliases_that_unfold_without_end_are_refused() -> None:
    bomb = "a: &a [x]\n" + "".join(f"{key}: &{key} [*{last}, *{last}]\n" for last, key in pairwise("abcdefgh"))
    with pytest.raises(ResourceError, match="anchors and aliases"):
        read_yaml(bomb)


def test_escapes_for_lone_surrogates_are_refused() -> None:
    with pytest.raises(ResourceError):
        read_yaml('a: "\\uD800"\n')


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (
            "[0x1F, 1.0, 1e3, 1e+21, -0.5, 1e400, 2001-12-14, 500m, =]",
            [31, 1, 1000, 1e21, -0.5, "1e400", "2001-12-14", "500m", "="],
        ),
        ("[~, null, true, False, 'a', \"b\", c d]", [None, None, True, False, "a", "b", "c d"]),
        ("a:\nb: ''\n", {"a": None, "b": ""}),
        ('{"a": 1.0, "b": [1e2, -1, 0.5], "c": null}', {"a": 1, "b": [100, -1, 0.5], "c": None}),
        ("{a: 1}", {"a": 1}),
        ("- |\n  a\n  b\n- >\n  a\n  b\n", ["a\nb\n", "a b\n"]),
        ("%YAML 1.1\n---\na: 1\n...\n", {"a": 1}),
        ("plain text\n", "plain text"),
    ],
)
def test_plain_json_values_are_read_as_kubectl_reads_them(text: str, value: Any) -> None:
    got = read_yaml(text)
    assert json.dumps(got) == json.dumps(value)


def test_the_reader_does_without_libyaml(monkeypatch: pytest.MonkeyPatch, diamond_text: str) -> None:
    wanted = read_yaml(diamond_text)
    monkeypatch.setattr("servepipe.api.yaml_reader._LOADER", yaml.SafeLoader)
    assert read_yaml(diamond_text) == wanted
    with pytest.raises(ResourceError, match="lone surrogate"):
        read_yaml('a: "\\uD800"\n')


# --- Writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{}\n"),
        (
            {"a": None, "b": True, "c": False, "d": -1, "e": 1e-5, "f": 1e20},
            "a: null\nb: true\nc: false\nd: -1\ne: 0.00001\nf: 100000000000000000000.0\n",
        ),
        ({"a": [], "b": {}, "c": [[], {}]}, "a: []\nb: {}\nc: [[], {}]\n"),
        ({"a": {"b": "c:d", "e": "f"}, "g": "c:d"}, 'a: {b: "c:d", e: f}\ng: c:d\n'),
        ({"a:b": 1, "y": "n", "": ""}, '"a:b": 1\n"y": "n"\n"": ""\n'),
        ({"a": ["x" * 60, ["y" * 60, ["z" * 60]]]}, f"a:\n- {'x' * 60}\n- - {'y' * 60}\n  - [{'z' * 60}]\n"),
        ({"a": [{"b": "x" * 60, "c": "y" * 60}]}, f"a:\n- b: {'x' * 60}\n  c: {'y' * 60}\n"),
        ({"a": {"b": "x" * 60, "c": {"d": "y" * 60}}}, f"a:\n  b: {'x' * 60}\n  c: {{d: {'y' * 60}}}\n"),
        ({"x" * 1001: [1, {"a": "y" * 120}]}, f"? {'x' * 1001}\n:\n- 1\n- a: {'y' * 120}\n"),
    ],
)
def test_documents_are_written_like_this(value: dict[str, Any], text: str) -> None:
    assert write_yaml(value) == text
    assert yaml.safe_load(text) == value


def test_lines_end_at_120_columns_unless_a_string_is_longer() -> None:
    for length in range(90, 130):
        text = write_yaml({"spec": {"a": [{"b": "x" * (length - 20), "c": 1}]}})
        assert max(map(len, text.splitlines())) <= 120
    assert len(write_yaml({"a": {"b": "c" * 112}}).splitlines()) == 1  # a: {b: ...} of exactly 120
    assert len(write_yaml({"a": {"b": "c" * 113}}).splitlines()) == 2


def test_deeply_nested_documents_are_written() -> None:
    value: Any = ["x" * 200] * 200
    for _ in range(100):
        value = [value, {"k": "x" * 100}]
    assert read_yaml(write_yaml({"a": value})) == {"a": value}


SAME_BYTES = """
import sys
from servepipe import api
sys.stdout.write(api.write(api.read(sys.argv[1])))
"""


def test_the_bytes_do_not_depend_on_the_process(tmp_path: Path, diamond_text: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(diamond_text)
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SAME_BYTES, str(path)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            cwd=folder,
            capture_output=True,
            check=True,
        ).stdout
        for seed, folder in (("1", tmp_path), ("2", "/"))
    ]
    assert outputs == [diamond_text.encode()] * 2


def test_the_package_is_lazy() -> None:
    code = "import servepipe.api, sys; assert 'pydantic' not in sys.modules, 'pydantic is loaded'"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        api.nothing  # type: ignore[attr-defined]  # noqa: B018
    assert all(getattr(api, name) is not None for name in api.__all__)


def test_the_document_is_a_copy(diamond: ServePipeline) -> None:
    to_document(diamond)["spec"]["nodes"].clear()
    assert len(diamond.spec.nodes) == 3
