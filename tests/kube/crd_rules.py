"""Every rule of a CRD's schema, read from the CRD itself, and the CRD without some of them."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

BOUNDS = (
    "enum", "pattern", "format", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
    "minimum", "maximum",
)  # fmt: skip
EVERY = "*"  # in a path: each item of a list, each value of a map


@dataclass(frozen=True)
class Rule:
    """One rule: where it stands in an object, what kind it is, and what it says.

    `what` is the bound, the name of a required field, or the message of a CEL rule.
    """

    path: tuple[str, ...]
    kind: str
    what: Any

    def __str__(self) -> str:
        return f"{'.'.join(self.path) or '(root)'} {self.kind} {self.what if self.kind != 'enum' else list(self.what)}"


def rules(crd: dict[str, Any]) -> list[Rule]:
    """All of them, in the order of the schema."""
    return list(_rules(_schema(crd), ()))


def without(crd: dict[str, Any], gone: Iterable[Rule]) -> dict[str, Any]:
    """A copy of the CRD that lacks these rules."""
    crd = copy.deepcopy(crd)
    for rule in gone:
        schema = _schema(crd)
        for name in rule.path:
            schema = _child(schema, name)
        if rule.kind == "cel":
            key = "x-kubernetes-validations"
            schema[key] = [check for check in schema[key] if check["message"] != rule.what]
        elif rule.kind == "required":
            schema["required"] = [name for name in schema["required"] if name != rule.what]
        elif rule.kind == "unique":
            del schema["x-kubernetes-list-map-keys"]
            schema["x-kubernetes-list-type"] = "atomic"
        else:
            del schema[rule.kind]
    return crd


def _schema(crd: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def _child(schema: dict[str, Any], name: str) -> dict[str, Any]:
    child: dict[str, Any]
    if name == EVERY:
        child = schema["items"] if "items" in schema else schema["additionalProperties"]
    else:
        child = schema["properties"][name]
    return child


def _rules(schema: dict[str, Any], path: tuple[str, ...]) -> Iterator[Rule]:
    for check in schema.get("x-kubernetes-validations", []):
        yield Rule(path, "cel", check["message"])
    for name in schema.get("required", []):
        yield Rule(path, "required", name)
    for kind in BOUNDS:
        if kind in schema:
            yield Rule(path, kind, tuple(schema[kind]) if kind == "enum" else schema[kind])
    if "x-kubernetes-list-map-keys" in schema:
        yield Rule(path, "unique", schema["x-kubernetes-list-map-keys"][0])
    for name, child in schema.get("properties", {}).items():
        yield from _rules(child, (*path, name))
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _rules(schema[key], (*path, EVERY))
