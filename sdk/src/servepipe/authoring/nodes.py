"""Classes, functions and steps as the author binds them.

    remote(Class) ── RemoteClass ──bind──▶ ClassNode ──.method──▶ Method ──bind──▶ CallStep
    remote(function) ── RemoteFunction ──────────────────────────────────bind──▶ CallStep
    switch, split, map, fallback, first ───────────────────────────────────────▶ the other steps

A `ClassNode` is a node of its own each time it is bound; a function is one node for each set of options.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, overload

from servepipe.authoring import options as _options
from servepipe.authoring.loader import TARGET_ATTRIBUTE, unwrap
from servepipe.authoring.places import Place, here
from servepipe.authoring.signatures import (
    UnknownMethodError,
    check_class,
    check_function,
    check_method,
    check_method_exists,
)
from servepipe.authoring.steps import CallStep
from servepipe.authoring.values import Authored
from servepipe.errors import GraphError

__all__ = [
    "ClassNode",
    "Method",
    "RemoteClass",
    "RemoteFunction",
    "check_call",
    "remote",
]


class _Remote:
    """What `remote` makes of a class or function: the same thing, with ``bind`` and ``options``."""

    def __init__(self, target: Callable[..., Any], fields: _options.Fields, name: str | None) -> None:
        functools.update_wrapper(self, target, updated=())
        setattr(self, TARGET_ATTRIBUTE, target)
        self._target = target
        self._fields = fields
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the plain class or function, as if it had not been wrapped."""
        return self._target(*args, **kwargs)

    def __repr__(self) -> str:
        return f"remote({getattr(self._target, '__qualname__', self._target)})"

    def _with(self, options: Mapping[str, Any], place: Place) -> tuple[_options.Fields, str | None]:
        own = dict(options)
        name = own.pop("name", None)
        if name is not None and not isinstance(name, str):
            raise GraphError(f"name of {self!r}: expected a str, not {name!r}", where=str(place))
        fields = _options.node_fields(own, _options.NODE, repr(self), place)
        return _options.merged(self._fields, fields), self._name if name is None else name


class RemoteClass(_Remote):
    """A class whose instances can be nodes of a graph."""

    _target: type

    def options(self, **options: Any) -> RemoteClass:
        """The same class with other options: ``name`` and those of a node (``num_cpus``, ``num_replicas``, ...).

        Raises:
            GraphError: An unknown option or an impossible value.
        """
        return RemoteClass(self._target, *self._with(options, here()))

    def bind(self, *args: Any, **kwargs: Any) -> ClassNode:
        """A node: an instance with these constructor arguments. JSON values, other nodes, and containers of them.

        Raises:
            SignatureError: The constructor does not take these arguments.
        """
        return ClassNode(self._target, args, kwargs, self._fields, self._name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if inspect.isfunction(inspect.getattr_static(self._target, name, None)):
            raise UnknownMethodError(
                f"{self._target.__qualname__} is not bound, so it has no {name!r} to bind",
                where=str(here()),
                fix=f"Make a node of it first: {self._target.__name__}.bind(...).{name}.bind(...).",
            )
        return getattr(self._target, name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        # `class Child(Parent)` where Parent is decorated: the plain class is the base.
        return (self._target,)


class RemoteFunction(_Remote):
    """A function that can be a node of a graph, one for each set of options."""

    def __init__(
        self,
        target: Callable[..., Any],
        fields: _options.Fields,
        name: str | None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> None:
        super().__init__(target, fields, name)
        self._timeout = timeout
        self._retries = retries

    def options(self, **options: Any) -> RemoteFunction:
        """The same function with other options: those of a node, ``name`` (the node's), and ``timeout`` (seconds) and
        ``retries`` of the steps that are bound from it.

        Raises:
            GraphError: An unknown option or an impossible value.
        """
        place = here()
        step: dict[str, Any] = {key: options.pop(key) for key in ("timeout", "retries") if key in options}
        step = {"timeout": self._timeout, "retries": self._retries} | _options.step_options(step, repr(self), place)
        return RemoteFunction(self._target, *self._with(options, place), **step)

    def bind(self, *args: Any, **kwargs: Any) -> CallStep:
        """A step that calls the function with these arguments: JSON values, input, outputs, nodes, containers of them.

        Raises:
            SignatureError: The function does not take these arguments.
        """
        check_call(self, None, args, kwargs, here())
        return CallStep(self, None, args, kwargs, timeout=self._timeout, retries=self._retries)


@overload
def remote(target: type, /, **options: Any) -> RemoteClass: ...
@overload
def remote(target: Callable[..., Any], /, **options: Any) -> RemoteFunction: ...
@overload
def remote(target: None = None, /, **options: Any) -> Callable[[Any], Any]: ...
def remote(target: Any = None, /, **options: Any) -> Any:
    """Make a class or function bindable: ``@remote``, ``@remote(num_cpus=2)`` or ``remote(module.Class)``.

    The class or function itself stays as it is and can still be called and subclassed.

    Args:
        target: A class or a function, sync or async; wrapped ones get further options.
        options: See `RemoteClass.options` and `RemoteFunction.options`. ``blocking=False`` says that sync methods
            return quickly and may be called on the event loop; by default they run in a thread. ``blocking=True`` says
            that async methods may block, and gives them an event loop of their own.

    Raises:
        GraphError: ``target`` is neither, or an option is unknown.
    """
    if target is None:
        return functools.partial(remote, **options) if options else remote
    if isinstance(target, _Remote):
        return target.options(**options)  # type: ignore[attr-defined]
    wrapped: RemoteClass | RemoteFunction
    if unwrap(target) is not target:
        raise GraphError(
            f"{target!r} is wrapped by ray.remote already",
            where=str(here()),
            fix="Wrap the plain class, or write it all with Ray and `from servepipe.ray import ServeInputNode`.",
        )
    if inspect.isclass(target):
        wrapped = RemoteClass(target, {}, None)
    elif inspect.isroutine(target):
        wrapped = RemoteFunction(target, {}, None)
    else:
        raise GraphError(
            f"remote() takes a class or a function, not {target!r}",
            where=str(here()),
            fix="Write a function that calls it.",
        )
    return wrapped.options(**options) if options else wrapped


class ClassNode(Authored):
    """An instance of a class as a node: ``node.method.bind(...)`` makes a step; given to another node's constructor it
    arrives there as a handle. A step does not take one.
    """

    def __init__(
        self,
        cls: type,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        fields: _options.Fields,
        name: str | None,
    ) -> None:
        super().__init__()
        check_class(cls, args, kwargs, self._place)
        self._target = cls
        self._args = args
        self._kwargs = kwargs
        self._fields = fields
        self._name = name

    def __getattr__(self, name: str) -> Method:
        if name.startswith("_") and name != "__call__":
            raise AttributeError(name)
        check_method_exists(self._target, name, here())
        return Method(self, name)

    def __dir__(self) -> list[str]:
        methods = [name for name in dir(self._target) if callable(getattr(self._target, name, None))]
        return [*super().__dir__(), *(name for name in methods if not name.startswith("_"))]

    def __repr__(self) -> str:
        return f"<node {self._target.__qualname__} of {self._place}>"


class Method:
    """A method of a node, not bound yet."""

    def __init__(self, node: ClassNode, name: str, options: Mapping[str, Any] | None = None) -> None:
        self._node = node
        self._method = name
        self._options = dict(options or {})

    def options(self, **options: Any) -> Method:
        """The method with options for the step: ``name``, ``timeout`` (seconds for one attempt), ``retries``.

        Raises:
            GraphError: An unknown option or an impossible value.
        """
        checked = _options.step_options(options, repr(self), here())
        return Method(self._node, self._method, {**self._options, **checked})

    def bind(self, *args: Any, **kwargs: Any) -> CallStep:
        """A step that calls the method with these arguments: JSON values, input, outputs, nodes, containers of them.

        Raises:
            SignatureError: The method does not take these arguments, or is a generator.
        """
        check_call(self._node, self._method, args, kwargs, here())
        return CallStep(self._node, self._method, args, kwargs, **self._options)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise GraphError(
            f"{self!r} cannot be called while the graph is written",
            where=str(here()),
            fix=f"Write .{self._method}.bind(...).",
        )

    def __repr__(self) -> str:
        return f"{self._node._target.__qualname__}.{self._method}"


def check_call(
    node: ClassNode | RemoteFunction, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], place: Place
) -> None:
    """Raises `SignatureError` unless ``node`` can be called so."""
    if method is None:
        check_function(node._target, args, kwargs, place)
    else:
        assert isinstance(node._target, type)
        check_method(node._target, method, args, kwargs, place)
