"""The frames of a port-forward over WebSocket, subprotocol ``v4.channel.k8s.io``, for one port. Pure.

Channel 0 carries the port's bytes in both directions, channel 1 what went wrong, in words. The first frame of each
repeats the port's number. There is no half-close: whoever has nothing more to say ends the WebSocket.
"""

from __future__ import annotations

__all__ = ["PROTOCOL", "Frames", "to_pod"]

PROTOCOL = "v4.channel.k8s.io"
DATA, ERROR = 0, 1


class Frames:
    """What comes from the kubelet.

    Args:
        port: The pod's port that was asked for.

    Attributes:
        error: What the kubelet said that went wrong, "" while nothing did.
    """

    def __init__(self, port: int) -> None:
        self.error = ""
        self._first = port.to_bytes(2, "little")
        self._begun: set[int] = set()

    def take(self, frame: bytes) -> bytes:
        """The port's bytes in a frame. Raises ValueError for one that is not of this protocol."""
        channel, rest = int.from_bytes(frame[:1], "little"), frame[1:]
        if not frame or channel not in (DATA, ERROR):
            raise ValueError(f"a frame of no channel that was asked for: {frame[:20]!r}")
        if channel not in self._begun:
            if rest != self._first:
                raise ValueError(f"channel {channel} begins with {rest[:20]!r} and not with the port's number")
            self._begun.add(channel)
            return b""
        if channel == DATA:
            return rest
        self.error += rest.decode(errors="replace")
        return b""


def to_pod(data: bytes) -> bytes:
    """A frame that carries ``data`` to the port."""
    return bytes((DATA,)) + data
