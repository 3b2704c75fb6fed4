"""Fields that a raw pod template takes out of the pods: null, in a form that survives every way into a cluster.

``kubectl apply`` (client-side), ``kubectl patch --type merge`` and Helm read a null as "leave this out" and store
nothing; server-side apply, ``create`` and ``replace`` keep it. ``{$null: true}`` is kept by all of them, so that is
what a resource holds. Both mean the same, and to the engine both are a null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["is_removal", "marked", "unmarked"]

_REMOVAL = "$null"


def is_removal(value: Any) -> bool:
    """Whether this is ``{$null: true}``."""
    return isinstance(value, Mapping) and len(value) == 1 and value.get(_REMOVAL) is True


def marked(value: Any) -> Any:
    """A copy with ``{$null: true}`` for each null that is a field; nulls in lists stay."""
    if isinstance(value, Mapping):
        return {key: {_REMOVAL: True} if item is None else marked(item) for key, item in value.items()}
    return [marked(item) for item in value] if isinstance(value, list) else value


def unmarked(value: Any) -> Any:
    """The reverse of `marked`."""
    if isinstance(value, Mapping):
        return {key: None if is_removal(item) else unmarked(item) for key, item in value.items()}
    return [unmarked(item) for item in value] if isinstance(value, list) else value
