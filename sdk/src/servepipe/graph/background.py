"""One event loop in a thread of its own, for graphs that run in the author's process.

It is shared by all graphs of the process, started when first needed, and works whether or not the caller has a running
loop of its own (a notebook has). It ends with the process, after the nodes that were built on it have been closed.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from servepipe.graph.failures import caught, opened

__all__ = ["BackgroundLoop", "background"]

T = TypeVar("T")

END_WITHIN_S = 5.0


class BackgroundLoop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._at_end: list[Callable[[], Coroutine[Any, Any, None]]] = []

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop; its thread is started by the first call."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                # A daemon: the interpreter waits for other threads before it runs what atexit has.
                self._thread = threading.Thread(target=_serve, args=(self._loop,), name="servepipe-graphs", daemon=True)
                self._thread.start()
            return self._loop

    def is_current(self) -> bool:
        """Whether the code that asks runs on this loop."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``work()`` on the loop and wait for it in this thread, which must not be the loop's own."""
        future = asyncio.run_coroutine_threadsafe(caught(work), self.loop())
        try:
            outcome = future.result()
        except BaseException:
            # KeyboardInterrupt: what runs for a caller that is gone is cancelled. Once it has ended this does nothing.
            future.cancel()
            raise
        return opened(outcome)

    async def run_async(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """As `run`, awaitable from any loop; being cancelled cancels the work."""
        if self.is_current():
            return await work()
        future = asyncio.run_coroutine_threadsafe(caught(work), self.loop())
        return opened(await asyncio.wrap_future(future))

    def at_end(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``close`` on the loop before it ends."""
        self._at_end.append(close)

    def end(self) -> None:
        """Cancel what runs and stop the loop; code that does not end is left alone after `END_WITHIN_S` seconds."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        with contextlib.suppress(TimeoutError):  # on top: sync code that holds the loop itself
            asyncio.run_coroutine_threadsafe(self._wind_up(), loop).result(2 * END_WITHIN_S + 1)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(END_WITHIN_S)

    def forget(self) -> None:
        """A forked child has no such thread."""
        self._lock, self._loop, self._thread = threading.Lock(), None, None

    async def _wind_up(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_WITHIN_S):
                for close in self._at_end:
                    await close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=END_WITHIN_S)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


background = BackgroundLoop()
"""The one that all graphs of this process share."""

atexit.register(background.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=background.forget)
