"""What all models of the resource share: strictness, camelCase, bounds and the field types with patterns."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from servepipe.api.quantity import QUANTITY_PATTERN
from servepipe.api.removals import marked
from servepipe.graph.values import MAX_DEPTH

__all__ = [
    "MAX_INT32",
    "NAME_PATTERN",
    "NODE_NAME_PATTERN",
    "Digest",
    "Duration",
    "Folder",
    "FreeForm",
    "ImageName",
    "ImportPath",
    "Int32",
    "Json",
    "JsonList",
    "JsonObject",
    "Model",
    "Name",
    "NodeName",
    "PositiveInt32",
    "Quantity",
    "RawTemplate",
    "Route",
    "StepName",
    "Version",
    "explained_patterns",
    "keyed_by",
    "rule",
    "rules_of",
    "sorted_by_key",
    "validated",
]

MAX_INT32 = 2**31 - 1

#: Marks a field whose inside Kubernetes neither knows nor touches.
PRESERVE: JsonDict = {"x-kubernetes-preserve-unknown-fields": True}


class Model(BaseModel):
    """Base of all models. Unknown fields are errors, types are not coerced, instances do not change.

    A null is a field that is not there, as for an API server. What was not set is not dumped.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if value is not None}
        return data

    def to_json(self) -> dict[str, Any]:
        """The JSON form: camelCase, only what was set, in the order of the fields of the class."""
        return self.model_dump(by_alias=True, exclude_unset=True)


def rule(expression: str, message: str) -> JsonDict:
    """A CEL rule: what must hold, and what to say when it does not."""
    return {"rule": expression, "message": message}


def validated(*rules: JsonDict) -> ConfigDict:
    """The configuration of a model that an API server checks by these CEL rules."""
    return ConfigDict(json_schema_extra={"x-kubernetes-validations": list(rules)})


def rules_of(model: type[Model]) -> list[Any]:
    """The CEL rules of a model's configuration."""
    extra: Any = model.model_config["json_schema_extra"]
    return list(extra["x-kubernetes-validations"])


def keyed_by(field: str) -> JsonDict:
    """A list of objects that server-side apply merges by ``field``."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [field]}


# --- Text with a pattern ----------------------------------------------------------------------------------------------

#: Shorter than other names in Kubernetes, because the RayCluster's and its Secret's names are made from it.
NAME_PATTERN = r"^[a-z]([-a-z0-9]{0,42}[a-z0-9])?$"
NODE_NAME_PATTERN = r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"
_STEP_NAME = r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"
_DNS_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_IMPORT = r"^[^\s:]+:[^\s:]+$"
_IMAGE = r"^[^\s]+$"

_VERSION = r"^[0-9]+\.[0-9]+\.[0-9]+[0-9A-Za-z.+-]*$"
_DIGEST = r"^sha256:[0-9a-f]{64}$"
_DURATION = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"
_ROUTE = r"^/[^\s?#]*$"
_FOLDER = r"^/"

_EXPLAINED = {
    _VERSION: 'a version such as "2.60.0"',
    _DIGEST: '"sha256:" and 64 hexadecimal digits',
    _DURATION: 'a duration such as "500ms", "30s" or "1h30m"',
    _ROUTE: 'a path that starts with "/"',
    _FOLDER: "an absolute path",
    NAME_PATTERN: "lower case letters, digits and hyphens, a letter first, at most 44 characters",
    NODE_NAME_PATTERN: "lower case letters, digits and single hyphens, a letter first, at most 40 characters",
    _STEP_NAME: "lower case letters, digits and hyphens, a letter first, at most 63 characters",
    _DNS_NAME: "a Kubernetes name: lower case letters, digits, hyphens and dots",
    _IMPORT: '"module:name"',
    _IMAGE: "an image reference without spaces",
    QUANTITY_PATTERN: 'a Kubernetes quantity such as "500m", "2" or "16Gi"',
}


def explained_patterns() -> dict[str, str]:
    """For each pattern of a field, what it asks for in words."""
    return dict(_EXPLAINED)


def _no_double_hyphen(name: str) -> str:
    if "--" in name:
        raise PydanticCustomError("double_hyphen", "two hyphens in a row; they separate a node from its revision")
    return name


def _whole_number_as_text(value: Any) -> Any:
    # `cpu: 4` is what people write; a float is refused because readers disagree about its digits.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


NodeName: TypeAlias = Annotated[str, Field(pattern=NODE_NAME_PATTERN, max_length=40), AfterValidator(_no_double_hyphen)]
StepName: TypeAlias = Annotated[str, Field(pattern=_STEP_NAME, max_length=63)]
Name: TypeAlias = Annotated[str, Field(pattern=_DNS_NAME, max_length=253)]
ImportPath: TypeAlias = Annotated[str, Field(pattern=_IMPORT, max_length=512)]
ImageName: TypeAlias = Annotated[str, Field(pattern=_IMAGE, max_length=512)]
Version: TypeAlias = Annotated[str, Field(pattern=_VERSION, max_length=64)]
Digest: TypeAlias = Annotated[str, Field(pattern=_DIGEST, max_length=71)]
Duration: TypeAlias = Annotated[str, Field(pattern=_DURATION, max_length=32)]
Route: TypeAlias = Annotated[str, Field(pattern=_ROUTE, max_length=256)]
Folder: TypeAlias = Annotated[str, Field(pattern=_FOLDER, max_length=1024)]
Quantity: TypeAlias = Annotated[
    str,
    Field(pattern=QUANTITY_PATTERN, max_length=32, json_schema_extra={"x-kubernetes-int-or-string": True}),
    BeforeValidator(_whole_number_as_text),
]

# --- Numbers and free-form fields -------------------------------------------------------------------------------------

Int32: TypeAlias = Annotated[int, Field(ge=0, le=MAX_INT32)]
PositiveInt32: TypeAlias = Annotated[int, Field(ge=1, le=MAX_INT32)]

# A value of MAX_DEPTH tuples nests twice as deep in JSON; the rest is room for raw pod templates.
_MAX_JSON_DEPTH = 2 * MAX_DEPTH + 8


def _free_form(value: Any) -> Any:
    return _sorted(value, _MAX_JSON_DEPTH)


def sorted_by_key(items: dict[str, str]) -> dict[str, str]:
    """A copy in the order in which an API server gives maps back."""
    return dict(sorted(items.items()))


def _sorted(value: Any, depth: int) -> Any:
    """A copy with the keys of all objects sorted, as an API server gives it back; only JSON is let through."""
    if depth == 0:
        raise PydanticCustomError("too_deep", f"nested deeper than {_MAX_JSON_DEPTH} lists and objects")
    kind = type(value)
    if kind is list:
        return [_sorted(item, depth - 1) for item in value]
    if kind is not dict:
        if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
            return value
        raise PydanticCustomError("not_json", f"a value of type {kind.__name__} is not JSON")
    if not all(isinstance(key, str) for key in value):
        raise PydanticCustomError("not_json", "an object has a key that is not a string")
    return {key: _sorted(value[key], depth - 1) for key in sorted(value)}


#: An expression or a value in its wire form (`servepipe.graph.wire`).
Json: TypeAlias = Annotated[Any, AfterValidator(_free_form), Field(json_schema_extra=PRESERVE)]
JsonObject: TypeAlias = Annotated[
    dict[str, Any], AfterValidator(_free_form), Field(json_schema_extra={"type": "object", **PRESERVE})
]
JsonList: TypeAlias = list[Json]
#: A piece of a Kubernetes object that is passed on as it is (a pod template, a toleration, a volume's source).
FreeForm: TypeAlias = JsonObject
#: A raw pod template: a null, which removes a field from the pods, is held as ``{$null: true}``.
RawTemplate: TypeAlias = Annotated[FreeForm, AfterValidator(marked)]
