"""What a batch returned or raised, item by item."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from servepipe.graph.failures import Raised, as_exception

__all__ = ["outcomes", "raised_by_all"]


def outcomes(method: str, results: Any, count: int) -> list[Any]:
    """The result of each item, for `servepipe.graph.failures.opened`: an exception among them is that item's failure.

    Args:
        method: Its name, for errors.
        results: What it returned: a list, or anything else of known length, such as an array, one result per item.
        count: How many items it was given.

    Raises:
        TypeError: It is nothing of that kind.
        ValueError: There are more or fewer results than items.
    """
    if not isinstance(results, list | tuple):
        results = _listed(method, results)
    if len(results) != count:
        raise ValueError(
            f"{method} got {_items(count)} and returned {len(results)} results: a batched method returns one per item, "
            "in their order (an exception for an item that cannot be computed)"
        )
    own = _Own()
    return [own.raised(result) if isinstance(result, BaseException) else result for result in results]


def raised_by_all(error: BaseException, count: int) -> list[Raised]:
    """The failure of each of ``count`` items of a batch that raised ``error``."""
    own = _Own()
    return [own.raised(error) for _ in range(count)]


class _Own:
    """Gives each item an exception of its own: whoever gets one adds notes and a traceback to it."""

    def __init__(self) -> None:
        self._given: set[int] = set()

    def raised(self, error: BaseException) -> Raised:
        exception = as_exception(error)
        if id(exception) in self._given:
            return Raised(_twin(exception))
        self._given.add(id(exception))
        return Raised(exception)


def _twin(error: Exception) -> Exception:
    """A copy of ``error``, made as pickling makes one; itself where that fails."""
    try:
        twin = copy.copy(error)
    except Exception:
        return error
    if type(twin) is not type(error):
        return error
    put: Callable[[Any, str, Any], None] = BaseException.__setattr__  # an exception may be a frozen dataclass
    for name in ("__traceback__", "__cause__", "__context__", "__suppress_context__"):
        put(twin, name, getattr(error, name))
    if notes := getattr(error, "__notes__", None):
        put(twin, "__notes__", [*notes])
    return twin


def _listed(method: str, results: Any) -> Sequence[Any]:
    if not isinstance(results, str | bytes | bytearray | Mapping | Set):
        try:
            len(results)  # not of a generator, nor of an array of no dimensions
            return list(results)
        except TypeError:
            pass
    raise TypeError(
        f"{method} returned a {type(results).__name__}: a batched method takes a list of items and returns a list with "
        "one result per item, in their order"
    )


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"
