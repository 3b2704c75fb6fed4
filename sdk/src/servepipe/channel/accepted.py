"""One connection as a replica has it: lets the peer in, runs its calls, answers each of them exactly once.

connected ──HELLO──▶ challenged ──PROOF──▶ open ──▶ ended
    └───────── anything else, or too late ──────────▶
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from servepipe.channel import handshake
from servepipe.channel.calls import Handle, IncomingCall
from servepipe.channel.connection import Connection
from servepipe.channel.errors import (
    AnswerTooLargeError,
    CallRejectedError,
    FrameTooLargeError,
    ProtocolError,
    Reason,
    VersionError,
)
from servepipe.channel.frames import Kind, Limits, Part, encode, encode_refusal
from servepipe.channel.lending import peer_of
from servepipe.channel.metadata import ReceivedHeads
from servepipe.channel.values import Dumps, dump, dump_exception, give_up, load

__all__ = ["Accepted", "Identity", "Owner"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a peer has to ask for, and to know, to be let in."""

    application: str
    replica: str
    token: bytes


@dataclass(slots=True)
class Owner:
    """What connections share with their server.

    Args:
        identity: Of the replica.
        handle: Runs a call.
        fallback: Pickles what it returns and ``pickle`` refuses.
        limits: Of this side.
        admit: Takes note of a new connection; False: it is one too many.
        ended: Called when a connection has ended.
        draining: Whether calls are still begun.
    """

    identity: Identity
    handle: Handle
    limits: Limits
    admit: Callable[[Accepted], bool]
    ended: Callable[[Accepted], None]
    fallback: Dumps | None = None
    draining: bool = False


class Accepted(Connection):
    """Args:
        owner: The server.

    Attributes:
        is_open: Whether the peer has proved itself.
        running: The tasks of the calls under way, by id.
        last_frame: When the last frame came, by the loop's clock.
    """

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner.limits, passes_on=False)
        self._owner = owner
        self.is_open = False
        self.running: dict[int, asyncio.Task[None]] = {}
        self.last_frame = self.loop.time()
        self._cancelled: set[int] = set()
        self._ending = False  # this side begins nothing any more
        self._leaving = False  # nor does the peer, and it has all answers
        self._last_call = 0
        self._max_bytes = self.limits.max_frame_bytes
        self._heads = ReceivedHeads()
        self._nonce = b""
        self._hello: handshake.Hello | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.handlers = {Kind.HELLO: self._on_hello}

    # The handshake

    def on_open(self) -> None:
        if not self._owner.admit(self):
            self._refuse(Reason.BUSY, "there are too many connections")
        elif self._owner.draining:
            self._refuse(Reason.DRAINING, "this replica is about to end")
        elif not self._is_same_user():
            self.fail("it belongs to another user")
        else:
            self._timer = self.loop.call_later(
                self.limits.handshake_s, self.fail, f"no handshake within {self.limits.handshake_s:g} s"
            )

    def _is_same_user(self) -> bool:
        """On a unix socket the kernel knows whose process the peer is."""
        assert self._transport is not None
        _, user = peer_of(self._transport.get_extra_info("socket"))
        return user in (-1, os.geteuid())

    def _on_hello(self, call: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        hello = handshake.Hello.parse(head)
        identity = self._owner.identity
        if (hello.application, hello.replica) != (identity.application, identity.replica):
            self._refuse(Reason.IDENTITY, f"it looks for {hello.application} {hello.replica}")
            return
        self._hello = hello
        self._max_bytes = min(self._max_bytes, hello.max_frame_bytes)
        self._nonce = handshake.new_nonce()
        proof = handshake.server_proof(identity.token, hello, self._nonce)
        self.handlers = {Kind.PROOF: self._on_proof, Kind.REJECT: self._on_refusal}
        self.send(encode(Kind.CHALLENGE, head=self._nonce + proof))

    def _on_proof(self, call: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        assert self._hello is not None
        if not handshake.is_proof(head, handshake.client_proof(self._owner.identity.token, self._hello, self._nonce)):
            self._refuse(Reason.TOKEN, "it does not know the token")
            return
        assert self._timer is not None
        self._timer.cancel()
        self.is_open = True
        self.handlers = {
            **self.lending.handlers(),
            Kind.CALL: self._on_call,
            Kind.CANCEL: self._on_cancel,
            Kind.PING: self._on_ping,
            Kind.GOODBYE: self._on_goodbye,
        }
        limits = self.limits
        self.send(encode(Kind.WELCOME, head=handshake.encode_welcome(limits.max_calls, limits.max_frame_bytes)))
        self.trust()
        if self._owner.draining:
            self.say_goodbye()

    def _on_refusal(self, call: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        self.fail("it says that this replica does not know the token")

    def _refuse(self, reason: Reason, text: str) -> None:
        self.fail(text, refusal=encode_refusal(reason, text))

    def on_violation(self, error: ProtocolError) -> None:
        if isinstance(error, VersionError) and not self.is_open:
            # The peer can at least tell the people who run it.
            self._refuse(Reason.VERSION, error.what)
        else:
            self.fail(error.what)

    # Calls

    def _on_call(self, call: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        if call <= self._last_call:
            raise ProtocolError(f"call {call} comes after call {self._last_call}: ids must ascend")
        self._last_call = call
        self.last_frame = self.loop.time()
        # Also of calls that are not begun: what a head defines counts for those after it.
        method, request_id, deadline, pins = self._heads.decode(head)
        if self._ending or self._owner.draining:
            self.send(encode_refusal(Reason.DRAINING, "the replica is about to end", call))
            return
        if len(self.running) >= self.limits.max_calls:
            self.send(encode_refusal(Reason.BUSY, f"{self.limits.max_calls} calls are in flight", call))
            return
        try:
            args, kwargs = load(body, buffers)
            arrived = IncomingCall(method, args, kwargs, request_id, deadline, pins)
        except BaseException as error:  # the classes of arguments may raise anything, also orders to this process
            self.send(self._failure(call, error))
            return
        self.running[call] = self.loop.create_task(self._run(call, arrived), context=contextvars.Context())

    async def _run(self, call: int, arrived: IncomingCall) -> None:
        try:
            frame = self._result(call, await self._owner.handle(arrived))
        except CallRejectedError as error:
            frame = encode_refusal(error.reason, error.what, call)
        except BaseException as error:
            if isinstance(error, GeneratorExit) or call not in self.running:
                raise  # the loop, or the connection, has ended
            if call in self._cancelled and isinstance(error, asyncio.CancelledError):
                frame = encode(Kind.CANCEL, call)
            else:
                frame = self._failure(call, error)
        self._answer(call, frame)

    def _result(self, call: int, value: Any) -> tuple[list[Part], int]:
        lender = self.lending.lender
        payload = dump(value, self._owner.fallback, lender)
        try:
            return encode(Kind.RESULT, call, payload=payload, max_bytes=self._max_bytes)
        except FrameTooLargeError as error:
            give_up(payload, lender)
            raise AnswerTooLargeError(f"the answer is {error.what}") from None

    def _failure(self, call: int, error: BaseException) -> tuple[list[Part], int]:
        try:
            return encode(Kind.FAILURE, call, payload=dump_exception(error), max_bytes=self._max_bytes)
        except FrameTooLargeError as problem:
            told = AnswerTooLargeError(f"the call raised {type(error).__name__}, and that is {problem.what}")
            return encode(Kind.FAILURE, call, payload=dump_exception(told))

    def _answer(self, call: int, frame: tuple[list[Part], int]) -> None:
        if self.running.pop(call, None) is None:
            return  # the connection is gone
        self._cancelled.discard(call)
        # Alone on its connection an answer gains nothing from waiting for the end of the tick.
        self.send(frame, now=not self.running)
        if self.waiting > self.limits.max_waiting_bytes:
            self.pause_reading()
        if not self.running:
            self._end_if_done()

    def _on_cancel(self, call: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        if call > self._last_call:
            raise ProtocolError(f"call {call} is cancelled before it was made")
        task = self.running.get(call)
        if task is not None and call not in self._cancelled:
            self._cancelled.add(call)
            task.cancel()
            # A task that has not begun ends without a step of its code, which would have answered.
            task.add_done_callback(partial(self._cancelled_early, call))

    def _cancelled_early(self, call: int, task: asyncio.Task[None]) -> None:
        if self.running.get(call) is task:
            self._answer(call, encode(Kind.CANCEL, call))

    def _on_ping(self, call: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        self.last_frame = self.loop.time()
        super()._on_ping(call, head, body, buffers)

    # The end

    def say_goodbye(self) -> None:
        """Begin no call any more. The peer ends the connection when it has the last answer.

        Ended from here, calls that are on their way would be lost, and nobody would know that they never began.
        """
        if not self.is_open:
            self.close("the replica is about to end")
        elif self.alive and not self._ending:
            self._ending = True
            self.send(encode(Kind.GOODBYE))

    def end_idle(self) -> None:
        """End because the peer has long had nothing to say, with or without its help."""
        if self._ending:
            return
        self.say_goodbye()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self.limits.stall_s, self.abort, "idle")

    def _on_goodbye(self, call: int, head: memoryview, body: Any, buffers: Sequence[Any]) -> None:
        self.handlers = {**self.lending.handlers(), Kind.CANCEL: self._on_cancel, Kind.PING: self._on_ping}
        self._leaving = True
        self._end_if_done()

    def _end_if_done(self) -> None:
        if not self.running and self._leaving:
            self.close("goodbye")

    def on_pause(self) -> None:
        if self.is_open:
            self._timer = self.loop.call_later(
                self.limits.stall_s, self.fail, f"it fetched nothing for {self.limits.stall_s:g} s"
            )

    def on_resume(self) -> None:
        if self.is_open and self._timer is not None:
            self._timer.cancel()
        self.resume_reading()

    def on_end(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        running, self.running = self.running, {}
        self._cancelled.clear()
        for task in running.values():
            task.cancel()
        self._owner.ended(self)
