"""Python values for the wire: a pickle of protocol 5, with large buffers beside it.

A value is fixed when it is dumped: buffers that its owner could still write to are copied then, once, because they are
sent later and piece by piece; read-only ones are sent from where they are. On the other side each buffer has memory of
its own, and an array is writable there exactly when it was here.

Nothing here is for bytes of strangers: unpickling runs code.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from servepipe.channel.errors import RemoteCallError
from servepipe.channel.frames import MAX_BUFFERS, Part, Payload

__all__ = ["Dumps", "dump", "dump_exception", "load", "load_exception"]

IN_BAND_BYTES = 16 * 1024
"""Smaller buffers stay inside the pickle: a few copies cost less than a part of their own."""

MAX_TEXT = 100_000

MAX_EXCEPTION_BYTES = 16 << 20

Dumps = Callable[..., bytes]
"""Like ``pickle.dumps``: ``dumps(value, protocol=5, buffer_callback=f) -> bytes``, for ``pickle.loads`` to read."""


def dump(value: Any, fallback: Dumps | None = None) -> Payload:
    """``value`` as a pickle and its buffers.

    Args:
        fallback: Pickles what ``pickle`` refuses, such as functions without a name of their own.

    Raises whatever pickling raises.
    """
    buffers: list[Part] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Take a buffer out of the pickle; True leaves it in."""
        raw = buffer.raw()
        if raw.nbytes < IN_BAND_BYTES or len(buffers) == MAX_BUFFERS:
            return True
        buffers.append(raw if raw.readonly else bytes(raw))
        return False

    try:
        return pickle.dumps(value, protocol=5, buffer_callback=keep), buffers
    except Exception:
        if fallback is None:
            raise
        buffers.clear()
        return fallback(value, protocol=5, buffer_callback=keep), buffers


def load(body: Part, buffers: Iterable[Any] = ()) -> Any:
    """The value of `dump`. Raises whatever unpickling it raises."""
    return pickle.loads(body, buffers=buffers)


def dump_exception(error: BaseException) -> Payload:
    """``error`` as something that `load_exception` can surely rebuild; never raises, whatever the exception does."""
    if isinstance(error, Exception):  # others are orders to this process, none to the caller's
        with suppress(BaseException):  # the exception's __reduce__ may raise anything
            body, buffers = dump(error)
            size = len(body) + sum(map(len, buffers))
            if size <= MAX_EXCEPTION_BYTES and type(load(body, buffers)) is type(error):
                return body, buffers
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    text = _text_of(lambda: "".join(traceback.format_exception(error)))
    return dump(RemoteCallError(name, _text_of(lambda: str(error)), text))


def load_exception(body: Part, buffers: Iterable[Any] = ()) -> Exception:
    """The exception of `dump_exception`, or a `RemoteCallError` that says why there is none."""
    try:
        error = load(body, buffers)
    except BaseException as problem:  # a module that is missing here, another version of the class, anything
        return RemoteCallError(type(problem).__name__, f"the answer is an exception that cannot be read: {problem}")
    # A future takes no StopIteration, and nothing but exceptions can be raised.
    if not isinstance(error, Exception) or isinstance(error, StopIteration):
        return RemoteCallError(type(error).__name__, _text_of(lambda: str(error)))
    return error


def _text_of(make: Callable[[], str]) -> str:
    try:
        return make()[:MAX_TEXT]
    except BaseException as problem:  # the user's __str__ may raise anything
        return f"<no text: {type(problem).__name__}>"
