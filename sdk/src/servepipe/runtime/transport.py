"""How a user's exception travels from a node's replica to its caller.

The caller should get the very exception that the user's code raised. Exceptions are arbitrary objects, though: some
cannot be pickled, some only seem to be until they are unpickled (a constructor with other arguments than ``args``), and
unpickling may run the user's code. So an exception is carried as bytes inside `NodeFailure`, which always survives, and
both ends try, and fall back to `NodeError`.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Sequence

from servepipe.errors import NodeError
from servepipe.graph.failures import FailedStep, as_exception, failed_step, mark

__all__ = ["NodeFailure", "RemoteTracebackError", "pack", "unpack"]

MAX_PICKLE_BYTES = 1 << 20
MAX_TEXT = 100_000


class RemoteTracebackError(Exception):
    """The traceback of the process in which an exception was raised, as its ``__cause__``: for people who read logs."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


class NodeFailure(Exception):  # noqa: N818 - carries an error, is none that callers see
    """An exception of user code under way. Its parts are plain strings and bytes, so that it can always be sent.

    Args:
        pickled: The exception, or None where it cannot be pickled and unpickled.
        type_name: Qualified name of its type.
        message: Its text.
        remote_traceback: Its formatted traceback.
        place: The step, node and method that it is known to come from, as in `FailedStep`.
    """

    def __init__(
        self,
        pickled: bytes | None,
        type_name: str,
        message: str,
        remote_traceback: str,
        place: Sequence[str] = ("", "", ""),
    ) -> None:
        super().__init__(pickled, type_name, message, remote_traceback, place)
        self.pickled = pickled
        self.type_name = type_name
        self.message = message
        self.remote_traceback = remote_traceback
        self.place = place

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"


def pack(error: BaseException) -> NodeFailure:
    """``error`` in a form that can be sent; never raises, whatever the exception does."""
    exception = as_exception(error)
    text = _text_of(lambda: "".join(traceback.format_exception(exception)))
    message = _text_of(lambda: str(exception))
    try:
        pickled: bytes | None = pickle.dumps(exception)
        if len(pickled or b"") > MAX_PICKLE_BYTES or type(pickle.loads(pickled or b"")) is not type(exception):
            pickled = None
    except BaseException:  # the user's __reduce__ may raise anything
        pickled = None
    kind = type(exception)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return NodeFailure(pickled, name, message, text, (*failed_step(exception),))


def unpack(failure: NodeFailure) -> Exception:
    """The user's exception with its remote traceback as cause, or `NodeError` where it cannot be rebuilt here."""
    if failure.pickled is not None:
        try:
            error = pickle.loads(failure.pickled)
        except BaseException:  # another version of the class, a module that is missing here, anything
            error = None
        if isinstance(error, Exception):
            # Not by plain assignment: an exception may be a frozen dataclass.
            BaseException.__setattr__(error, "__cause__", RemoteTracebackError(failure.remote_traceback))
            return error
    told = NodeError(failure.type_name, failure.message, failure.remote_traceback)
    told.__cause__ = RemoteTracebackError(failure.remote_traceback)
    place = FailedStep(*failure.place)
    if place.step:
        mark(told, place.step, place.node, place.method)
    return told


def _text_of(make: Callable[[], str]) -> str:
    try:
        return make()[:MAX_TEXT]
    except BaseException as problem:  # the user's __str__ may raise anything
        return f"<no text: {type(problem).__name__}>"
