"""A work queue of keys: each key waits at most once and is never worked on twice at the same time.

The state is in three sets. A key that is added while it is being worked on is marked dirty and queued again as soon as
the work is done, so that no wake-up is lost. All of it runs in one event loop; between two awaits nothing interleaves.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Backoff", "WorkQueue", "has", "run_workers"]

Key = TypeVar("Key", bound=Hashable)


class Backoff(Generic[Key]):
    """How long a failing key waits: doubling from ``first_s`` to ``most_s``, each time less by up to ``jitter``.

    Args:
        first_s: Seconds after the first failure.
        most_s: Upper limit in seconds.
        jitter: Share of the wait (0 to 1) that chance may take off, so that keys that failed together part.
        chance: A number in [0, 1) whenever called.
    """

    def __init__(
        self,
        first_s: float = 0.5,
        most_s: float = 60.0,
        jitter: float = 0.3,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._first_s, self._most_s, self._jitter, self._chance = first_s, most_s, jitter, chance
        self._failures: dict[Key, int] = {}

    def next_s(self, key: Key) -> float:
        """Seconds to wait after one more failure of ``key``."""
        failures = self._failures.get(key, 0)
        self._failures[key] = min(failures + 1, 60)  # enough for any limit, and no overflow
        return min(self._first_s * 2.0**failures, self._most_s) * (1 - self._jitter * self._chance())

    def forget(self, key: Key) -> None:
        """``key`` succeeded or is gone; its next failure is a first one."""
        self._failures.pop(key, None)


class WorkQueue(Generic[Key]):
    """Keys that are due, in the order in which they became due.

    Args:
        clock: Monotonic seconds. Timers are kept by this clock and looked at by `get`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ready: deque[Key] = deque()
        self._dirty: dict[Key, float] = {}  # wanted since; what waits in _ready, or for its own work to end
        self._active: set[Key] = set()
        self._due: dict[Key, float] = {}  # the earliest timer of each key; entries of _timers that differ are void
        self._timers: list[tuple[float, int, Key]] = []
        self._order = itertools.count()
        self._waiters: deque[asyncio.Future[None]] = deque()  # each key that is due wakes one, not all of them
        self._alarm: asyncio.TimerHandle | None = None  # for the earliest timer, while anyone waits
        self._closed = False

    def add(self, key: Key) -> None:
        """Work on ``key`` soon; again afterwards if it is being worked on now."""
        if self._closed:
            return
        self._due.pop(key, None)
        if key in self._dirty:
            return
        self._dirty[key] = self._clock()
        if key not in self._active:
            self._ready.append(key)
            self._wake()

    def add_after(self, key: Key, seconds: float) -> None:
        """Work on ``key`` in ``seconds`` at the latest; an earlier timer or a waiting `add` wins."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock() + seconds
        if self._closed or key in self._dirty or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._timers, (due, next(self._order), key))
        if self._waiters:
            self._set_alarm()

    def take(self) -> Key | None:
        """A key that is due, which is active until `done`; None when there is none."""
        self._fire()
        if self._closed or not self._ready:
            return None
        key = self._ready.popleft()
        del self._dirty[key]
        self._active.add(key)
        return key

    async def get(self) -> Key | None:
        """Wait for a key; None once the queue is closed."""
        while not self._closed:
            key = self.take()
            if key is not None:
                return key
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            self._set_alarm()
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                else:
                    self._wake()  # the key is for another one now
                raise
        return None

    def done(self, key: Key) -> None:
        """The work on ``key`` ended, however; what was added meanwhile is queued."""
        self._active.discard(key)
        if key in self._dirty and not self._closed:
            self._ready.append(key)
            self._wake()

    def close(self) -> None:
        """Give out nothing more and let every `get` return None; what is active goes on."""
        self._closed = True
        while self._waiters:
            self._wake()

    @property
    def depth(self) -> int:
        """How many keys are due and not being worked on."""
        return len(self._ready)

    @property
    def age_s(self) -> float:
        """For how many seconds the oldest due key has waited; 0 when none waits."""
        now = self._clock()
        return max((now - self._dirty[key] for key in self._ready), default=0.0)

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.cancelled():  # else its task has not run since
                waiter.set_result(None)
                return

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._timers:
            wait = max(self._timers[0][0] - self._clock(), 0.001)
            self._alarm = asyncio.get_running_loop().call_later(wait, self._ring)

    def _ring(self) -> None:
        self._fire()
        if self._waiters:
            self._set_alarm()

    def _fire(self) -> None:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            due, _, key = heapq.heappop(self._timers)
            if self._due.get(key) == due:
                self.add(key)


async def run_workers(
    queue: WorkQueue[Key],
    work: Callable[[Key], Awaitable[float | None]],
    workers: int,
    backoff: Backoff[Key],
    on_error: Callable[[Key, Exception, float], None],
    fatal: tuple[type[Exception], ...] = (),
    *,
    slow_s: float = 2.0,
    most: int = 0,
    limit_s: float | None = None,
) -> None:
    """Work on keys until the queue is closed.

    Args:
        work: Reconciles one key; answers after how many seconds to look again, or None for only when added.
        workers: How many keys at once.
        backoff: When to try again after ``work`` raised.
        on_error: Told the key, what was raised, and the seconds until the next attempt.
        fatal: What ends all workers at once instead, as an `ExceptionGroup`; a lost Lease.
        slow_s: Work that takes longer no longer counts as one of ``workers``: another key gets its place, so that
            many that wait for something of their own do not hold up the others. A key that took longer last time is
            taken to do so again and does not count from the begin.
        most: How many keys at once with those; 0 means sixteen times ``workers``.
        limit_s: Work that takes longer is cancelled and counts as failed, with a `TimeoutError`.
    """
    loop = asyncio.get_running_loop()
    most = most or 16 * workers
    running = 0
    slow: set[Key] = set()

    async def look(key: Key) -> float | None:
        try:
            async with asyncio.timeout(limit_s):
                again_s = await work(key)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            failure: Exception = RuntimeError("something that the work waited for was cancelled")
        except Exception as error:
            if has(error, fatal):
                raise
            failure = error
        else:
            backoff.forget(key)
            return again_s
        again_s = backoff.next_s(key)
        on_error(key, failure, again_s)
        return again_s

    async def worker() -> None:
        nonlocal running, most
        try:
            while (key := await queue.get()) is not None:
                began = loop.time()
                place = _Place(loop, 0.0 if key in slow else slow_s, slow_s, lambda: running < most and start())
                try:
                    again_s = await look(key)
                finally:
                    place.end()
                    queue.done(key)
                (slow.add if again_s is not None and loop.time() - began > slow_s else slow.discard)(key)
                if again_s is not None:
                    queue.add_after(key, again_s)
                if place.given:
                    return  # who got the place keeps it
        except BaseException:
            most = 0  # all end; nobody gets a place any more
            raise
        finally:
            running -= 1

    def start() -> bool:
        nonlocal running
        running += 1
        group.create_task(worker())
        return True

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            start()


class _Place:
    """A worker's place among the others, which is given to another one after a while, as soon as there is room.

    Args:
        again_s: Between looks for room.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, after_s: float, again_s: float, give: Callable[[], bool]
    ) -> None:
        self._loop, self._again_s, self._give = loop, again_s, give
        self.given = False
        self._timer = loop.call_later(after_s, self._due)

    def _due(self) -> None:
        self.given = self._give()
        if not self.given:
            self._timer = self._loop.call_later(self._again_s, self._due)

    def end(self) -> None:
        """The work ended."""
        self._timer.cancel()


def has(error: BaseException, kinds: tuple[type[Exception], ...]) -> bool:
    """Whether ``error`` is one of ``kinds``, or a group with one of them."""
    if isinstance(error, BaseExceptionGroup):
        return any(has(one, kinds) for one in error.exceptions)
    return isinstance(error, kinds)
