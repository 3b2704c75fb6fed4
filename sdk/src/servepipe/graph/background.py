"""One event loop in a thread of its own, for graphs that run in the author's process.

It is shared by all graphs of the process, started when first needed, and works whether or not the caller has a running
loop of its own (a notebook has). It ends with the process, after the nodes that were built on it have been closed.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["at_end", "background_loop", "run_in_background"]

T = TypeVar("T")

_END_AFTER_S = 5.0

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_at_end: list[Callable[[], Coroutine[Any, Any, None]]] = []


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop; its thread is started by the first call."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            # A daemon: the interpreter waits for other threads before it runs what atexit has.
            threading.Thread(target=_serve, args=(_loop,), name="servepipe-graphs", daemon=True).start()
        return _loop


def run_in_background(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run ``coroutine`` on the loop and wait for it in this thread, which must not be the loop's own."""
    future = asyncio.run_coroutine_threadsafe(coroutine, background_loop())
    try:
        return future.result()
    except BaseException:
        # KeyboardInterrupt: what runs for a caller that is gone is cancelled. It changes nothing once it has ended.
        future.cancel()
        raise


def at_end(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run ``close`` on the loop before the process ends."""
    _at_end.append(close)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _end() -> None:
    global _loop
    loop, _loop = _loop, None
    if loop is None:
        return
    try:
        asyncio.run_coroutine_threadsafe(_wind_up(), loop).result(_END_AFTER_S)
    except TimeoutError:
        pass  # user code that does not end must not keep the process
    finally:
        loop.call_soon_threadsafe(loop.stop)


async def _wind_up() -> None:
    for close in _at_end:
        await close()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _forget() -> None:
    """A forked child has no such thread."""
    global _loop, _lock
    _loop = None
    _lock = threading.Lock()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
