"""What a node's caller is told about a value that is too large for its way to the node, or back.

A channel takes more than Serve's handle does, whose limit is `flags.MAX_MESSAGE_BYTES`. Either looks before the replica
does anything: a node whose arguments are too large has not seen the call.
"""

from __future__ import annotations

import re

import grpc

from servepipe.channel.errors import AnswerTooLargeError, FrameTooLargeError
from servepipe.channel.frames import Limits
from servepipe.errors import RequestError

__all__ = ["TooLargeError", "refused_by_channel", "refused_by_handle"]

_REFUSAL = re.compile(r"(SERVER|CLIENT): Received message larger than max \((\d+) vs\. (\d+)\)")
"""The side that received it and did not take it, in the midst of gRPC's text."""
_CHANNEL = (
    f"Over a channel it may have {Limits().max_frame_bytes:,}; there was none to use, and the metric "
    "servepipe_node_calls tells why. "
)
_REFERENCE = "Hand over where the data is instead, such as a path or a URL, or parts of it."


class TooLargeError(Exception):
    """A value is too large. Never leaves the runtime: see `error`.

    Args:
        what: As in ``the answer is a value of 3 bytes, more than the 2 that a channel takes``.
        called: The node has done its work; else it has not seen the call.
        over_handle: It was Serve's handle that refused it.
    """

    def __init__(self, what: str, *, called: bool, over_handle: bool) -> None:
        super().__init__(what)
        self.what, self.called, self.over_handle = what, called, over_handle

    def error(self, node: str) -> RequestError:
        """For whoever called the node."""
        begin = f"node {node} was called, but" if self.called else f"node {node} was not called:"
        fix = (_CHANNEL if self.over_handle else "") + _REFERENCE
        return RequestError(f"{begin} {self.what}", fix=fix, code="ValueTooLarge", node=node)


def refused_by_channel(error: FrameTooLargeError | AnswerTooLargeError) -> TooLargeError:
    """What a call over a channel raised."""
    called = isinstance(error, AnswerTooLargeError)
    return TooLargeError(error.what if called else f"the call is {error.what}", called=called, over_handle=False)


def refused_by_handle(error: BaseException) -> TooLargeError | None:
    """What a call over Serve's handle raised, where the size of a message is why."""
    if not isinstance(error, grpc.aio.AioRpcError) or error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    found = _REFUSAL.search(error.details() or "")
    if found is None:
        return None
    called = found[1] == "CLIENT"
    size, limit = int(found[2]), int(found[3])
    which = "answer" if called else "call"
    what = f"the {which} is a value of {size:,} bytes, more than the {limit:,} that Serve's handle takes"
    return TooLargeError(what, called=called, over_handle=True)
