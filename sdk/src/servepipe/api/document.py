"""Reading and writing ServePipeline documents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from servepipe.api.problem import InvalidResourceError, Problem, from_validation
from servepipe.api.v1alpha1 import API_VERSION, KIND, ServePipeline
from servepipe.api.yaml_reader import read_yaml
from servepipe.api.yaml_writer import write_yaml
from servepipe.errors import GraphTooLargeError, ResourceError
from servepipe.graph.fields import shown
from servepipe.graph.values import at_index, at_key

__all__ = ["MAX_BYTES", "WARN_BYTES", "load_yaml", "read", "size", "to_document", "validate", "write"]

#: Above it plain `kubectl apply` fails: it keeps a second copy of the resource in an annotation of at most 256 KiB.
WARN_BYTES = 200 * 1024
#: Above it an API server's store would refuse the resource once its status has grown.
MAX_BYTES = 1024 * 1024

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
# What people look for first is written one entry per line, however short it is.
_SPREAD = frozenset({("spec",), ("spec", "graph"), ("spec", "graph", "steps"), ("spec", "nodes")})


def read(source: str | Path) -> ServePipeline:
    """A resource from a file or from text: YAML or JSON.

    Text is a string that is empty or has a line break, a brace or ``": "`` in it; everything else is a path.
    Takes what `servepipe compile` wrote, what a person edited, and what `kubectl get -o yaml` or ``-o json`` printed.

    Raises:
        ResourceError: It cannot be read, is no YAML, or no ServePipeline; `InvalidResourceError` lists every problem.
    """
    return validate(load_yaml(source))


def load_yaml(source: str | Path) -> Any:
    """The JSON value of a file's or text's one YAML document, whatever it is; see `read`."""
    if isinstance(source, str) and (not source or any(mark in source for mark in ("\n", "{", ": "))):
        return read_yaml(source)
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise ResourceError(what, where=str(path), fix="Name a file that exists and that you may read.") from None
    except (UnicodeDecodeError, ValueError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ResourceError(f"cannot be read: {reason}", where=str(path)[:200]) from None
    return read_yaml(text, str(path))


def validate(json: Any) -> ServePipeline:
    """A resource from its JSON form: types, names, bounds. What a schema cannot see, `problems` finds.

    Raises:
        InvalidResourceError: It is not a ServePipeline; lists every problem.
    """
    if not isinstance(json, Mapping):
        raise InvalidResourceError([Problem("", f"expected a {KIND}, not {shown(json)}")])
    kind, version = json.get("kind"), json.get("apiVersion")
    if kind != KIND:
        fix = "Name one object: kubectl get servepipeline NAME -o yaml." if kind in ("List", f"{KIND}List") else ""
        raise InvalidResourceError([Problem("kind", f"expected {KIND}, not {shown(kind)}", fix)])
    if version != API_VERSION:
        raise InvalidResourceError([Problem("apiVersion", f"expected {API_VERSION}, not {shown(version)}")])
    try:
        resource = ServePipeline.model_validate(json)
    except ValidationError as error:
        raise InvalidResourceError(from_validation(error, ServePipeline)) from None
    if found := list(_not_text(resource.to_json())):
        raise InvalidResourceError(found)
    return resource


def _not_text(json: Any) -> Iterator[Problem]:
    """Strings from Python that UTF-8 cannot carry; YAML and JSON as text have none."""
    stack = [("", json)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            stack.extend((at_key(path, key), item) for key, item in value.items())
            stack.extend((path, key) for key in value)
        elif isinstance(value, list):
            stack.extend((at_index(path, index), item) for index, item in enumerate(value))
        elif isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                yield Problem(path, "a string has a lone surrogate, which UTF-8 cannot carry")


def to_document(resource: ServePipeline) -> dict[str, Any]:
    """The JSON that `write` writes: no status, no metadata that only a cluster sets, nothing that was not set."""
    json = resource.to_json()
    meta = json["metadata"]
    metadata = {key: meta[key] for key in ("name", "namespace", "labels", "annotations") if key in meta}
    if "annotations" in metadata:
        metadata["annotations"] = {k: v for k, v in metadata["annotations"].items() if k != _LAST_APPLIED}
    metadata = {key: value for key, value in metadata.items() if value}
    # A cluster gives maps back sorted. Nodes read best in the order in which the graph comes to them, and that order
    # can be had again from the steps; nodes that only others hold follow by name.
    nodes = json["spec"]["nodes"]
    used = [step["node"] for step in json["spec"]["graph"]["steps"] if step.get("node") in nodes]
    json["spec"]["nodes"] = {name: nodes[name] for name in dict.fromkeys([*used, *sorted(nodes)])}
    return {"apiVersion": json["apiVersion"], "kind": json["kind"], "metadata": metadata, "spec": json["spec"]}


def size(resource: ServePipeline) -> int:
    """Bytes of the resource as JSON, the way clients send it and clusters store it."""
    return len(json.dumps(to_document(resource), ensure_ascii=False, separators=(",", ":")).encode())


def write(resource: ServePipeline) -> str:
    """The canonical YAML: the same text for the same resource, on every machine.

    ``read(write(r))`` equals ``r`` (but for status and what clusters add to metadata), and writing that again gives the
    same text.

    Raises:
        GraphTooLargeError: It has more than `MAX_BYTES`.
    """
    length = size(resource)
    if length > MAX_BYTES:
        raise GraphTooLargeError(
            f"the resource has {length // 1024} KiB; a cluster stores at most {MAX_BYTES // 1024} KiB",
            where=resource.name,
            fix="Move large constants into files that the nodes read.",
        )
    return write_yaml(to_document(resource), _SPREAD)
