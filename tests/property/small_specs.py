"""A small spec, with the fields that a test is about."""

from __future__ import annotations

from typing import Any

from servepipe.api import validate
from servepipe.api.v1alpha1 import Spec


def make_spec(**fields: Any) -> Spec:
    """A pipeline of one node; ``node`` are fields of that one, others are fields of the spec."""
    node = fields.pop("node", {})
    document = {
        "apiVersion": "servepipe.dev/v1alpha1",
        "kind": "ServePipeline",
        "metadata": {"name": "diamond"},
        "spec": {
            "image": "acme/diamond:1",
            "graph": {"steps": [{"name": "out", "node": "m1", "args": [{"$input": []}]}], "output": {"$step": "out"}},
            "nodes": {"m1": {"import": "diamond:Model", **node}},
            **fields,
        },
    }
    return validate(document).spec
