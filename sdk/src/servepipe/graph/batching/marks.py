"""What the author writes: ``@batch(max_size=32)`` above a method that takes a list of items and returns a list.

The decorated method is called with one item and returns its result: by graphs, over handles, and by other methods as
``self.method(item)``. Calls that meet in a node are computed together; without a node, as in a unit test, a call is
computed by itself.
"""

from __future__ import annotations

import functools
import inspect
import math
import weakref
from collections.abc import Callable, Collection, Coroutine
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, TypeVar, overload

from servepipe.errors import GraphError, SignatureError
from servepipe.graph.batching.collector import Settings
from servepipe.graph.batching.results import outcomes
from servepipe.graph.failures import opened

__all__ = ["Computes", "Mark", "Override", "batch", "mark_of", "marks_of", "overrides", "owners", "set_batch"]

DEFAULT_WAIT_MS = 5.0

_ATTRIBUTE = "__servepipe_batch__"

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


class _Decorator(Protocol):
    @overload
    def __call__(
        self, function: Callable[[S, list[T]], Coroutine[Any, Any, Collection[R]]], /
    ) -> Callable[[S, T], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self, function: Callable[[list[T]], Coroutine[Any, Any, Collection[R]]], /
    ) -> Callable[[T], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[[S, list[T]], Collection[R]], /) -> Callable[[S, T], R]: ...
    @overload
    def __call__(self, function: Callable[[list[T]], Collection[R]], /) -> Callable[[T], R]: ...


def batch(*, max_size: int, max_wait_ms: float = DEFAULT_WAIT_MS) -> _Decorator:
    """Compute calls that meet in a node together: ``@batch(max_size=32)`` above a method or function, sync or async.

    It takes a list of items and returns a list with one result per item, in their order; an exception in that list is
    the failure of its item alone, one that is raised is the failure of all. It is called with one item.

    Args:
        max_size: The most items in one batch.
        max_wait_ms: For how many milliseconds at most it stands idle while an item waits for more of them. It waits
            only while fewer are there than callers were seen lately; 0 never waits.

    Raises:
        GraphError: A number that it does not take.
        SignatureError: What is decorated does not take exactly one list.
    """
    if callable(max_size):
        raise GraphError("batch has no sizes", fix="Write @batch(max_size=...).")
    settings = _settings(max_size, max_wait_ms)
    return lambda function: _decorated(function, settings)


def set_batch(method: Callable[..., Any], *, max_size: int | None = None, max_wait_ms: float | None = None) -> None:
    """Change how a batched method of this one instance batches, from now on: ``set_batch(self.embed, max_size=16)``.

    For ``__init__`` with a node's arguments, and for ``reconfigure`` with its ``userConfig``.

    Args:
        method: Of an instance, decorated with `batch`.
        max_size: As there; None: as it is.
        max_wait_ms: As there; None: as it is.

    Raises:
        GraphError: A number that it does not take.
        SignatureError: ``method`` is no batched method of an instance.
    """
    mark, instance = mark_of(method), getattr(method, "__self__", None)
    if mark is None or instance is None:
        raise SignatureError(
            f"{method!r} is no batched method of an instance", fix="Write set_batch(self.method, ...)."
        )
    size = mark.settings.max_size if max_size is None else max_size
    wait_ms = mark.settings.max_wait_s * 1000 if max_wait_ms is None else max_wait_ms
    _settings(size, wait_ms)
    override = Override(instance, mark, max_size, None if max_wait_ms is None else max_wait_ms / 1000)
    owner = mark.owner(instance)
    if owner is not None:
        owner.override(override)
    elif (building := overrides.get()) is not None:
        building.append(override)


class Computes(Protocol):
    """What batches the calls of the methods of one object."""

    object: Any

    def override(self, override: Override) -> None:
        """Change how a method batches."""

    def result(self, mark: Mark, item: Any) -> Any:
        """Have an item computed, for a thread."""

    async def awaited(self, mark: Mark, item: Any) -> Any:
        """Have an item computed, for an event loop."""


owners: weakref.WeakValueDictionary[int, Computes] = weakref.WeakValueDictionary()
"""By `id` of the object whose methods they compute, while a node has it."""


class Override(NamedTuple):
    """What `set_batch` was told; None: as it is."""

    instance: Any
    mark: Mark
    max_size: int | None
    max_wait_s: float | None

    def applied(self, settings: Settings) -> Settings:
        """``settings`` with it on top."""
        return Settings(
            settings.max_size if self.max_size is None else self.max_size,
            settings.max_wait_s if self.max_wait_s is None else self.max_wait_s,
        )


overrides: ContextVar[list[Override] | None] = ContextVar("servepipe_batch_overrides", default=None)
"""Where the constructor of a node that is being built leaves its wishes: its object has no owner yet."""


class Mark:
    """What `batch` knows of a method.

    Attributes:
        function: As the author wrote it: takes a list.
        name: Its qualified name.
        settings: Those of the decorator.
        is_async: Whether calling it gives a coroutine.
        wrapper: What stands in its place: takes one item.
    """

    def __init__(self, function: Callable[..., Any], settings: Settings) -> None:
        self.function = function
        self.name: str = function.__qualname__
        self.settings = settings
        self.is_async = inspect.iscoroutinefunction(function)
        self._signature = inspect.signature(function)
        self._count = _arguments(function, self._signature)
        self.wrapper = _async_wrapper(self) if self.is_async else _wrapper(self)
        setattr(self.wrapper, _ATTRIBUTE, self)

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The item, after the instance where it is a method. Raises ``TypeError`` where they are others."""
        if kwargs or len(args) != self._count:
            try:
                return tuple(self._signature.bind(*args, **kwargs).arguments.values())
            except TypeError as error:
                raise TypeError(f"{self.name}() is called with one item: {error}") from None
        return args

    def owner(self, instance: Any) -> Computes | None:
        """What batches the methods of ``instance``; None where no node has it."""
        owner = owners.get(id(instance))
        return owner if owner is not None and owner.object is instance else None


def mark_of(function: Any) -> Mark | None:
    """The mark of a method or function that `batch` made; None for any other, also for what wraps one."""
    plain = getattr(function, "__func__", function)
    mark = getattr(plain, _ATTRIBUTE, None)
    return mark if isinstance(mark, Mark) and mark.wrapper is plain else None


def marks_of(target: Any) -> list[Mark]:
    """The batched methods of a class; a function's own mark."""
    names = dir(target) if inspect.isclass(target) else ()
    found = (mark_of(one) for one in (target, *(inspect.getattr_static(target, name, None) for name in names)))
    return [mark for mark in found if mark is not None]


def _settings(max_size: Any, max_wait_ms: Any) -> Settings:
    if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < 1:
        raise GraphError(f"max_size of a batch: expected a whole number, 1 or more, not {max_size!r}")
    is_number = isinstance(max_wait_ms, int | float) and not isinstance(max_wait_ms, bool)
    if not is_number or not 0 <= max_wait_ms < math.inf:
        raise GraphError(f"max_wait_ms of a batch: expected milliseconds, 0 or more, not {max_wait_ms!r}")
    return Settings(max_size, max_wait_ms / 1000)


def _decorated(function: Any, settings: Settings) -> Any:
    if not inspect.isfunction(function):
        what = getattr(function, "__qualname__", None) or repr(function)
        raise SignatureError(
            f"batch decorates methods and functions, and {what} is a {type(function).__name__}",
            fix="Write @batch directly above `def`, below @remote, @staticmethod and the like.",
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise _refused(function, "is a generator", "Return a list.")
    return Mark(function, settings).wrapper


def _arguments(function: Callable[..., Any], signature: inspect.Signature) -> int:
    """1 for a function that takes a list, 2 for a method."""
    parameters = list(signature.parameters.values())
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not 1 <= len(parameters) <= 2 or any(
        one.kind not in plain or one.default is not inspect.Parameter.empty for one in parameters
    ):
        shown = ", ".join(str(one.replace(annotation=inspect.Parameter.empty)) for one in parameters)
        raise _refused(
            function,
            f"takes ({shown}), not one list",
            "Take one list: def embed(self, items). An item that has several parts is a tuple or a dict: "
            "bind it as .bind([a, b]).",
        )
    return len(parameters)


def _refused(function: Any, what: str, fix: str) -> SignatureError:
    code = function.__code__
    return SignatureError(
        f"{function.__qualname__} {what}, and cannot be batched",
        where=f"{code.co_filename}:{code.co_firstlineno}",
        fix=fix,
    )


def _wrapper(mark: Mark) -> Callable[..., Any]:
    @functools.wraps(mark.function)
    def called_with_one(*args: Any, **kwargs: Any) -> Any:
        *instance, item = mark.arguments(args, kwargs)
        owner = mark.owner(*instance) if instance else None
        if owner is not None:
            return owner.result(mark, item)
        return opened(outcomes(mark.name, mark.function(*instance, [item]), 1)[0])

    return called_with_one


def _async_wrapper(mark: Mark) -> Callable[..., Any]:
    @functools.wraps(mark.function)
    async def called_with_one(*args: Any, **kwargs: Any) -> Any:
        *instance, item = mark.arguments(args, kwargs)
        owner = mark.owner(*instance) if instance else None
        if owner is not None:
            return await owner.awaited(mark, item)
        return opened(outcomes(mark.name, await mark.function(*instance, [item]), 1)[0])

    return called_with_one
