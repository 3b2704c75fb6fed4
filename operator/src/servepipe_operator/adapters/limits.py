"""A token bucket: so many requests per second, and a burst after a pause."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

__all__ = ["RateLimit"]


class RateLimit:
    """Waits so that no more than ``burst`` plus ``per_s`` for each second come through; first come, first served.

    Args:
        per_s: Tokens per second.
        burst: Tokens that can be saved up.
        clock: Monotonic seconds.
        sleep: Replaced by tests.
    """

    def __init__(
        self,
        per_s: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._per_s, self._burst, self._clock, self._sleep = per_s, float(burst), clock, sleep
        self._tokens = self._burst
        self._at = clock()

    async def wait(self) -> None:
        """Take one token; those who come later find less, so the wait of each is known at once."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s) - 1
        self._at = now
        if self._tokens < 0:
            await self._sleep(-self._tokens / self._per_s)
