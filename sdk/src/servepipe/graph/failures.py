"""Which step a failure came from.

A user's exception reaches the caller as itself. What the interpreter knows about the place goes along in two ways: a
note on the exception, for the person who reads the traceback, and attributes, for the code that makes an HTTP answer.
Both survive pickling, so that it does not matter in which process the exception was raised.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from servepipe.errors import NodeError, RequestError

__all__ = ["FailedStep", "Raised", "as_exception", "asked_for", "caught", "failed_step", "mark", "message_of", "opened"]

T = TypeVar("T")

_ATTRIBUTE = "_servepipe_step"


class FailedStep(NamedTuple):
    """The place of a failure; each part is empty where it is unknown or there is none."""

    step: str = ""
    node: str = ""
    method: str = ""


def failed_step(error: BaseException) -> FailedStep:
    """The step of the graph that ``error`` came from, with the node and method that it called."""
    if isinstance(error, RequestError) and error.step:
        return FailedStep(error.step, error.node)
    return FailedStep(*getattr(error, _ATTRIBUTE, ()))


def mark(error: BaseException, step: str, node: str = "", method: str | None = None) -> None:
    """Remember on ``error`` that it came from ``step``, and say so in a note of its traceback."""
    if isinstance(error, RequestError) and not error.step:
        error.step, error.node = step, error.node or node
    called = f", calling {node}.{method}" if node and method else f", calling {node}" if node else ""
    note = f"in step {step}{called}"
    notes = list(getattr(error, "__notes__", ()))
    # Not by plain assignment: an exception may be a frozen dataclass.
    BaseException.__setattr__(error, _ATTRIBUTE, (step, node, method or ""))
    # Code may raise one exception object many times; its notes must not grow with each request.
    if note not in notes:
        BaseException.__setattr__(error, "__notes__", [*notes, note])


def as_exception(error: BaseException) -> Exception:
    """``error`` in a form that can be raised on an event loop without ending it.

    ``SystemExit``, ``KeyboardInterrupt`` and a ``CancelledError`` that nobody asked for would otherwise be taken for
    orders to the loop or to the task in which they surface.
    """
    if isinstance(error, Exception):
        return error
    text = "".join(traceback.format_exception(error))
    told = NodeError(type(error).__name__, message_of(error) or _WHY.get(type(error), ""), text)
    told.__cause__ = error
    return told


def asked_for(error: BaseException) -> bool:
    """Whether ``error`` is an order to the task that it surfaces in: somebody cancelled it, or throws it away.

    Everything else that user code raises is a failure of that code, `as_exception` says which.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, GeneratorExit)


def message_of(error: BaseException) -> str:
    """``str(error)``, whatever the exception makes of that."""
    try:
        return str(error)
    except Exception:
        return ""  # a __str__ that raises, as an exception that was not initialised may have


_WHY: dict[type[BaseException], str] = {asyncio.CancelledError: "the call was cancelled, though not by its caller"}


# Futures that join threads and event loops do not hand every exception on: a TimeoutError arrives as a new one without
# traceback and notes, StopIteration not at all. So exceptions cross as values and are raised on the far side.


class Raised:
    """An exception on its way between threads."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


async def caught(work: Callable[[], Awaitable[T]]) -> T | Raised:
    """What ``work()`` returns, or the exception that it raises; cancellation stays what it is."""
    try:
        return await work()
    except Exception as error:
        return Raised(error)


def opened(outcome: T | Raised) -> T:
    """What `caught` saw: returned or raised."""
    if isinstance(outcome, Raised):
        try:
            raise outcome.error
        finally:
            del outcome  # or the traceback would keep itself alive
    return outcome
