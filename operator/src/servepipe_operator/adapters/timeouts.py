"""Time-outs of requests."""

from __future__ import annotations

import aiohttp

__all__ = ["CONNECT_TIMEOUT_S", "within"]

#: For a connection to be made. Packets that vanish are noticed by nothing else.
CONNECT_TIMEOUT_S = 5.0


def within(seconds: float) -> aiohttp.ClientTimeout:
    """For a request that may take ``seconds`` all in all, once it is connected.

    aiohttp takes the time-outs of a request in place of its session's, not beside them.
    """
    return aiohttp.ClientTimeout(total=seconds, connect=min(seconds, CONNECT_TIMEOUT_S))
