"""One node's user code in this process: built, called, reconfigured, checked and closed.

The same class serves in the author's process and inside Serve's replicas, so that hooks, threads and errors are the
same in both. Sync methods run in threads of the node's own, never in the loop's shared pool: a method that waits for
another node's answer must not take the thread that the other node needs.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from servepipe.errors import SignatureError
from servepipe.graph.batching.batcher import Batches, Begins
from servepipe.graph.batching.marks import Mark, Override, mark_of, marks_of, overrides
from servepipe.graph.calls import NodeHandle
from servepipe.graph.failures import as_exception, asked_for
from servepipe.graph.fields import did_you_mean
from servepipe.graph.own_loop import OwnLoop
from servepipe.graph.slots import Slots
from servepipe.graph.threads import NoThreadsError, Threads

__all__ = ["NodeInstance", "is_async"]


class NodeInstance:
    """A node's code. Lives on one event loop.

    Args:
        node: Its name, for errors and threads.
        target: The class; or a function, or any object, which is called as it is.
        blocking: False calls sync methods on the event loop; None or True in a thread. True says of async methods and
            hooks as well that they may block: they get an event loop of their own.
        max_ongoing_requests: How many calls run at once; more wait their turn.
        batch_begins: Told of each batch.
    """

    def __init__(
        self,
        node: str,
        target: Callable[..., Any],
        *,
        blocking: bool | None = None,
        max_ongoing_requests: int = 5,
        batch_begins: Begins | None = None,
    ) -> None:
        self._node = node
        self._target = target
        self._on_loop = blocking is False
        self._own_loop = OwnLoop(f"servepipe-{node}.loop") if blocking else None
        self._object: Any = target
        self._methods: dict[str | None, tuple[Callable[..., Any], bool]] = {}
        self._batches: Batches | None = None
        self._batch_begins = batch_begins
        self._limit(max_ongoing_requests)

    async def build(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Call the constructor, then ``setup()`` where the class has one. Anything but a class needs neither."""
        if not inspect.isclass(self._target):
            return
        wishes: list[Override] = []
        token = overrides.set(wishes)
        try:
            self._object = await self._run(self._target, args, kwargs)
            await self._hook("setup")
        finally:
            overrides.reset(token)
        if marks_of(self._target):
            holds = any(_holds_handle(value) for value in (*args, *kwargs.values()))
            self._batches = self._new_batches(holds)
            self._batches.own(self._object, wishes)

    async def call(self, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call ``method`` (None: the function, or the object itself) as soon as there is a slot for it.

        Raises what the user's code raises, and `SignatureError` where there is no such method.
        """
        try:
            function, direct = self._methods[method]
        except KeyError:
            function, direct = self._methods[method] = self._find(method)
        slots = self._slots
        if slots.free:
            slots.free -= 1
        else:
            await slots.acquire()
        if not direct and not self._on_loop:
            result = await self._apart(function, args, kwargs, slots)
        else:
            try:
                result = function(*args, **kwargs)
                if direct or inspect.isawaitable(result):
                    result = await result
            except (Exception, asyncio.CancelledError, GeneratorExit):
                raise
            except BaseException as error:
                # SystemExit would end the event loop, and everything on it, for one bad request.
                raise as_exception(error) from error
            finally:
                slots.release()
        if type(result) in _GENERATORS:
            name = f"{self._node}.{method}" if method else self._node
            raise TypeError(f"{name} returned a generator, which cannot leave its process; return a list")
        return result

    async def reconfigure(self, user_config: Any) -> None:
        """Hand ``user_config`` to the class's ``reconfigure()``.

        Raises:
            SignatureError: There is a configuration but nothing that takes it.
        """
        if not await self._hook("reconfigure", user_config) and user_config is not None:
            raise SignatureError(
                f"node {self._node} has a userConfig, but its class has no reconfigure() method",
                where=f"spec.nodes.{self._node}.userConfig",
                fix="Define reconfigure(self, user_config), or remove userConfig.",
            )

    async def check_health(self) -> None:
        """Raises what the class's ``check_health()`` raises."""
        await self._hook("check_health")

    async def close(self) -> None:
        """Call the class's ``close()`` and let the threads end."""
        try:
            await self._hook("close")
        finally:
            self._threads.shutdown(wait=False)
            if self._batches is not None:
                self._batches.close()
            if self._own_loop is not None:
                self._own_loop.close()

    def limit_calls(self, max_ongoing_requests: int) -> None:
        """Allow this many calls at once from now on; those that run or wait are not disturbed."""
        if max_ongoing_requests != self._max_ongoing_requests:
            self._threads.shutdown(wait=False)
            self._limit(max_ongoing_requests)

    def _limit(self, max_ongoing_requests: int) -> None:
        self._max_ongoing_requests = max_ongoing_requests
        if self._batches is not None:
            self._batches.limit = max_ongoing_requests
        self._slots = Slots(max_ongoing_requests)
        self._threads = Threads(max_ongoing_requests, f"servepipe-{self._node}")

    def _find(self, method: str | None) -> tuple[Callable[..., Any], bool]:
        """The callable, and whether it can be awaited here and as it is (an async method, the fast case)."""
        function: Any = self._object if method is None else getattr(self._object, method, None)
        if not callable(function) or (method or "").startswith("_"):
            public = [name for name in dir(self._object) if not name.startswith("_")]
            raise SignatureError(
                f"node {self._node} has no method {method or '__call__'!r}", fix=did_you_mean(method or "", public)
            )
        mark = mark_of(function)
        if mark is not None:
            return self._batched(mark, getattr(function, "__self__", None)), True
        return function, self._own_loop is None and is_async(function)

    async def _apart(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        slots: Slots | None = None,
    ) -> Any:
        """Call code that may block what it runs on: in a thread, or on the node's own loop where it is async."""
        loop = self._own_loop
        if loop is not None and is_async(function):
            return await loop.call(function, args, kwargs, slots)
        result = await self._threads.call(function, args, kwargs, slots)
        if not inspect.isawaitable(result):
            return result
        return await (result if loop is None else loop.call(_itself, (result,)))

    def _batched(self, mark: Mark, instance: Any) -> Callable[..., Any]:
        if self._batches is None:  # a function, or an object that was not built here
            self._batches = self._new_batches()
        return self._batches.batcher(mark, instance).call

    def _new_batches(self, holds: bool = False) -> Batches:
        return Batches(
            self._node,
            on_loop=self._on_loop,
            holds=holds,
            limit=self._max_ongoing_requests,
            begins=self._batch_begins,
            own_loop=self._own_loop,
        )

    async def _hook(self, name: str, *args: Any) -> bool:
        # Looked up as Python looks up special methods: a __getattr__ that answers to every name makes no hook.
        if not inspect.isclass(self._target) or not callable(getattr(type(self._object), name, None)):
            return False
        await self._run(getattr(self._object, name), args, {})
        return True

    async def _run(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the constructor or a hook where it belongs."""
        if self._on_loop or (self._own_loop is None and is_async(function)):
            try:
                result = function(*args, **kwargs)
                return await result if inspect.isawaitable(result) else result
            except BaseException as error:
                if isinstance(error, Exception) or asked_for(error):
                    raise
                raise as_exception(error) from error
        try:
            return await self._apart(function, args, kwargs)
        except NoThreadsError:  # close() at the end of the process
            result = function(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result


def _holds_handle(value: Any) -> bool:
    """Whether a constructor's argument is, or contains, a handle to a node."""
    if isinstance(value, list | tuple):
        return any(map(_holds_handle, value))
    if isinstance(value, dict):
        return any(map(_holds_handle, value.values()))
    return isinstance(value, NodeHandle)


def _itself(value: Any) -> Any:
    return value


_GENERATORS = (GeneratorType, AsyncGeneratorType)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling ``function`` gives a coroutine."""
    # An object with an async __call__, an AsyncMock among them, is async too.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
