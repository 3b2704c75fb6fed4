"""What stands for a value that is known only while a request is answered: the input, an item of a map, a step's output.

They record how they are used and compute nothing. `lower` turns them into the compiled graph's expressions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NoReturn
from weakref import WeakSet

from servepipe.authoring.naming import Labels, labels_in
from servepipe.authoring.places import Place, here, user_frame
from servepipe.authoring.signatures import check_hook
from servepipe.errors import GraphError
from servepipe.graph.ir import Attr, Path

__all__ = ["Authored", "InputPart", "Item", "ServeInputNode", "Value", "active_input", "leaves"]

_order = itertools.count()
_active: ContextVar[tuple[ServeInputNode, ...]] = ContextVar("servepipe_active_inputs", default=())


def active_input() -> ServeInputNode | None:
    """The input whose ``with`` block is being executed, the innermost if they nest."""
    return _active.get()[-1] if _active.get() else None


class Authored:
    """Whatever the author puts into a graph; knows the line that made it and its place in the order of all of them."""

    def __init__(self) -> None:
        self._place: Place = here()
        self._order: int = next(_order)

    @property
    def _identity(self) -> object:
        """The object that the user's variables are bound to."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray pickles whatever it does not know when it looks for its own nodes in arguments. What it should get is not
        # an error there but the one of `build`, which names the import to use.
        return _Elsewhere, ()


class _Elsewhere:
    """What a pickled part of a graph comes back as: nothing that could be used."""


class Value(Authored):
    """Base of all placeholders: can be given to ``bind``, and taken apart by ``[...]``."""

    _owner: ServeInputNode | None = None
    """The input of the graph that this belongs to, where that is known already."""

    def __getitem__(self, key: int | str) -> Value:
        raise NotImplementedError

    def __bool__(self) -> NoReturn:
        raise GraphError(
            f"{self._label()} is neither true nor false: its value is not known while the graph is written",
            where=str(here()),
            fix="Branch with servepipe.switch(...), or inside a node.",
        )

    def __eq__(self, other: object) -> bool:
        if type(other) in (bool, int, float, str):
            raise GraphError(
                f"{self._label()} cannot be compared with {other!r}: its value is not known while the graph is written",
                where=str(here()),
                fix="Branch with servepipe.switch(...), or compare inside a node.",
            )
        return NotImplemented

    __hash__ = object.__hash__

    def _refuse_order(self, _other: object) -> NoReturn:
        raise GraphError(
            f"{self._label()} cannot be compared: its value is not known while the graph is written",
            where=str(here()),
            fix="Branch with servepipe.switch(...), or compare inside a node.",
        )

    __lt__ = __le__ = __gt__ = __ge__ = _refuse_order

    def _refuse_arithmetic(self, *_others: object) -> NoReturn:
        raise GraphError(
            f"{self._label()} cannot be computed with: its value is not known while the graph is written",
            where=str(here()),
            fix="Do it in a node: write a function with @remote and call it by .bind(...).",
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __matmul__ = __rmatmul__ = _refuse_arithmetic
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse_arithmetic
    __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = _refuse_arithmetic

    def __iter__(self) -> NoReturn:
        # Without this Python would call __getitem__ with 0, 1, 2... for ever.
        raise GraphError(
            f"{self._label()} cannot be iterated or unpacked: its value is not known while the graph is written",
            where=str(here()),
            fix="Take parts by [0], [1]; to do something with each item use servepipe.map(...).",
        )

    def _label(self) -> str:
        raise NotImplementedError


def check_key(key: object, label: str) -> int | str:
    """``key`` if it can stand in a path, else `GraphError`."""
    if type(key) is int or type(key) is str:
        return key
    raise GraphError(
        f"{label} can be indexed by int and str only, not by {key!r}",
        where=str(here()),
        fix="Take the part in a step of its own.",
    )


class InputPart(Value):
    """A part of the request's input: ``i[0]``, ``i["k"]``, ``i.k``, or deeper."""

    def __init__(self, owner: ServeInputNode, path: Path) -> None:
        super().__init__()
        self._owner: ServeInputNode = owner
        self._path = path

    def __getitem__(self, key: int | str) -> InputPart:
        return InputPart(self._owner, (*self._path, check_key(key, self._label())))

    def __getattr__(self, name: str) -> InputPart:
        if name.startswith("_"):
            # Probes of copy, IPython and the like; a key that really starts so is reached by i["_k"].
            raise AttributeError(name)
        return InputPart(self._owner, (*self._path, Attr(name)))

    def _label(self) -> str:
        return "input" + "".join(f".{key.name}" if isinstance(key, Attr) else f"[{key!r}]" for key in self._path)

    def __repr__(self) -> str:
        return f"<{self._label()}>"


class ServeInputNode(InputPart):
    """The input of a graph, used as a context manager around what is bound.

    With exactly one positional and no keyword argument of ``execute`` it stands for that argument; otherwise an int
    takes a positional and a str a keyword argument. When the block ends, the variables of the function or module around
    it give the nodes and steps their names.

    Args:
        preprocessor: A sync or async function that takes the ``starlette.requests.Request`` of an HTTP call and returns
            the single argument. It runs for HTTP only, not for ``execute`` or handles.

    Raises:
        GraphError: ``preprocessor`` is not callable with one argument.
    """

    def __init__(self, *, preprocessor: Callable[[Any], Any] | None = None) -> None:
        super().__init__(self, ())
        check_hook(preprocessor, "preprocessor", self._place)
        self._preprocessor = preprocessor
        self._inside: list[Value] = []
        self._outside: WeakSet[Value] = WeakSet()
        self._labels = Labels()

    def __enter__(self) -> ServeInputNode:
        self._token = _active.set((*_active.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _active.reset(self._token)
        # Not what belongs to other graphs: an old one in a notebook's variable would stay alive with all its models.
        self._labels = labels_in(user_frame(), Authored, lambda value: getattr(value, "_owner", None) in (None, self))

    def _register(self, step: Value) -> None:
        """Remember a step, so that one that nothing needs can be reported.

        Steps of the block are held strongly: ``m1.log.bind(i)`` alone on a line is just what has to be found. Those
        bound after it are not: a notebook cell that is run again would leave old ones behind for ever.
        """
        if active_input() is self:
            self._inside.append(step)
        else:
            self._outside.add(step)


class Item(Value):
    """The item that a ``map`` is looking at, or a part of it."""

    def __init__(self, of: Value, path: Path = ()) -> None:
        super().__init__()
        self._of = of
        self._owner = of._owner
        self._path = path

    def __getitem__(self, key: int | str) -> Item:
        return Item(self._of, (*self._path, check_key(key, self._label())))

    def __getattr__(self, name: str) -> Item:
        if name.startswith("_"):
            raise AttributeError(name)
        return Item(self._of, (*self._path, Attr(name)))

    def _label(self) -> str:
        return "item" + "".join(f".{key.name}" if isinstance(key, Attr) else f"[{key!r}]" for key in self._path)

    def __repr__(self) -> str:
        return f"<{self._label()}>"


def leaves(value: Any) -> Iterator[Any]:
    """What stands in nested lists, tuples and dicts, in order. A container that holds itself ends the walk there."""
    stack: list[Iterator[Any]] = [iter((value,))]
    entered: list[int] = [0]
    while stack:
        for item in stack[-1]:
            if type(item) in (list, tuple, dict):
                if id(item) not in entered:
                    stack.append(iter(item.values() if type(item) is dict else item))
                    entered.append(id(item))
                    break
            else:
                yield item
        else:
            stack.pop()
            entered.pop()
