"""A warning about Inline nodes that compute much: Python runs one thread at a time, and all of the ingress waits."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping

__all__ = ["InlineLoad", "busy_nodes"]

log = logging.getLogger("servepipe.ingress")

LOOK_EVERY_S = 10.0
_HAS_CLOCKS = hasattr(time, "pthread_getcpuclockid")

MOST = 0.2
"""Which share of a processor the threads of a node may use, on average between two looks."""


class InlineLoad:
    """Looks at the threads of Inline nodes now and then, until `close`, and warns once of each node.

    Linux only; elsewhere it does nothing. Async methods run on the event loop itself: `LoopWatch` sees those.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._before = _used_by_threads()
        self._looked = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        if _HAS_CLOCKS:
            self._look_later()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def look(self) -> None:
        """Compare with the look before."""
        now, used = time.monotonic(), _used_by_threads()
        for node, share in busy_nodes(self._before, used, now - self._looked).items():
            if node not in self._told:
                self._told.add(node)
                log.warning(
                    "inline node %s uses %d %% of a processor in the ingress, and every request waits for it: give it "
                    "processes of its own, with placement: Dedicated",
                    *(node, round(100 * share)),
                )
        self._before, self._looked = used, now

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look_and_again)

    def _look_and_again(self) -> None:
        self.look()
        self._look_later()


def busy_nodes(
    before: Mapping[tuple[int, str], float], now: Mapping[tuple[int, str], float], seconds: float
) -> dict[str, float]:
    """Nodes whose threads used more than `MOST` of a processor, and how much.

    Args:
        before, now: Seconds of processor time by id and name of a thread.
        seconds: Between the two.
    """
    used: defaultdict[str, float] = defaultdict(float)
    for thread, time_now in now.items():
        used[_node_of(thread[1])] += time_now - before.get(thread, 0.0)
    return {node: time_used / seconds for node, time_used in used.items() if node and time_used > MOST * seconds}


def _node_of(thread: str) -> str:
    """As `NodeInstance` and `Batcher` name threads: ``servepipe-node_0``, ``servepipe-node.method_0``."""
    prefix, _, rest = thread.partition("-")
    return rest.rpartition("_")[0].partition(".")[0] if prefix == "servepipe" else ""


def _used_by_threads() -> dict[tuple[int, str], float]:
    used: dict[tuple[int, str], float] = {}
    for thread in threading.enumerate() if _HAS_CLOCKS else ():
        if thread.ident is None or not _node_of(thread.name):
            continue
        try:
            used[thread.ident, thread.name] = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        except OSError:  # it has just ended
            continue
    return used
