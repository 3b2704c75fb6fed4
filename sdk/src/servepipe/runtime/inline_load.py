"""A warning about Inline nodes that compute much: Python runs one thread at a time, and all of the ingress may wait."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Container, Mapping

__all__ = ["InlineLoad", "busy_nodes", "node_of"]

log = logging.getLogger("servepipe.ingress")

LOOK_EVERY_S = 10.0
MOST = 0.2
"""Which share of a processor the threads of a node may use, on average between two looks."""


class InlineLoad:
    """Looks at the threads of Inline nodes now and then, until `close`, and warns once of each node.

    Where threads have no clocks it does nothing (they have on Linux). Async methods run on the ingress's event loop,
    where `LoopWatch` looks, unless their node has a loop of its own, which is a thread as others are.

    Args:
        nodes: The names of the nodes that are built and may be called.
    """

    def __init__(self, nodes: Callable[[], Container[str]]) -> None:
        self._nodes = nodes
        self._told: set[str] = set()
        self._before: dict[str, float] = {}
        self._looked = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        if hasattr(time, "pthread_getcpuclockid"):
            self._look_later()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def look(self) -> None:
        """Compare with the look before."""
        now, used = time.monotonic(), _used(self._nodes())
        for node, share in busy_nodes(self._before, used, now - self._looked).items():
            if node not in self._told:
                self._told.add(node)
                log.warning(
                    "inline node %s uses %d %% of a processor in the ingress, and every request may wait for it: give "
                    "it processes of its own, with placement: Dedicated",
                    *(node, round(100 * share)),
                )
        self._before, self._looked = used, now

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look_and_again)

    def _look_and_again(self) -> None:
        self.look()
        self._look_later()


def busy_nodes(before: Mapping[str, float], now: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Nodes that used more than `MOST` of a processor, and how much of it.

    Args:
        before, now: Seconds of processor time by node. What one used that was not there before went into building it.
        seconds: Between the two.
    """
    shares = {node: (used - before[node]) / seconds for node, used in now.items() if node in before}
    return {node: share for node, share in shares.items() if share > MOST}


def node_of(thread: str) -> str:
    """The node that a thread of this name works for, as `NodeInstance` and `Batcher` name them:

    ``servepipe-NODE_0``, ``servepipe-NODE.METHOD_0``, ``servepipe-NODE.loop``; empty for others.
    """
    prefix, _, rest = thread.partition("-")
    if prefix != "servepipe":
        return ""
    node, is_special, _ = rest.partition(".")
    return node if is_special else rest.rpartition("_")[0]


def _used(nodes: Container[str]) -> dict[str, float]:
    """Processor time by node, of the threads that it has now, seconds."""
    used: defaultdict[str, float] = defaultdict(float)
    for thread in threading.enumerate():
        node = node_of(thread.name)
        if node not in nodes or thread.ident is None:
            continue
        try:
            used[node] += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        except OSError:  # it has just ended
            continue
    return dict(used)
