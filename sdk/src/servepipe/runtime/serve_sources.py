"""Whether the Serve of this process is one that was read, and set as `request_path` and `http_path` know it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
from collections.abc import Iterable
from typing import Any

import ray
from ray.serve._private import replica as serve_replica

__all__ = ["digest", "only_serves_own"]


def digest(replica: Any, names: Iterable[str], user_code_names: Iterable[str], others: Iterable[str]) -> str:
    """Of the source that something runs through.

    Args:
        replica: Serve's own object.
        names: Its methods.
        user_code_names: Methods of its object for user code.
        others: ``module:name.of.it`` of functions, and of classes, of which only counts how they are made. It may be
            that this Serve does not have one.

    Returns:
        16 hexadecimal digits. Empty: nobody can read it, or a method is not Serve's.
    """
    found = hashlib.sha256()
    try:
        methods = [(replica, name) for name in names]
        methods += [(replica._user_callable_wrapper, name) for name in user_code_names]
        for thing, name in methods:
            if name in vars(thing):
                return ""  # somebody has replaced it here
            found.update(inspect.getsource(_inside(getattr(type(thing), name))).encode())
        for path in others:
            found.update(_text(path).encode())
    except (AttributeError, ImportError, OSError, TypeError, ValueError):
        return ""
    return found.hexdigest()[:16]


def only_serves_own(replica: Any, is_known: bool, does: str) -> str:
    """Why any other way than Serve's own would be wrong in this process; empty: it need not be.

    Args:
        is_known: Whether the source is one that was read.
        does: What it does in another way, if not.
    """
    user_code = replica._user_callable_wrapper
    if not is_known:
        return f"Ray {ray.__version__} {does} in a way that this servepipe was not written after"
    if user_code._run_user_code_in_separate_thread:
        return "Serve's flag has user code run in a thread of its own"
    if user_code._is_enabled_for_debug:
        return "Serve's log tells of the start of each request"
    return ""


def _text(path: str) -> str:
    module, _, name = path.partition(":")
    thing: Any = importlib.import_module(module)
    for part in name.split("."):
        thing = getattr(thing, part, None)
    if thing is None:
        return "none"
    if inspect.isclass(thing):
        # To find the source of a class inspect parses its whole module, in which a garbage collection at the wrong
        # moment ends with a SystemError of Python 3.11.
        fields = [(one.name, one.default) for one in inspect.signature(thing).parameters.values()]
        return f"{fields} {hasattr(thing, '__post_init__')} {hasattr(thing, '__slots__')}"
    return inspect.getsource(thing)


def _inside(function: Any) -> Any:
    """What Serve's decorators are around. Raises TypeError where somebody else's are, too."""
    while (inner := getattr(function, "__wrapped__", None)) is not None:
        if function.__code__.co_filename not in (contextlib.__file__, serve_replica.__file__):
            raise TypeError(f"{function} is not Serve's")
        function = inner
    return function
