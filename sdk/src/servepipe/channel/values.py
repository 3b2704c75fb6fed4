"""Python values for the wire: a pickle of protocol 5, with large buffers beside it.

A value is fixed when it is dumped: buffers that its owner could still write to are copied then, once, because they are
sent later and piece by piece; read-only ones are sent from where they are. On the other side each buffer is the
receiver's own, and an array is writable there exactly when it was here.

Nothing here is for bytes of strangers: unpickling runs code.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from servepipe.channel.errors import RemoteCallError
from servepipe.channel.frames import MAX_BUFFERS, Part, Payload, Segment
from servepipe.channel.segments import SEGMENT_BYTES, Lender

__all__ = ["Dumps", "dump", "dump_exception", "give_up", "load", "load_exception"]

IN_BAND_BYTES = 16 * 1024
"""Smaller buffers stay inside the pickle: a few copies cost less than a part of their own."""

MAX_TEXT = 100_000

MAX_EXCEPTION_BYTES = 16 << 20

Dumps = Callable[..., bytes]
"""Like ``pickle.dumps``: ``dumps(value, protocol=5, buffer_callback=f) -> bytes``, for ``pickle.loads`` to read."""


def dump(value: Any, fallback: Dumps | None = None, lender: Lender | None = None) -> Payload:
    """``value`` as a pickle and its buffers.

    Args:
        fallback: Pickles what ``pickle`` refuses, such as functions without a name of their own.
        lender: Takes what is large; see `give_up` where it is not sent.

    Raises whatever pickling raises.
    """
    buffers: list[Part | Segment] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Take a buffer out of the pickle; True leaves it in."""
        raw = buffer.raw()
        if raw.nbytes < IN_BAND_BYTES or len(buffers) == MAX_BUFFERS:
            return True
        segment = None if lender is None or raw.nbytes < SEGMENT_BYTES else lender.lend(raw)
        buffers.append(segment or (raw if raw.readonly else bytes(raw)))
        return False

    try:
        try:
            body = pickle.dumps(value, protocol=5, buffer_callback=keep)
        except Exception:
            if fallback is None:
                raise
            give_up((b"", buffers), lender)
            buffers.clear()
            body = fallback(value, protocol=5, buffer_callback=keep)
        segment = None if lender is None or len(body) < SEGMENT_BYTES else lender.lend(memoryview(body))
    except BaseException:
        give_up((b"", buffers), lender)
        raise
    return segment or body, buffers


def give_up(payload: Payload, lender: Lender | None) -> None:
    """Take back what a payload that is not sent has in segments."""
    if lender is not None:
        body, buffers = payload
        for part in (body, *buffers):
            if isinstance(part, Segment):
                lender.take_back(part.fd)


def load(body: Any, buffers: Iterable[Any] = ()) -> Any:
    """The value of `dump`, of anything with bytes in it. Raises whatever unpickling it raises."""
    return pickle.loads(body, buffers=buffers)


def dump_exception(error: BaseException) -> Payload:
    """``error`` as something that `load_exception` can surely rebuild; never raises, whatever the exception does."""
    if isinstance(error, Exception):  # others are orders to this process, none to the caller's
        with suppress(BaseException):  # the exception's __reduce__ may raise anything
            body, buffers = dump(error)
            assert isinstance(body, bytes)
            size = len(body) + sum(len(buffer) for buffer in buffers if not isinstance(buffer, Segment))
            if size <= MAX_EXCEPTION_BYTES and type(load(body, buffers)) is type(error):
                return body, buffers
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    text = _text_of(lambda: "".join(traceback.format_exception(error)))
    return dump(RemoteCallError(name, _text_of(lambda: str(error)), text))


def load_exception(body: Any, buffers: Iterable[Any] = ()) -> Exception:
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
