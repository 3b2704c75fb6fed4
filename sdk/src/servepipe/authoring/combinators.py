"""Control flow that compiles into the resource, where the people who run it can see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from servepipe.authoring.nodes import Method, RemoteFunction
from servepipe.authoring.places import here
from servepipe.authoring.steps import Step
from servepipe.authoring.values import Item, Value, leaves
from servepipe.errors import GraphError

__all__ = [
    "FallbackStep",
    "FirstStep",
    "MapStep",
    "SplitStep",
    "SwitchStep",
    "fallback",
    "first",
    "map",
    "split",
    "switch",
]


class _Missing:
    def __repr__(self) -> str:
        return "<no default>"


NO_DEFAULT: Any = _Missing()


class SwitchStep(Step):
    """See `switch`."""

    def __init__(self, on: Any, cases: Mapping[Any, Any], default: Any, name: str | None) -> None:
        super().__init__([on, *cases.values(), *([] if default is NO_DEFAULT else [default])], name)
        self._on = on
        self._cases = dict(cases)
        self._default = default

    def __repr__(self) -> str:
        return "switch"


class SplitStep(Step):
    """See `split`."""

    def __init__(self, branches: tuple[tuple[int, Any], ...], on: Any, name: str | None) -> None:
        super().__init__([*(branch for _, branch in branches), *([] if on is NO_DEFAULT else [on])], name)
        self._branches = branches
        self._on = on

    def __repr__(self) -> str:
        return "split"


class MapStep(Step):
    """See `map`."""

    def __init__(self, each: Callable[[Item], Any], over: Any, concurrency: int | None, name: str | None) -> None:
        super().__init__([over], name)
        self._over = over
        self._concurrency = concurrency
        self._each = each(Item(self))
        if not any(isinstance(leaf, Value) for leaf in leaves(self._each)):
            raise GraphError(
                f"map() got {self._each!r} to do with each item, which is no step",
                where=str(self._place),
                fix="The function is called once, while the graph is written: let it bind a node, as in "
                "map(lambda item: node.method.bind(item), items).",
            )
        self._operands = (over, self._each)

    def __repr__(self) -> str:
        return "map"


class FallbackStep(Step):
    """See `fallback`."""

    def __repr__(self) -> str:
        return "fallback"


class FirstStep(Step):
    """See `first`."""

    def __repr__(self) -> str:
        return "first"


def switch(
    on: Any, cases: Mapping[str | int | bool, Any], default: Any = NO_DEFAULT, *, name: str | None = None
) -> Step:
    """The case whose key equals ``on`` in type and value; only that one runs.

    Args:
        on: A step's output or a part of the input that gives a str, int or bool.
        cases: For each value the step (or constant, or container) to answer with.
        default: What any other value answers with. Without it such a value is an error of the request.
        name: The step's name; by default the variable's.

    Raises:
        GraphError: No cases, or a key that is not a str, int or bool.
    """
    if not isinstance(cases, Mapping) or not cases:
        raise GraphError("switch() needs a dict with at least one case", where=str(here()))
    for key in cases:
        if type(key) not in (str, int, bool):
            raise GraphError(
                f"the case {key!r} of a switch is not a str, int or bool",
                where=str(here()),
                fix="Compute such a value in the step that is switched on.",
            )
    return SwitchStep(on, cases, default, name)


def split(*branches: tuple[int, Any], on: Any = NO_DEFAULT, name: str | None = None) -> Step:
    """One of several branches, by weight: ``split((90, current), (10, experiment))``.

    Args:
        branches: Pairs of a weight in percent (a whole number) and a step; the weights sum to 100.
        on: A value, for instance a user's id; equal values always take the same branch. Without it each request draws.
        name: The step's name; by default the variable's.

    Raises:
        GraphError: Anything but pairs with whole weights that sum to 100.
    """
    place = str(here())
    for branch in branches:
        if type(branch) is not tuple or len(branch) != 2 or type(branch[0]) is not int or not 0 <= branch[0] <= 100:
            raise GraphError(
                f"a branch of a split is a pair of a whole number from 0 to 100 and a step, not {branch!r}",
                where=place,
                fix="Write split((90, a), (10, b)).",
            )
    total = sum(weight for weight, _ in branches)
    if total != 100:
        raise GraphError(f"the weights of a split sum to {total}", where=place, fix="Make them sum to 100.")
    return SplitStep(branches, on, name)


def map(
    each: Callable[[Item], Any] | Method | RemoteFunction,
    over: Any,
    *,
    concurrency: int | None = None,
    name: str | None = None,
) -> Step:
    """A list: ``each`` done for every item of ``over``, in its order.

    Args:
        each: A method or function to bind to the item (``map(m.score, texts)``), or a Python function that gets a
            placeholder of the item and returns what to do with it (``map(lambda text: m.score.bind(text, 2), texts)``).
            It is called once, now.
        over: What gives the items: a step's output, a part of the input, a list.
        concurrency: How many items may be under way at once; None: all.
        name: The step's name; by default the variable's.

    Raises:
        GraphError: ``each`` is none of these, or ``concurrency`` is not a whole number of at least 1.
    """
    place = str(here())
    if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
        raise GraphError(f"concurrency is a whole number of at least 1, not {concurrency!r}", where=place)
    bind = each.bind if isinstance(each, Method | RemoteFunction) else each
    if not callable(bind):
        raise GraphError(
            f"map() takes something to do with each item, not {each!r}",
            where=place,
            fix="Write map(node.method, items) or map(lambda item: node.method.bind(item), items).",
        )
    return MapStep(bind, over, concurrency, name)


def fallback(*options: Any, name: str | None = None) -> Step:
    """The first option; when it raises, the next one. The error of the last one is the step's own.

    Raises:
        GraphError: Fewer than two options.
    """
    _at_least_two("fallback", options)
    return FallbackStep(options, name)


def first(*options: Any, name: str | None = None) -> Step:
    """All options at once: the first one that succeeds wins, the others are cancelled.

    Raises:
        GraphError: Fewer than two options.
    """
    _at_least_two("first", options)
    return FirstStep(options, name)


def _at_least_two(what: str, options: tuple[Any, ...]) -> None:
    if len(options) < 2:
        raise GraphError(f"{what}() needs at least two options", where=str(here()))
