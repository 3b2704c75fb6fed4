"""Names of nodes and steps, taken from the variables that hold them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from servepipe.errors import NamingError

__all__ = ["MAX_LENGTH", "RESERVED", "Labels", "NamingWarning", "UniqueNames", "labels_in", "normalised"]

MAX_LENGTH = 40
"""Longest name of a node or step: with ``--`` and a revision it must stay a valid label value of Kubernetes."""

_VALID = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?\Z")
_SKIPPED = ("In", "Out")  # IPython's records of earlier cells


RESERVED = frozenset(
    {
        *("default", "ingress", "input"),
        # Members of App: a node of such a name could not be reached as an attribute.
        *("dag", "definitions", "deploy", "execute", "execute-async", "graph", "name", "nodes", "postprocessor"),
        *("preprocessor", "reset", "shutdown", "to-dict", "to-yaml", "with-fakes"),
    }
)
"""Names that no node can have."""


class NamingWarning(UserWarning):
    """A node has no variable; its name depends on the order in which nodes were bound."""


class Labels:
    """Which variable holds which object, found in one or several frames; the first one found counts."""

    def __init__(self, named: Mapping[int, tuple[str, object]] | None = None) -> None:
        # The objects are kept: an id means nothing once its object is gone.
        self._named = dict(named or {})

    def of(self, value: object) -> str | None:
        """The variable (``m1``, ``models-0``) that holds ``value``."""
        found = self._named.get(id(value))
        return found[0] if found else None

    def then(self, later: Labels) -> Labels:
        """These, and where they know nothing the ``later`` ones."""
        return Labels({**later._named, **self._named})


def labels_in(frame: FrameType, kind: type, wanted: Callable[[Any], bool] = lambda value: True) -> Labels:
    """The variables of ``frame`` that hold wanted objects, directly or as an element of a list, tuple or dict.

    A function's own variables come before those of its module.

    Args:
        kind: Only objects of this class.
        wanted: Which of these.
    """
    named: dict[int, tuple[str, object]] = {}
    scopes = [frame.f_locals] if frame.f_locals is frame.f_globals else [frame.f_locals, frame.f_globals]
    for scope in scopes:
        for variable, value in list(scope.items()):
            if variable.startswith("_") or variable in _SKIPPED:
                continue
            for label, item in _elements(variable, value):
                # By type(): isinstance would ask the object, and a lazy proxy among the variables would wake up.
                if issubclass(type(item), kind) and wanted(item):
                    named.setdefault(id(item), (label, item))
    return Labels(named)


def _elements(variable: str, value: Any) -> list[tuple[str, Any]]:
    # Exact types: iterating over somebody's subclass may run their code.
    if type(value) in (list, tuple):
        return [(f"{variable}-{index}", item) for index, item in enumerate(value)]
    if type(value) is dict:
        return [(f"{variable}-{key}", item) for key, item in list(value.items()) if type(key) in (str, int)]
    return [(variable, value)]


def normalised(label: str, what: str, where: str, fix: str) -> str:
    """``label`` as a name: lower case, ``_`` as ``-``, runs of ``-`` squeezed (``--`` separates revisions).

    Args:
        what: What is to be named, for the error.
        fix: How to name it otherwise.

    Raises:
        NamingError: What comes out is too long, or is not a DNS label.
    """
    name = re.sub("-+", "-", label.lower().replace("_", "-"))
    if not _VALID.match(name):
        problem = "is not made of a-z, 0-9 and -, starting with a letter and ending with a letter or digit"
    elif len(name) > MAX_LENGTH:
        problem = f"has {len(name)} characters; at most {MAX_LENGTH} are possible"
    else:
        return name
    raise NamingError(f"the name {name!r} of {what} {problem}", where=where, fix=fix)


class UniqueNames:
    """Names given out so far, each with what bears it."""

    def __init__(self, reserved: frozenset[str] = frozenset()) -> None:
        self._reserved = reserved
        self._places: dict[str, str] = {}
        self._candidates: dict[str, Iterator[str]] = {}

    def claim(self, name: str, what: str, where: str, fix: str) -> str:
        """Give out ``name``.

        Raises:
            NamingError: It is reserved, or given to something else.
        """
        if name in self._reserved:
            raise NamingError(f"the name {name!r} of {what} is reserved", where=where, fix=fix)
        if name in self._places:
            raise NamingError(
                f"the name {name!r} of {what} is taken already, by what stands at {self._places[name]}",
                where=where,
                fix=fix,
            )
        self._places[name] = where
        return name

    def numbered(self, stem: str, first: int, what: str, where: str, fix: str) -> str:
        """Give out the next free one of ``stem-1``, ``stem-2``...; with ``first`` 2 the bare ``stem`` comes before.

        Raises:
            NamingError: The name would not be valid.
        """
        candidates = self._candidates.setdefault(stem, _candidates(stem, first))
        for candidate in candidates:
            name = normalised(candidate, what, where, fix)
            if name not in self._places and name not in self._reserved:
                return self.claim(name, what, where, fix)
        raise AssertionError("the candidates never end")


def _candidates(stem: str, first: int) -> Iterator[str]:
    if first > 1:
        yield stem
    for number in itertools.count(first):
        yield f"{stem}-{number}"
