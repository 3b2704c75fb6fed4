"""The end of a channel at a caller: `Channel` is one connection to one replica.

    channel = await Channel.connect(endpoint)
    answer = await channel.call("forward", (x,), {}, context)

A call costs a future and, with a deadline, a timer; no task and no context is made for it. Every call ends in exactly
one way: its value, what it raised, or an error of `servepipe.channel.errors`.
"""

from __future__ import annotations

import asyncio
import contextvars
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from servepipe.channel.endpoints import Endpoint
from servepipe.channel.errors import (
    CallRejectedError,
    CallTimeoutError,
    ChannelLostError,
    HandshakeError,
    ProtocolError,
    Reason,
    RemoteCallError,
)
from servepipe.channel.frames import Kind, Limits, encode, parse_refusal
from servepipe.channel.metadata import CallContext, SentHeads
from servepipe.channel.opening import Opening
from servepipe.channel.values import Dumps, dump, give_up, load, load_exception

__all__ = ["Channel"]


class _Call:
    """A call that the replica has not ended. ``future`` is None once nobody waits for its answer any longer."""

    __slots__ = ("future", "start", "timer")

    def __init__(self, future: asyncio.Future[Any], start: int) -> None:
        self.future: asyncio.Future[Any] | None = future
        self.start = start
        self.timer: asyncio.TimerHandle | None = None


class Channel(Opening):
    """Made by `connect`; belongs to that event loop.

    Attributes:
        usable: Whether calls may be begun.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        limits: Limits,
        fallback: Dumps | None = None,
        on_unusable: Callable[[Channel], None] | None = None,
    ) -> None:
        super().__init__(endpoint, limits)
        self.usable = False
        self._fallback = fallback
        self._on_unusable = on_unusable
        self._pending: dict[int, _Call] = {}
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._next = 1
        self._heads = SentHeads()
        self._max_calls = limits.max_calls
        self._max_bytes = limits.max_frame_bytes
        self._leaving = False

    @classmethod
    async def connect(
        cls,
        endpoint: Endpoint,
        *,
        limits: Limits | None = None,
        fallback: Dumps | None = None,
        tls: ssl.SSLContext | None = None,
        on_unusable: Callable[[Channel], None] | None = None,
    ) -> Channel:
        """Open a channel.

        Args:
            endpoint: Where, as `Endpoint.seen_from` gives it: by unix socket or by TCP.
            limits: Of this side.
            fallback: Pickles arguments that ``pickle`` refuses.
            tls: For an endpoint that speaks TLS.
            on_unusable: Called once, when no further call may be begun: the replica drains, or the connection ended.

        Raises:
            HandshakeError: Somebody else listens there, or does not let this side in.
            OSError: Nobody listens there. TimeoutError, one of these, after ``limits.handshake_s`` seconds.
        """
        limits = limits or Limits()
        if endpoint.tls and not endpoint.path and tls is None:
            raise HandshakeError(f"{endpoint.address} speaks TLS, and this side has no certificates for it")
        channel: Channel | None = None

        def make() -> Channel:
            nonlocal channel
            channel = cls(endpoint, limits=limits, fallback=fallback, on_unusable=on_unusable)
            return channel

        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limits.handshake_s):
                # Transports keep the context in which they are made; a request's would live as long as the channel.
                if endpoint.path:
                    opening = loop.create_unix_connection(make, endpoint.path)
                else:
                    opening = loop.create_connection(
                        make, endpoint.host, endpoint.port, ssl=tls if endpoint.tls else None
                    )
                await loop.create_task(opening, context=contextvars.Context())
                assert channel is not None
                await channel.opened
        except BaseException:
            if channel is not None:
                channel.abort("it could not be opened")
            raise
        return channel

    @property
    def in_flight(self) -> int:
        """Calls that the replica has not ended, with those for which nobody waits any longer."""
        return len(self._pending)

    async def call(
        self, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], context: CallContext
    ) -> Any:
        """Call ``method`` (None: the function, or the object itself) and return what it returns.

        Cancelling this cancels the call in the replica.

        Raises:
            CallRejectedError: The call was not begun.
            CallTimeoutError: ``context.deadline`` passed.
            ChannelLostError: The connection ended before the answer came.
            FrameTooLargeError: Arguments or answer are too large.
            Exception: What pickling the arguments or unpickling the answer raised, and what the call itself raised.
        """
        number = self._begin(method, args, kwargs, context)
        call = self._pending[number]
        assert call.future is not None
        try:
            return await call.future
        finally:
            if call.future is not None:
                self._abandon(number, call)

    async def ping(self) -> None:
        """Wait until the replica's event loop has answered. Raises `ChannelLostError`."""
        number = self._number()
        answered = self._pings[number] = self.loop.create_future()
        self.send(encode(Kind.PING, number))
        if not self.alive:
            self._pings.pop(number)
            raise ChannelLostError(f"the channel to {self.peer} has ended", sent=False)
        try:
            await answered
        finally:
            self._pings.pop(number, None)

    def greet(self) -> None:
        """Let the replica know that this side is still there, without waiting for an answer."""
        self.send(encode(Kind.PING, self._number()))

    def retire(self) -> None:
        """Begin no call any more, and end when the last has its answer."""
        self._leaving = True
        self._unusable()
        if not self._pending:
            self.send(encode(Kind.GOODBYE))
            self.close("retired")

    # Calls

    def _begin(self, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], context: CallContext) -> int:
        if not self.usable:
            raise CallRejectedError(f"{self.peer} takes no calls", reason=Reason.DRAINING)
        if len(self._pending) >= self._max_calls or self.waiting > self.limits.max_waiting_bytes:
            raise CallRejectedError(f"{self.peer} has as many calls as the channel takes", reason=Reason.BUSY)
        left = None if context.deadline is None else context.deadline - time.time() - self.limits.margin_s
        if left is not None and left <= 0:
            raise CallTimeoutError("the deadline passed before the call was made")
        lender = self.lending.lender
        payload = dump((args, kwargs), self._fallback, lender)
        number = self._number()
        try:
            head = self._heads.encode(method, context)
            frame = encode(Kind.CALL, number, head, payload, max_bytes=self._max_bytes)
        except BaseException:
            # What this head defines never reaches the replica; new tables define everything again.
            self._heads = SentHeads()
            give_up(payload, lender)
            raise
        call = _Call(self.loop.create_future(), self.enqueued)
        if left is not None:
            call.timer = self.loop.call_later(left, self._too_late, number)
        # Alone on its connection a call gains nothing from waiting for the end of the tick.
        self.send(frame, now=not self._pending)
        self._pending[number] = call
        return number

    def _number(self) -> int:
        number = self._next
        self._next = number + 1
        return number

    def _abandon(self, number: int, call: _Call) -> None:
        """Nobody waits any longer."""
        call.future = None
        if call.timer is not None:
            call.timer.cancel()
        if number in self._pending:
            self.send(encode(Kind.CANCEL, number))

    def _too_late(self, number: int) -> None:
        call = self._pending.get(number)
        if call is not None and call.future is not None:
            future = call.future
            self._abandon(number, call)
            _fail(future, CallTimeoutError("the deadline passed before the answer came"))

    def _ended_call(self, number: int) -> asyncio.Future[Any] | None:
        """Forget a call that the replica has ended, and return who waits for it, if anybody does."""
        call = self._pending.pop(number, None)
        if call is None:
            raise ProtocolError(f"an answer to call {number}, which is not under way")
        if self._leaving and not self._pending:
            self.retire()
        if call.timer is not None:
            call.timer.cancel()
        future, call.future = call.future, None
        return None if future is None or future.done() else future

    def _on_result(self, number: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        future = self._ended_call(number)
        if future is None:
            return
        try:
            value = load(body, buffers)
        except BaseException as error:  # a module that is missing here, or code of the value's own class
            _fail(future, error)
        else:
            future.set_result(value)

    def _on_failure(self, number: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        future = self._ended_call(number)
        if future is not None:
            _fail(future, load_exception(body, buffers))

    def _on_reject(self, number: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        reason, text = parse_refusal(head)
        future = self._ended_call(number)
        if future is not None:
            _fail(future, CallRejectedError(text, reason=reason))

    def _on_cancelled(self, number: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        future = self._ended_call(number)
        if future is not None:
            _fail(future, ChannelLostError(f"{self.peer} ended the call for no reason", sent=True))
            raise ProtocolError(f"call {number} was cancelled there, and not from here")

    # The connection

    def on_welcome(self, max_calls: int, max_frame_bytes: int) -> None:
        self._max_calls = min(self._max_calls, max_calls)
        self._max_bytes = min(self._max_bytes, max_frame_bytes)
        self.handlers = {
            **self.lending.handlers(),
            Kind.RESULT: self._on_result,
            Kind.FAILURE: self._on_failure,
            Kind.REJECT: self._on_reject,
            Kind.CANCEL: self._on_cancelled,
            Kind.PING: self._on_ping,
            Kind.PONG: self._on_pong,
            Kind.GOODBYE: self._on_goodbye,
        }
        self.usable = True

    def on_closing(self) -> None:
        self._unusable()

    def on_end(self, error: Exception | None) -> None:
        super().on_end(error)
        self._unusable()
        why = f"the channel to {self.peer} has ended" + (f": {self.reason}" if self.reason else "")
        pending, self._pending = self._pending, {}
        for call in pending.values():
            if call.timer is not None:
                call.timer.cancel()
            future, call.future = call.future, None
            if future is not None and not future.done():
                _fail(future, ChannelLostError(why, sent=self.written > call.start))
        for answered in self._pings.values():
            if not answered.done():
                _fail(answered, ChannelLostError(why, sent=True))

    def _unusable(self) -> None:
        self.usable = False
        if self._on_unusable is not None:
            tell, self._on_unusable = self._on_unusable, None
            tell(self)

    def _on_pong(self, number: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        answered = self._pings.get(number)
        if answered is not None and not answered.done():
            answered.set_result(None)

    def _on_goodbye(self, number: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        self.retire()


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    # A future takes neither StopIteration nor, without ending the loop, an order to the process.
    if not isinstance(error, Exception) or isinstance(error, StopIteration):
        wrapped = RemoteCallError(type(error).__name__, str(error))
        wrapped.__cause__ = error
        error = wrapped
    future.set_exception(error)
    future.exception()  # whoever waited may be gone by now; then nobody asks for it
