"""What is wrong with a resource, for people: where in the YAML, what, and what to do about it."""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from servepipe.api.v1alpha1.base import explained_patterns
from servepipe.errors import ResourceError, ServePipeError
from servepipe.graph.fields import did_you_mean, shown
from servepipe.graph.values import at_index, at_key

__all__ = ["InvalidResourceError", "Problem", "from_validation"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Args:
        where: The path in the YAML: ``spec.nodes.m1.replicas``; empty for the document as a whole.
        what: One sentence without a trailing full stop.
        fix: What to do about it; empty when ``what`` says it all.
    """

    where: str
    what: str
    fix: str = ""

    @classmethod
    def of(cls, error: ServePipeError) -> Problem:
        """The problem that an error tells of."""
        return cls(error.where, error.what, error.fix)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  {self.fix}" if self.fix else head


class InvalidResourceError(ResourceError):
    """A resource with one problem or several; ``what``, ``where`` and ``fix`` are those of the first.

    Args:
        problems: All of them, at least one.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        first = self.problems[0]
        super().__init__(first.what, where=first.where, fix=first.fix)

    def __str__(self) -> str:
        # The first from this error's own parts: callers may have put a file's name before its path.
        return "\n".join([super().__str__(), *(str(problem) for problem in self.problems[1:])])


def from_validation(error: ValidationError, model: type[BaseModel], path: str = "") -> tuple[Problem, ...]:
    """The problems that pydantic found while it validated ``model``, in its order.

    Args:
        path: Where in the YAML the validated object stands.
    """
    return tuple(_problem(details, model, path) for details in error.errors(include_url=False))


def _problem(details: ErrorDetails, model: type[BaseModel], path: str) -> Problem:
    loc = details["loc"]
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    where = _path(loc, path)
    if kind == "missing":
        return Problem(_path(loc[:-1], path), f'the field "{loc[-1]}" is missing')
    if kind == "extra_forbidden":
        known = _known_fields(model, loc[:-1])
        return Problem(_path(loc[:-1], path), f"unknown field {shown(loc[-1])}", did_you_mean(str(loc[-1]), known))
    if kind in _EXPECTED:
        fraction = kind == "string_type" and isinstance(value, float)
        fix = 'Write it as a string: "500m" for a half.' if fraction else _HOW_TO_WRITE.get(_EXPECTED[kind], "")
        return Problem(where, f"expected {_EXPECTED[kind]}, not {shown(value)}", fix)
    if kind == "literal_error":
        allowed = _literals(model, loc)
        fix = did_you_mean(value, allowed) if isinstance(value, str) else ""
        return Problem(where, f"expected one of {', '.join(allowed)}, not {shown(value)}", fix)
    if kind == "string_pattern_mismatch":
        words = explained_patterns().get(context["pattern"], f"text that matches {context['pattern']}")
        return Problem(where, f"expected {words}, not {shown(value)}")
    return Problem(where, _bound(kind, value, context) or details["msg"])


_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "string_type": "a string",
    "bool_type": "true or false",
    "dict_type": "an object",
    "list_type": "a list",
    "model_type": "an object",
    "model_attributes_type": "an object",
}

_HOW_TO_WRITE = {
    "an integer": "Write a whole number without quotes, such as 2.",
    "true or false": "Write it without quotes.",
    "a list": 'Begin each entry with "- ".',
    "an object": 'Write its fields as "name: value".',
}


def _bound(kind: str, value: Any, context: dict[str, Any]) -> str:
    match kind:
        case "greater_than_equal":
            return f"{shown(value)} is below the minimum, {context['ge']}"
        case "less_than_equal":
            return f"{shown(value)} is above the maximum, {context['le']}"
        case "string_too_long":
            return f"longer than {context['max_length']} characters"
        case "string_too_short":
            return "must not be empty"
        case "too_long":
            return f"{len(value)} entries are too many, at most {context['max_length']} are allowed"
        case "too_short":
            return "must not be empty"
    return ""


def _path(loc: Sequence[str | int], path: str) -> str:
    for part in loc:
        if part == "[key]":  # pydantic's mark for a problem with a key itself; the key stands before it
            continue
        path = at_index(path, part) if isinstance(part, int) else at_key(path, part)
    return path


# --- What the models know at a place ----------------------------------------------------------------------------------


def _known_fields(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    found = _annotation(model, loc)
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        return []
    return [field.alias or name for name, field in found.model_fields.items()]


def _literals(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    found = _annotation(model, loc)
    return [str(value) for value in get_args(found)] if get_origin(found) is Literal else []


def _annotation(model: type[BaseModel], loc: Sequence[str | int]) -> Any:
    """The type of the field at ``loc``, without Optional and Annotated."""
    current: Any = model
    for part in loc:
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = {field.alias or name: field for name, field in current.model_fields.items()}
            current = fields[str(part)].annotation
        else:
            current = get_args(current)[-1]  # the items of a list, the values of a dict
        current = _bare(current)
    return current


def _bare(annotation: Any) -> Any:
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, types.UnionType):
            annotation = next(member for member in get_args(annotation) if member is not type(None))
        else:
            return annotation
