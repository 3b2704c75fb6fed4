"""What a raw pod template removes: written in a form that survives, however it was written before."""

from __future__ import annotations

from typing import Any

import pytest

from servepipe import api
from servepipe.api.removals import marked, unmarked

MARK = {"$null": True}
RAW: dict[str, Any] = {"spec": {"a": None, "tolerations": [{"key": "x", "effect": None}, None], "b": {"c": 1}}}
MARKED = {"spec": {"a": MARK, "b": {"c": 1}, "tolerations": [{"effect": MARK, "key": "x"}, None]}}


def pipeline(template: Any) -> dict[str, Any]:
    spec = {
        "graph": {"steps": [{"name": "a", "node": "m1"}], "output": {"$step": "a"}},
        "nodes": {"m1": {"import": "m:M", "template": template}},
        "ingress": {"template": template},
        "cluster": {"head": {"template": template}, "workers": {"template": template}},
    }
    return {"apiVersion": "servepipe.dev/v1alpha1", "kind": "ServePipeline", "metadata": {"name": "p"}, "spec": spec}


@pytest.mark.parametrize("template", [RAW, MARKED])
def test_every_template_holds_the_form_that_survives(template: Any) -> None:
    resource = api.validate(pipeline(template))

    assert api.problems(resource) == []
    spec = resource.to_json()["spec"]
    assert spec["nodes"]["m1"]["template"] == spec["ingress"]["template"] == MARKED
    assert spec["cluster"]["head"]["template"] == spec["cluster"]["workers"]["template"] == MARKED
    assert api.write(resource) == api.write(api.validate(pipeline(MARKED)))
    assert api.write(api.read(api.write(resource))) == api.write(resource)


def test_the_two_forms_are_one() -> None:
    assert marked(RAW) == marked(MARKED) == MARKED
    assert unmarked(MARKED) == unmarked(RAW) == RAW
    other = {"a": {"$null": False}, "b": {"$null": True, "c": 1}, "c": {"$null": 1}}
    assert unmarked(other) == other, "only what is exactly the mark"
