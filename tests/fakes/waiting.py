"""Waiting for what knows no event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

DEADLINE_S = 30.0


async def until(what: str, check: Callable[[], object]) -> None:
    """Until ``check()`` is true, which is looked at again and again; a failure that says what was waited for."""
    end = time.monotonic() + DEADLINE_S
    while not check():
        assert time.monotonic() < end, f"waited in vain for {what}"
        await asyncio.sleep(0.001)
