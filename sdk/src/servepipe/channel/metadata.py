"""The head of a call: which method, for which request, until when, and with which pins.

Method names and pins are the same in most calls. The sender gives each a slot and sends it once; after that only the
number of the slot goes over the wire. The sender owns the table: when it runs out of slots it uses the oldest again and
defines it anew in the very call that needs it, so frames in order are all that both sides need to agree.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Protocol, TypeVar

from servepipe.channel.errors import ProtocolError
from servepipe.channel.frames import Part

__all__ = ["CallContext", "ReceivedHeads", "SentHeads"]

SLOTS = 256
"""Methods, and sets of pins, that one connection remembers at a time. Slot 0 is None, or no pins."""

_FIELDS = struct.Struct("<HHHHId")  # slots of method and pins; lengths of request id, method, pins; deadline

_NONE: Mapping[str, str] = {}

Key = TypeVar("Key")


class CallContext(Protocol):
    """What travels with a call; `servepipe.graph.calls.RequestContext` is one. Pins are not changed after a call."""

    @property
    def request_id(self) -> str: ...
    @property
    def deadline(self) -> float | None:
        """Seconds since the epoch; None: no bound."""
        ...

    @property
    def pins(self) -> Mapping[str, str]: ...


class SentHeads:
    """Makes heads for one connection, to be sent in the order in which they were made."""

    __slots__ = ("_methods", "_next_method", "_next_pins", "_pins", "_same")

    def __init__(self) -> None:
        self._methods: dict[str | None, int] = {None: 0}
        self._pins: dict[frozenset[tuple[str, str]], int] = {frozenset(): 0}
        # The caller's own objects by identity, each kept alive here so that its identity stays its own.
        self._same: dict[int, tuple[int, Mapping[str, str]]] = {}
        self._next_method = 1
        self._next_pins = 1

    def encode(self, method: str | None, context: CallContext) -> bytes:
        """The head of a call of ``method``, which has to be sent: what it defines is taken for known afterwards.

        Raises ValueError for names that are empty or have more than 65,535 bytes; nothing is taken for known then.
        """
        if method == "":
            raise ValueError("a method's name is empty")
        request_id = context.request_id.encode()
        deadline = math.nan if context.deadline is None else context.deadline
        pins = context.pins
        known = self._methods.get(method)
        same = self._same.get(id(pins))
        if known is not None and same is not None:  # nearly always
            return _fields(known, same[0], request_id, 0, 0, deadline) + request_id
        new_method = b"" if known is not None or method is None else method.encode()
        slot, new_pins = self._slot_of(pins)
        method_slot = self._next_method if known is None else known
        head = _fields(method_slot, slot, request_id, len(new_method), len(new_pins), deadline)
        self._remember(method, method_slot, pins, slot, bool(new_pins))
        return b"".join((head, request_id, new_method, new_pins))

    def _slot_of(self, pins: Mapping[str, str]) -> tuple[int, bytes]:
        """The slot of ``pins`` and, where it is new, their definition."""
        known = self._pins.get(frozenset(pins.items()))
        if known is not None:
            return known, b""
        return self._next_pins, json.dumps(dict(pins), separators=(",", ":")).encode()

    def _remember(self, method: str | None, method_slot: int, pins: Mapping[str, str], slot: int, is_new: bool) -> None:
        if method not in self._methods:
            _forget(self._methods, method_slot)
            self._methods[method] = method_slot
            self._next_method = method_slot % (SLOTS - 1) + 1
        if is_new:
            _forget(self._pins, slot)
            self._same = {key: entry for key, entry in self._same.items() if entry[0] != slot}
            self._pins[frozenset(pins.items())] = slot
            self._next_pins = slot % (SLOTS - 1) + 1
        if len(self._same) >= 4 * SLOTS:  # equal pins in ever new objects
            self._same.clear()
        self._same[id(pins)] = (slot, pins)


class ReceivedHeads:
    """Reads the heads of `SentHeads`, in the same order."""

    __slots__ = ("_methods", "_pins")

    def __init__(self) -> None:
        self._methods: list[str | None] = [None] * SLOTS
        self._pins: list[Mapping[str, str] | None] = [_NONE] + [None] * (SLOTS - 1)

    def decode(self, head: Part) -> tuple[str | None, str, float | None, Mapping[str, str]]:
        """Method, request id, deadline and pins. Calls with equal pins share one mapping.

        Raises:
            ProtocolError: This is no head, or one that refers to what was never defined.
        """
        try:
            method_slot, pins_slot, id_size, method_size, pins_size, deadline = _FIELDS.unpack_from(head)
            end = _FIELDS.size + id_size
            request_id = str(head[_FIELDS.size : end], "utf-8")
            if method_size or pins_size:
                self._define(head, end, method_slot, method_size, pins_slot, pins_size)
                end += method_size + pins_size
            method = self._methods[method_slot]
            pins = self._pins[pins_slot]
        except (struct.error, ValueError, IndexError, RecursionError) as error:
            raise ProtocolError(f"a call whose head cannot be read: {type(error).__name__}") from None
        if end != len(head) or pins is None or (method is None and method_slot):
            raise ProtocolError("a call whose head does not say what it has to")
        return method, request_id, None if deadline != deadline else deadline, pins

    def _define(
        self, head: Part, start: int, method_slot: int, method_size: int, pins_slot: int, pins_size: int
    ) -> None:
        if (method_size and not method_slot) or (pins_size and not pins_slot):
            raise ValueError("slot 0 has its meaning")
        middle = start + method_size
        if method_size:
            self._methods[method_slot] = str(head[start:middle], "utf-8")
        if pins_size:
            pins = json.loads(bytes(head[middle : middle + pins_size]))
            if not isinstance(pins, dict) or not all(isinstance(revision, str) for revision in pins.values()):
                raise ValueError("pins are names of revisions by node")
            self._pins[pins_slot] = pins


def _fields(method: int, pins: int, request_id: bytes, method_size: int, pins_size: int, deadline: float) -> bytes:
    try:
        return _FIELDS.pack(method, pins, len(request_id), method_size, pins_size, deadline)
    except struct.error:
        raise ValueError("a method's name or a request id of more than 65,535 bytes") from None


def _forget(table: dict[Key, int], slot: int) -> None:
    for key, value in table.items():
        if value == slot:
            del table[key]
            return
