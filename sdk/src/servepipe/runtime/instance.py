"""One node's user code in this process: built, called, reconfigured, checked and closed. Knows nothing of Ray.

Sync methods run in threads of their own, never in the loop's shared pool, which is too small on machines with few
cores and which other code may fill. They see the request's context variables.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from servepipe.errors import SignatureError
from servepipe.graph.failures import as_exception

__all__ = ["NodeInstance"]


class NodeInstance:
    """Args:
    node: Its name, for errors and threads.
    target: The class, or the function.
    blocking: False calls sync methods on the event loop; None or True in a thread.
    max_ongoing_requests: How many sync methods may run at once.
    """

    def __init__(
        self,
        node: str,
        target: Callable[..., Any],
        *,
        blocking: bool | None = None,
        max_ongoing_requests: int = 5,
    ) -> None:
        self._node = node
        self._target = target
        self._on_loop = blocking is False
        self._threads = self._pool(max_ongoing_requests)
        self._limit = max_ongoing_requests
        self._object: Any = target
        self._methods: dict[str | None, Callable[..., Any]] = {}

    async def build(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Call the constructor, then ``setup()`` where the class has one. A function needs neither."""
        if not inspect.isclass(self._target):
            return
        self._object = await self._run(self._target, args, kwargs)
        await self._hook("setup")

    async def call(self, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call ``method`` (None: the function or the object itself). Raises what the user's code raises."""
        function = self._methods.get(method) or self._find(method)
        result = await self._run(function, args, kwargs)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
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

    def limit_threads(self, max_ongoing_requests: int) -> None:
        """Allow this many sync methods at once from now on; those that run are not disturbed."""
        if max_ongoing_requests != self._limit:
            self._threads.shutdown(wait=False)
            self._threads = self._pool(max_ongoing_requests)
            self._limit = max_ongoing_requests

    def _find(self, method: str | None) -> Callable[..., Any]:
        function: Any = self._object if method is None else getattr(self._object, method, None)
        if not callable(function) or (method or "").startswith("_"):
            raise SignatureError(f"node {self._node} has no method {method or '__call__'!r}")
        self._methods[method] = function
        return cast("Callable[..., Any]", function)

    async def _hook(self, name: str, *args: Any) -> bool:
        function = getattr(self._object, name, None) if inspect.isclass(self._target) else None
        if function is None:
            return False
        await self._run(function, args, {})
        return True

    async def _run(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            if self._on_loop or inspect.iscoroutinefunction(function):
                result = function(*args, **kwargs)
            else:
                context = contextvars.copy_context()
                loop = asyncio.get_running_loop()
                result = await loop.run_in_executor(self._threads, context.run, _in_thread, function, args, kwargs)
            return await result if inspect.isawaitable(result) else result
        except (SystemExit, KeyboardInterrupt) as error:
            # These would end the event loop, and with it the replica, for one bad request.
            raise as_exception(error) from error

    def _pool(self, size: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(size, thread_name_prefix=f"servepipe-{self._node}")


def _in_thread(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        # A future refuses to carry it: whoever waits would wait for ever.
        raise RuntimeError(f"{getattr(function, '__qualname__', function)} raised StopIteration") from error
    except BaseException as error:
        raised = as_exception(error)
        if raised is error:
            raise
        raise raised from error
