"""The API's defaults as they were when a spec was accepted.

A new version of servepipe may have other defaults. What was accepted before goes on with the ones that it was accepted
with, kept in its record: a new version sends nothing to a pipeline that nobody changed. The next change of the spec
takes the new defaults with it, in place; identities never hold one (`engine.revisions`).
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from servepipe.api.v1alpha1 import Autoscaling, HealthCheck, Ingress, NodeSpec, Spec, Upgrade
from servepipe_operator.engine.state import Json

__all__ = ["completed", "today"]

_MODELS: Mapping[str, type[BaseModel]] = {
    "spec": Spec,
    "node": NodeSpec,
    "autoscaling": Autoscaling,
    "healthCheck": HealthCheck,
    "upgrade": Upgrade,
    "ingress": Ingress,
}


def today() -> Json:
    """The defaults of this version: numbers and words by field, by the part of the spec that they are of."""
    return {
        part: {
            field.alias or name: field.default
            for name, field in model.model_fields.items()
            if isinstance(field.default, int | str) and not isinstance(field.default, bool)
        }
        for part, model in _MODELS.items()
    }


def completed(spec: Spec, defaults: Json | None) -> Spec:
    """``spec`` with ``defaults`` wherever it says nothing; itself where they are today's, or not known."""
    if defaults is None or defaults == today():
        return spec
    known = {part: _still_known(part, defaults.get(part)) for part in _MODELS}
    json = spec.to_json()
    return Spec.model_validate(
        {
            **known["spec"],
            **json,
            "nodes": {name: _node(node, known) for name, node in json["nodes"].items()},
            "ingress": _sized(json.get("ingress", {}), known["ingress"], known),
        }
    )


def _node(node: Json, known: Mapping[str, Json]) -> Json:
    parts = {part: {**known[part], **node.get(part, {})} for part in ("healthCheck", "upgrade")}
    return {**_sized(node, known["node"], known), **parts}


def _sized(json: Json, defaults: Json, known: Mapping[str, Json]) -> Json:
    full = {**defaults, **json}
    if "autoscaling" in full:
        full["autoscaling"] = {**known["autoscaling"], **full["autoscaling"]}
    return full


def _still_known(part: str, defaults: object) -> Json:
    """Without fields that this version's API does not have."""
    fields = {field.alias or name for name, field in _MODELS[part].model_fields.items()}
    return {key: value for key, value in defaults.items() if key in fields} if isinstance(defaults, Mapping) else {}
