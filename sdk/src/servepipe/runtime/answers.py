"""What a graph answered, as bytes for the wire.

Everything that a JSON reader can take becomes JSON: what `json` knows, plus dataclasses, pydantic models and numpy's
arrays and numbers. numpy and pydantic are recognised without importing them, since most pipelines load neither here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from typing import Any

from servepipe.graph.failures import message_of
from servepipe.runtime import json_bytes

__all__ = ["BYTES", "JSON", "AnswerNotSupportedError", "encode_answer", "encode_json"]

JSON = b"application/json"
BYTES = b"application/octet-stream"

_RAW = (bytes, bytearray, memoryview)


class AnswerNotSupportedError(Exception):
    """A value that no JSON can carry. ``path`` leads to it inside the answer: ``(0, "score")``."""

    def __init__(self, problem: str, path: tuple[int | str, ...] = ()) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path

    def __str__(self) -> str:
        where = "".join(f"[{key!r}]" for key in self.path)
        return f"the answer{where} {self.problem}"


def encode_answer(value: Any) -> tuple[bytes, bytes]:
    """The body and the content type for ``value``. Raises `AnswerNotSupportedError` naming the part that is wrong."""
    if isinstance(value, _RAW):
        return bytes(value), BYTES
    return encode_json(value), JSON


def encode_json(value: Any) -> bytes:
    """``value`` as UTF-8 JSON without white space. Raises `AnswerNotSupportedError`."""
    body = json_bytes.write(value)
    return _encode_by_json(value) if body is None else body


def _encode_by_json(value: Any) -> bytes:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_plain)
    except Exception as error:  # also what the answer's own properties and methods raise
        # json says that something is wrong, not where; only the failing case pays for finding out.
        try:
            problem = _problem(value, (), set())
        except Exception:
            problem = None
        if problem is None:
            problem = AnswerNotSupportedError(f"cannot be written as JSON: {type(error).__name__}: {message_of(error)}")
        raise problem from None
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can carry only as an escape
        return json.dumps(json.loads(text), separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """``value`` one level closer to what `json` knows; TypeError when there is no such thing."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        # Not mode="json": that writes NaN as null, and a wrong number must not look like a missing one.
        return value.model_dump(mode="python", by_alias=True)
    if type(value).__module__.split(".")[0] == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"is a {_type_name(value)}, which has no JSON form")


def _problem(value: Any, path: tuple[int | str, ...], inside: set[int]) -> AnswerNotSupportedError | None:
    """The first part of ``value`` that `json` refuses, depth first, or None."""
    if value is None or isinstance(value, str | bool | int):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else AnswerNotSupportedError(f"is {value}, which JSON cannot write", path)
    if id(value) in inside:
        return AnswerNotSupportedError("contains itself", path)
    if len(path) > 100:
        return AnswerNotSupportedError("is nested too deeply", path[:3])
    inside = inside | {id(value)}
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int | float | bool | None):
                return AnswerNotSupportedError(f"has a key of type {_type_name(key)}; JSON keys are strings", path)
            if found := _problem(item, (*path, key if isinstance(key, int) else str(key)), inside):
                return found
        return None
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if found := _problem(item, (*path, index), inside):
                return found
        return None
    try:
        plain = _plain(value)
    except TypeError as error:
        return AnswerNotSupportedError(message_of(error), path)
    except Exception as error:
        problem = f"is a {_type_name(value)} that cannot be read: {type(error).__name__}: {message_of(error)}"
        return AnswerNotSupportedError(problem, path)
    return _problem(plain, path, inside)


def _type_name(value: Any) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
