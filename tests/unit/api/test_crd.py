"""The generated CustomResourceDefinition: up to date, structural, bounded, documented."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from servepipe.api import crd

Json = dict[str, Any]


def schemas(schema: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Every schema inside, with its path."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from schemas(field, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from schemas(schema[key], f"{path}[]")


@pytest.fixture
def root() -> Json:
    schema: Json = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def test_the_file_in_the_repository_is_up_to_date(crd_file: Path) -> None:
    assert crd_file.read_text(encoding="utf-8") == crd.text(), "run: python -m servepipe.api.crd"
    assert yaml.safe_load(crd.text()) == crd.crd()


def test_check_tells_a_stale_file_and_writing_renews_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "crds" / "x.yaml"
    assert crd.main(["--check", "--file", str(path)]) == 1
    assert "is out of date; run: python -m servepipe.api.crd" in capsys.readouterr().err
    assert crd.main(["--file", str(path)]) == 0
    assert crd.main(["--check", "--file", str(path)]) == 0
    path.write_text(path.read_text() + "#\n")
    assert crd.main(["--check", "--file", str(path)]) == 1


def test_plain_apply_can_take_it() -> None:
    assert len(crd.text().encode()) < 200 * 1024


def test_names_and_columns() -> None:
    spec = crd.crd()["spec"]
    assert spec["names"]["shortNames"] == ["svp"]
    [version] = spec["versions"]
    assert version["subresources"] == {"status": {}}
    assert [column["name"] for column in version["additionalPrinterColumns"]] == [
        "Available",
        "Ready",
        "Nodes",
        "Upgrading",
        "URL",
        "Age",
    ]


def test_the_schema_is_structural(root: Json) -> None:
    for path, schema in schemas(root):
        free = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-int-or-string")
        assert "type" in schema or free, path
        assert not {"$ref", "title", "default", "const", "nullable", "patternProperties", "propertyNames"} & set(
            schema
        ), path
        assert not ("properties" in schema and "additionalProperties" in schema), path
        if "anyOf" in schema:
            assert schema["x-kubernetes-int-or-string"], path
        assert ("items" in schema) == (schema.get("type") == "array"), path


def test_every_field_is_documented(root: Json) -> None:
    for path, schema in schemas(root):
        for name, field in schema.get("properties", {}).items():
            if name != "metadata":
                assert len(field.get("description", "")) > 5, f"{path}.{name}"


def test_everything_that_rules_walk_over_is_bounded(root: Json) -> None:
    for path, schema in schemas(root["properties"]["spec"], "spec"):
        free = "x-kubernetes-preserve-unknown-fields" in schema
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
        if schema.get("type") == "string" and "enum" not in schema:
            assert "maxLength" in schema or path.endswith("nodeSelector[]"), path
        if "additionalProperties" in schema and not free:
            assert "maxProperties" in schema, path
        if schema.get("type") == "integer":
            assert {"minimum", "maximum"} <= set(schema), path


def test_typed_fields_have_no_floats(root: Json) -> None:
    assert all(schema.get("type") != "number" for _, schema in schemas(root))


def test_free_form_fields_are_never_maps_that_drop_nulls(root: Json) -> None:
    node = root["properties"]["spec"]["properties"]["nodes"]["additionalProperties"]["properties"]
    for field in ("kwargs", "userConfig", "runtimeEnv", "template"):
        assert node[field]["x-kubernetes-preserve-unknown-fields"] is True
        assert "additionalProperties" not in node[field]
    assert node["args"]["items"] == {"x-kubernetes-preserve-unknown-fields": True}


def test_what_a_partial_apply_must_not_empty_is_required(root: Json) -> None:
    spec = root["properties"]["spec"]
    assert set(spec["required"]) == {"graph", "nodes"}
    assert spec["properties"]["nodes"]["additionalProperties"]["required"] == ["import"]
    assert spec["properties"]["graph"]["properties"]["steps"]["x-kubernetes-list-type"] == "atomic"


def test_rules_stand_where_they_guard(root: Json) -> None:
    rules = {
        path: [rule["rule"] for rule in schema["x-kubernetes-validations"]]
        for path, schema in schemas(root)
        if "x-kubernetes-validations" in schema
    }
    assert set(rules) == {
        "",
        ".spec",
        ".spec.graph",
        ".spec.graph.steps[]",
        ".spec.graph.steps[].split",
        ".spec.nodes",
        ".spec.nodes[]",
        ".spec.nodes[].autoscaling",
        ".spec.nodes[].upgrade",
        ".spec.ingress",
        ".spec.ingress.autoscaling",
        ".spec.cluster.workers",
    }
    assert rules[""] == ["self.metadata.name.matches('^[a-z]([-a-z0-9]{0,42}[a-z0-9])?$')"]
    assert rules[".spec"] == ["self.graph.steps.all(s, !has(s.node) || s.node in self.nodes)"]
