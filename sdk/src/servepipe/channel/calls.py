"""A call as it arrives at a replica."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Handle", "IncomingCall"]


@dataclass(slots=True)
class IncomingCall:
    """Args:
    method: The method's name; None: the function, or the object itself.
    args: Positional arguments.
    kwargs: Keyword arguments.
    request_id: Names the request in logs.
    deadline: Seconds since the epoch after which nobody waits for the answer; None: no bound.
    pins: For each node the revision that answers this request. Calls share this mapping.
    """

    method: str | None
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    request_id: str
    deadline: float | None
    pins: Mapping[str, str]


Handle = Callable[[IncomingCall], Coroutine[Any, Any, Any]]
"""Runs a call. What it raises reaches the caller; `servepipe.channel.errors.CallRejectedError`: it was not begun."""
