"""Reading HTTP/1.1 responses from a buffer, and finding out whether they are right: pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from graphbench.cases import Request

__all__ = ["Answers", "BadResponseError", "Response", "includes", "parse", "request_bytes"]

_END = b"\r\n\r\n"
_SHOWN = 300


class BadResponseError(Exception):
    """What came is not a response to the request, or one whose length nobody can tell."""


class Response(NamedTuple):
    """A whole response. ``size`` is how much of the buffer it was; ``closes``: nothing follows on this connection."""

    status: int
    body: bytes
    size: int
    closes: bool


def request_bytes(host: str, path: str, body: bytes) -> bytes:
    """A POST of JSON as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


def parse(buffer: bytes | bytearray) -> Response | None:
    """The first response in the buffer; None while it is not whole.

    Raises:
        BadResponseError: It never will be.
    """
    end = buffer.find(_END)
    if end < 0:
        return None
    head = bytes(buffer[:end]).lower()
    if not head.startswith(b"http/1.1 "):
        raise BadResponseError(f"not a response of HTTP/1.1: {bytes(buffer[:_SHOWN])!r}")
    status, closes, start = int(head[9:12]), b"\r\nconnection: close" in head, end + len(_END)
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        stop = head.find(b"\r\n", at + 2)
        length = int(head[at + 17 : stop if stop >= 0 else len(head)])
        if len(buffer) < start + length:
            return None
        return Response(status, bytes(buffer[start : start + length]), start + length, closes)
    if b"\r\ntransfer-encoding: chunked" in head:
        return _chunked(buffer, start, status, closes)
    raise BadResponseError(f"a response without a length: {head[:_SHOWN]!r}")


def _chunked(buffer: bytes | bytearray, start: int, status: int, closes: bool) -> Response | None:
    body = bytearray()
    while True:
        end = buffer.find(b"\r\n", start)
        if end < 0:
            return None
        size = int(bytes(buffer[start:end]).partition(b";")[0], 16)
        start = end + 2
        if len(buffer) < start + size + 2:
            return None
        if size == 0:
            return Response(status, bytes(body), start + 2, closes)
        body += buffer[start : start + size]
        start += size + 2


def includes(answer: Any, wanted: Any) -> bool:
    """Whether ``answer`` has at least the fields of ``wanted``, all the way down."""
    if isinstance(wanted, dict):
        return isinstance(answer, dict) and all(
            key in answer and includes(answer[key], value) for key, value in wanted.items()
        )
    return bool(answer == wanted)


@dataclass(slots=True)
class Answers:
    """What is right for one request. What was found right once is known by its bytes from then on."""

    request: Request
    noop: bool = False
    _right: frozenset[bytes] = frozenset()

    def problem(self, status: int, body: bytes) -> str:
        """What is wrong with an answer; "" when nothing is."""
        if status == 200 and body in self._right:
            return ""
        if status != 200:
            return f"HTTP {status}: {body[:_SHOWN]!r}"
        try:
            answer = json.loads(body)
        except ValueError:
            return f"not JSON: {body[:_SHOWN]!r}"
        wanted = self.request.noop if self.noop else self.request.answer
        if not (includes(answer, wanted) if self.request.partly else answer == wanted):
            return f"{body[:_SHOWN]!r} instead of {json.dumps(wanted)[:_SHOWN]} for {self.request.body[:_SHOWN]!r}"
        self._right |= {body}
        return ""
