"""What can go wrong with a channel. None of these reaches a pipeline's caller: the runtime translates them.

ChannelError
├── ChannelLostError      the connection ended before the answer came
├── CallRejectedError     the replica did not begin the call
├── CallTimeoutError      the call's deadline passed
├── NoChannelError        no replica could take the call over a channel
├── QueueFullError        for every replica as many calls wait as may
├── FrameTooLargeError    arguments that do not fit into a frame: the call was not begun
├── AnswerTooLargeError   an answer that does not: the call has been carried out
├── RemoteCallError       an exception that cannot be rebuilt here
├── HandshakeError        the peer is not who it should be, or does not speak this version
└── ProtocolError         the peer sent what no frame is
    └── VersionError      it speaks another version of the protocol
"""

from __future__ import annotations

from enum import IntEnum

from servepipe.errors import ServePipeError

__all__ = [
    "AnswerTooLargeError",
    "CallRejectedError",
    "CallTimeoutError",
    "ChannelError",
    "ChannelLostError",
    "FrameTooLargeError",
    "HandshakeError",
    "NoChannelError",
    "ProtocolError",
    "QueueFullError",
    "Reason",
    "RemoteCallError",
    "VersionError",
]


class Reason(IntEnum):
    """Why a call was not begun, or a peer not let in. The numbers are on the wire: never change one."""

    BUSY = 1
    """The replica has as many calls as it takes."""
    DRAINING = 2
    """The replica is about to end."""
    UNAVAILABLE = 3
    """The replica cannot take calls over a channel now."""
    FULL = 4
    """As many calls wait for the replica as may."""
    VERSION = 16
    """The peers speak different versions of the protocol."""
    IDENTITY = 17
    """Another replica, or another application, listens at this address."""
    TOKEN = 18
    """The peer does not know the token."""


class ChannelError(ServePipeError):
    """Base of the errors of a channel."""


class ChannelLostError(ChannelError):
    """The connection ended before the answer came.

    Args:
        sent: Whether a byte of the call may have left this process. When not, the call was never begun, and making it
            again is safe whatever it does.
    """

    def __init__(self, what: str, *, sent: bool) -> None:
        super().__init__(what)
        self.sent = sent


class CallRejectedError(ChannelError):
    """The replica did not begin the call: it may be made elsewhere, whatever it does. Handlers may raise this."""

    def __init__(self, what: str, *, reason: Reason = Reason.UNAVAILABLE) -> None:
        super().__init__(what)
        self.reason = reason


class CallTimeoutError(ChannelError):
    """The call's deadline passed; the replica was told that nobody waits any longer."""


class NoChannelError(ChannelError):
    """No replica could take the call, and none began it."""


class QueueFullError(ChannelError):
    """Every replica rejected the call because as many wait for it as may. None began it."""


class FrameTooLargeError(ChannelError):
    """A value is larger than a frame may be; nothing of it was sent. For a call: it was not begun."""


class AnswerTooLargeError(ChannelError):
    """The call has been carried out, but its answer is larger than a frame may be."""


class RemoteCallError(ChannelError):
    """An exception of the far side that could not be rebuilt here.

    Args:
        type_name: Qualified name of its type.
        message: Its text.
        remote_traceback: Its formatted traceback.
    """

    def __init__(self, type_name: str, message: str, remote_traceback: str = "") -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name)
        self.type_name = type_name
        self.message = message
        self.remote_traceback = remote_traceback


class HandshakeError(ChannelError):
    """The connection could be made, but not the channel."""

    def __init__(self, what: str, *, reason: Reason | None = None) -> None:
        super().__init__(what)
        self.reason = reason


class ProtocolError(ChannelError):
    """The peer sent something that no frame is, or that has no place here. The connection ends."""


class VersionError(ProtocolError):
    """The peer speaks another version of the protocol."""
