"""How many calls run at once: a semaphore whose free slot costs a comparison, not a coroutine."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

__all__ = ["Slots"]


class Slots:
    """Slots for one event loop. Whoever waits gets the next one in turn.

    Args:
        free: How many there are.
    """

    __slots__ = ("_waiting", "free")

    def __init__(self, free: int) -> None:
        self.free = free
        """How many nobody has. One that somebody waits for is never free: `release` hands it on."""
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    async def acquire(self) -> None:
        """Wait for a slot; the fast way to take one is ``if slots.free: slots.free -= 1``."""
        if self.free:
            self.free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        try:
            await turn
        except BaseException:
            if self._waiting.pop(turn, self) is self and not turn.cancelled():
                self.release()  # it got the slot in the same turn of the loop
            raise

    def release(self) -> None:
        """Give a slot back."""
        while self._waiting:
            turn, _ = self._waiting.popitem(last=False)
            if not turn.done():  # else its task has been cancelled, and does not know yet
                turn.set_result(None)
                return
        self.free += 1
