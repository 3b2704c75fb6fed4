"""What a graph's input is, and how it and other values are indexed.

With exactly one positional and no keyword argument, that argument is the input. Otherwise the input is an `InputData`:
an int means a positional argument, a string or an attribute a keyword argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from servepipe.errors import BadRequestError
from servepipe.graph.ir import Attr, Key, Path

__all__ = ["InputData", "describe_arguments", "read_input", "refuse", "take", "written"]


class InputData:
    """All arguments of a request that has not exactly one: ``data[0]`` positional, ``data["k"]`` or ``data.k`` keyword.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    __slots__ = ("_args", "_kwargs")

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._args = tuple(args)
        self._kwargs = dict(kwargs)

    def __getitem__(self, key: int | str) -> Any:
        return self._kwargs[key] if isinstance(key, str) else self._args[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # slots that pickling has not filled yet
            raise AttributeError(name)
        try:
            return self._kwargs[name]
        except KeyError:
            raise AttributeError(f"the input has no keyword argument {name!r}") from None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InputData):
            return NotImplemented
        return self._args == other._args and self._kwargs == other._kwargs

    __hash__ = None  # type: ignore[assignment]  # equal by value, and its values may be unhashable

    def __repr__(self) -> str:
        shown = [repr(arg) for arg in self._args] + [f"{key}={value!r}" for key, value in self._kwargs.items()]
        return f"InputData({', '.join(shown)})"


def take(value: Any, key: Key) -> Any:
    """One step along a path: ``value[key]``, or for ``value.name`` the key of a mapping, else the attribute."""
    if isinstance(key, Attr):
        return value[key.name] if isinstance(value, Mapping) else getattr(value, key.name)
    return value[key]


def read_input(path: Path, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The part of the input at ``path``.

    Raises:
        BadRequestError: There is no such part; the message names it.
    """
    try:
        # A dict stands for InputData's keyword arguments, so that a key and an attribute both find them.
        if len(args) == 1 and not kwargs:
            value, rest = args[0], path
        elif not path:
            value, rest = InputData(args, kwargs), path
        else:
            value, rest = take(args if isinstance(path[0], int) else kwargs, path[0]), path[1:]
        for key in rest:
            value = take(value, key)
    except Exception:  # the value is the caller's; indexing it may raise anything
        refuse([path], args, kwargs)
    return value


def refuse(missing: Sequence[Path], args: Sequence[Any], kwargs: Mapping[str, Any]) -> NoReturn:
    """Raise the `BadRequestError` that names all of ``missing``."""
    raise BadRequestError(
        f"the graph reads {', '.join(map(written, missing))}, but the request gave {describe_arguments(args, kwargs)}"
    )


def written(path: Path, base: str = "input") -> str:
    """A path as people write it: ``input[0]["k"].name``."""
    return base + "".join(f".{key.name}" if isinstance(key, Attr) else f"[{key!r}]" for key in path)


def describe_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What a request gave, without its values: ``a single int``, ``2 positional arguments and the keyword k``."""
    if len(args) == 1 and not kwargs:
        value = args[0]
        keys = f" with {', '.join(map(repr, list(value)[:8])) or 'no keys'}" if isinstance(value, dict) else ""
        size = f" of {len(value)}" if isinstance(value, list | tuple) else ""
        return f"a single {type(value).__name__}{size}{keys}"
    told = []
    if args:
        told.append(f"{len(args)} positional argument{'s' if len(args) > 1 else ''}")
    if kwargs:
        told.append(f"the keyword{'s' if len(kwargs) > 1 else ''} {', '.join(kwargs)}")
    return " and ".join(told) or "no arguments"
