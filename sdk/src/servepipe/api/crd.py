"""The CustomResourceDefinition, generated from the models.

A CRD's schema is *structural*: a subset of OpenAPI without references, alternatives and nulls. `_structural` turns what
pydantic describes into it; the CEL rules, list types and free-form marks stand beside the fields in the models.

There are no ``default``s in it: what the author did not set stays unset in the cluster too, so that a compiled file and
the stored object compare equal, and that a later release can improve a default. The description of each field names it.

``python -m servepipe.api.crd`` writes the file, ``--check`` says whether it is up to date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from servepipe.api.v1alpha1 import KIND, ServePipeline, Spec, Status
from servepipe.api.v1alpha1.base import rules_of
from servepipe.api.yaml_writer import write_yaml

__all__ = ["FILE", "crd", "main", "text"]

#: Where the generated file is, from the root of the repository.
FILE = "crds/servepipelines.servepipe.dev.yaml"

_COLUMNS = (
    ("Available", '.status.conditions[?(@.type=="Available")].status', "Whether callers are answered now."),
    ("Ready", '.status.conditions[?(@.type=="Ready")].status', "Whether what serves is what the spec asks for."),
    ("Nodes", ".status.nodesReady", "Nodes that are ready."),
    ("Upgrading", ".status.upgrading", "Nodes that are being upgraded, with the candidate's weight."),
    ("URL", ".status.url", "Where callers reach the pipeline."),
)
# Facts about a value that mean the same in a structural schema; everything else is dropped or translated.
_KEPT = (
    "type",
    "format",
    "pattern",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition as JSON."""
    schema = {
        "description": _words(ServePipeline.__doc__),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": "Version of this schema.", "type": "string"},
            "kind": {"description": f"{KIND}.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": _schema_of(Spec),
            "status": _schema_of(Status),
        },
        "x-kubernetes-validations": rules_of(ServePipeline),
    }
    columns: list[dict[str, Any]] = [
        {"name": name, "type": "string", "jsonPath": path, "description": description}
        for name, path, description in _COLUMNS
    ]
    columns.append({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"})
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "servepipelines.servepipe.dev"},
        "spec": {
            "group": "servepipe.dev",
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": "servepipelines",
                "singular": "servepipeline",
                "shortNames": ["svp"],
            },
            "versions": [
                {
                    "name": "v1alpha1",
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def text() -> str:
    """The CustomResourceDefinition as YAML, the content of `FILE`."""
    return "# Generated from sdk/src/servepipe/api/v1alpha1 by `python -m servepipe.api.crd`.\n" + write_yaml(crd())


def _schema_of(model: type[Spec] | type[Status]) -> dict[str, Any]:
    schema = model.model_json_schema()
    return _structural(schema, schema.get("$defs", {}))


def _structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """One schema of pydantic's as a structural one. The models do not recur, so inlining ends."""
    schema = _resolved(schema, definitions)
    result: dict[str, Any] = {}
    if "description" in schema:
        result["description"] = _words(schema["description"])
    result |= {key: schema[key] for key in _KEPT if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        # The pattern holds for text; integers are bounded here.
        del result["type"]
        result |= {"anyOf": [{"type": "integer"}, {"type": "string"}], "minimum": 0}
    if "properties" in schema:
        result["properties"] = {name: _structural(field, definitions) for name, field in schema["properties"].items()}
    # Keys with a pattern of their own are "patternProperties" to pydantic; a structural schema leaves that to CEL.
    values = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), None)
    if isinstance(values, dict):
        result["additionalProperties"] = _structural(values, definitions)
    if "items" in schema:
        result["items"] = _structural(schema["items"], definitions)
    return result


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema without ``$ref`` and without the alternative null; what stands beside a reference wins."""
    schema = dict(schema)
    while True:
        if "$ref" in schema:
            target = definitions[schema.pop("$ref").rpartition("/")[2]]
        elif "anyOf" in schema:
            [target] = [member for member in schema.pop("anyOf") if member.get("type") != "null"]
        else:
            return schema
        schema = {**target, **schema}


def _words(docstring: str | None) -> str:
    return " ".join((docstring or "").split())


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or with ``--check`` compare it. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m servepipe.api.crd", description="Generate the CRD from the models."
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the file is out of date")
    parser.add_argument("--file", type=Path, default=Path(FILE), help=f"default: {FILE}")
    options = parser.parse_args(arguments)
    path: Path = options.file
    if not options.check:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(), encoding="utf-8", newline="\n")
        return 0
    if path.is_file() and path.read_bytes() == text().encode():
        return 0
    sys.stderr.write(f"{path} is out of date; run: python -m servepipe.api.crd\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
