"""How often nodes are called, how that ends and how long it takes, by node and revision: as the ingress sees it.

It is the same wherever a node runs. Serve too counts the calls of a node with replicas of its own, by application; of
an Inline node it knows nothing.

Ray's metrics cost more than many calls do. So calls are counted here, and told now and then; latencies as what a
histogram is for Prometheus, counters of those that took at most so long, because Ray's own takes one value at a time.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Coroutine, Iterable
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

from ray.util import metrics

from servepipe.errors import StepTimeoutError

__all__ = ["AT_MOST_MS", "CANCELLED", "ERROR", "OK", "TIMEOUT", "Ended", "NodeCounts"]

log = logging.getLogger("servepipe.ingress")

OK, ERROR, TIMEOUT, CANCELLED = "ok", "error", "timeout", "cancelled"

AT_MOST_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000)

TELL_AFTER_S = 1.0


class Ended(NamedTuple):
    """Calls of one revision that have ended.

    Args:
        outcomes: How many ended how.
        within: How many of those that ended with an answer or an error took at most as long as `AT_MOST_MS` says, and
            how many there are in all.
        ms: How long these took together.
    """

    node: str
    revision: str
    outcomes: dict[str, int]
    within: list[int]
    ms: float


class _Revision:
    __slots__ = ("ms", "outcomes", "slots")

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.slots = [0] * (len(AT_MOST_MS) + 1)
        self.ms = 0.0


class NodeCounts:
    """Lives on one event loop."""

    def __init__(self) -> None:
        self._revisions: dict[tuple[str, str], _Revision] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def counted(self, node: str, revision: str, deadline: float | None, call: Coroutine[Any, Any, Any]) -> Any:
        """Await ``call``, and count how it ends.

        Args:
            deadline: Of its request, seconds since the epoch: what is cancelled after it has taken too long.
        """
        begun = time.perf_counter()
        try:
            answer = await call
        except asyncio.CancelledError:
            late = deadline is not None and time.time() >= deadline
            self._of(node, revision).outcomes[TIMEOUT if late else CANCELLED] += 1
            raise
        except GeneratorExit:
            raise  # the loop has ended
        except BaseException as error:
            self._ended(node, revision, TIMEOUT if isinstance(error, StepTimeoutError) else ERROR, begun)
            raise
        self._ended(node, revision, OK, begun)
        return answer

    def take(self) -> list[Ended]:
        """What has ended since the last time."""
        revisions, self._revisions = self._revisions, {}
        return [
            Ended(node, revision, dict(one.outcomes), [*accumulate(one.slots)], one.ms)
            for (node, revision), one in revisions.items()
        ]

    def _ended(self, node: str, revision: str, outcome: str, begun: float) -> None:
        ms = (time.perf_counter() - begun) * 1000
        one = self._of(node, revision)
        one.outcomes[outcome] += 1
        one.slots[bisect_left(AT_MOST_MS, ms)] += 1
        one.ms += ms

    def _of(self, node: str, revision: str) -> _Revision:
        one = self._revisions.get((node, revision))
        if one is None:
            one = self._revisions[node, revision] = _Revision()
            if self._timer is None:
                # In a context of its own: it would keep that of some request.
                loop, context = asyncio.get_running_loop(), contextvars.Context()
                self._timer = loop.call_later(TELL_AFTER_S, self._tell, context=context)
        return one

    def _tell(self) -> None:
        self._timer = None
        try:
            _tell(self.take())
        except Exception:  # of Ray's metrics, for instance; calls go on
            log.exception("telling how calls of nodes have ended")


def _tell(ended: Iterable[Ended]) -> None:
    requests, buckets, total = _metrics()
    for one in ended:
        tags = {"node": one.node, "revision": one.revision}
        for outcome, count in one.outcomes.items():
            requests.inc(count, tags={**tags, "outcome": outcome})
        for at_most, count in zip((*map(str, AT_MOST_MS), "+Inf"), one.within, strict=True):
            if count:
                buckets.inc(count, tags={**tags, "le": at_most})
        if one.ms:
            total.inc(one.ms, tags=tags)


@cache
def _metrics() -> tuple[metrics.Counter, metrics.Counter, metrics.Counter]:
    revision = ("node", "revision")
    return (
        metrics.Counter(
            "servepipe_node_requests",
            description="Calls of nodes by how they ended: ok, error, timeout, or cancelled.",
            tag_keys=(*revision, "outcome"),
        ),
        metrics.Counter(
            "servepipe_node_latency_ms_bucket",
            description="Calls of nodes that ended with an answer or an error after at most so many milliseconds.",
            tag_keys=(*revision, "le"),
        ),
        metrics.Counter(
            "servepipe_node_latency_ms_sum",
            description="How long these took together, in milliseconds.",
            tag_keys=revision,
        ),
    )
