"""Does the bound callable exist, and does it take these arguments?

Checked when ``bind`` is called: the user's own line is at the top of the traceback then.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from servepipe.authoring.places import Place
from servepipe.errors import GraphError, SignatureError

__all__ = ["UnknownMethodError", "check_class", "check_function", "check_hook", "check_method", "check_method_exists"]


class UnknownMethodError(SignatureError, AttributeError):
    """The class has no such method. Also an AttributeError, so that ``hasattr`` and ``copy`` keep working."""


def check_class(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any], place: Place) -> None:
    """Raises `SignatureError` unless ``cls(*args, **kwargs)`` fits the constructor, and for abstract classes."""
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise SignatureError(
            f"{cls.__qualname__} is abstract: it leaves {missing} to its subclasses",
            where=str(place),
            fix="Bind a subclass.",
        )
    _check_arguments(cls, cls.__qualname__, args, kwargs, place)


def check_function(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], place: Place) -> None:
    """Raises `SignatureError` unless the call fits the function, and for generator functions."""
    name = getattr(function, "__qualname__", repr(function))
    _check_returns_value(function, name, place)
    _check_arguments(function, name, args, kwargs, place)


def check_hook(hook: Any, what: str, place: Place) -> None:
    """Raises unless ``hook`` (a pre- or postprocessor, or None) can be called with one argument.

    Raises:
        GraphError: It is not callable.
        SignatureError: It does not take one positional argument, or is a generator.
    """
    if hook is None:
        return
    if not callable(hook):
        raise GraphError(f"the {what} {hook!r} is not callable", where=str(place), fix="Pass a function.")
    check_function(hook, [None], {}, place)


def check_method_exists(cls: type, method: str, place: Place) -> None:
    """Raises `UnknownMethodError` unless instances of ``cls`` can be expected to have ``method``."""
    try:
        found = inspect.getattr_static(cls, method)
    except AttributeError:
        if hasattr(cls, "__getattr__"):
            return  # the class makes its methods up: nothing to check against
        public = [name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name, None))]
        close = difflib.get_close_matches(method, public, n=1)
        fix = f"Did you mean {close[0]!r}?" if close else f"It has {', '.join(public)}." if public else ""
        if method in ("bind", "remote"):
            own = ["__call__"] if any("__call__" in vars(base) for base in cls.__mro__) else []
            raise UnknownMethodError(
                f"this is a node of {cls.__qualname__} already: its methods are what can be bound",
                where=str(place),
                fix=f"Bind one of them: {', '.join(f'.{name}.bind(...)' for name in [*own, *public])}.",
            ) from None
        raise UnknownMethodError(f"{cls.__qualname__} has no method {method!r}", where=str(place), fix=fix) from None
    if not isinstance(found, staticmethod | classmethod) and not callable(found):
        kind = "a property" if isinstance(found, property) else f"of type {type(found).__name__}"
        raise UnknownMethodError(
            f"{cls.__qualname__}.{method} is {kind}, not a method",
            where=str(place),
            fix="Write a method that returns it.",
        )


def check_method(cls: type, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], place: Place) -> None:
    """Raises `SignatureError` unless the call fits the method, and for generator methods."""
    try:
        found = inspect.getattr_static(cls, method)
    except AttributeError:
        return  # made up by __getattr__
    name = f"{cls.__qualname__}.{method}"
    bound = getattr(cls, method)
    _check_returns_value(bound, name, place)
    implicit: list[Any] = [] if isinstance(found, staticmethod | classmethod) else [None]
    _check_arguments(bound, name, args, kwargs, place, implicit)


def _check_returns_value(function: Any, name: str, place: Place) -> None:
    plain = inspect.unwrap(function) if callable(function) else function
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise SignatureError(
            f"{name} is a generator, and a step has exactly one result",
            where=str(place),
            fix="Return a list; streaming is not supported yet.",
        )


def _check_arguments(
    function: Callable[..., Any],
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    place: Place,
    implicit: Sequence[Any] = (),
) -> None:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # written in C without a signature
    try:
        signature.bind(*implicit, *args, **kwargs)
    except TypeError as error:
        raise SignatureError(
            f"{name}() does not take these arguments: {error}",
            where=str(place),
            fix=f"It takes {_shown(signature, len(implicit))}.",
        ) from None


def _shown(signature: inspect.Signature, implicit: int) -> str:
    """The signature as callers see it: without ``self``, and without what Ray adds to the methods of its classes."""
    parameters = list(signature.parameters.values())[implicit:]
    hidden = inspect.Parameter.KEYWORD_ONLY
    seen = [one for one in parameters if not (one.kind is hidden and one.name.startswith("_"))]
    return str(inspect.Signature(seen))
