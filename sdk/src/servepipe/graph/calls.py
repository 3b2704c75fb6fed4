"""How a node is called: the request that a call belongs to, the caller that carries it out, and handles for user code.

The same classes serve in the author's process and inside Serve's replicas; only the `Caller` behind them differs. User
code sees `NodeHandle` and `NodeResponse`, whose surface is that of Ray Serve's handles: `await handle.method.remote(x)`
in an async method, `handle.method.remote(x).result()` in a sync one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import threading
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from servepipe.errors import RequestError, StepTimeoutError
from servepipe.graph.failures import caught, opened
from servepipe.graph.ir import Expr

__all__ = [
    "Caller",
    "MethodHandle",
    "NodeDefinition",
    "NodeHandle",
    "NodeResponse",
    "RequestContext",
    "cancel_nested_calls",
    "current_request",
    "new_request_id",
]


# Of its own, so that no seed of the user's makes two replicas count alike.
_ids = random.Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.seed)


def new_request_id() -> str:
    """32 random hexadecimal digits."""
    return f"{_ids.getrandbits(128):032x}"


@dataclass(slots=True)
class RequestContext:
    """What travels with a request, also into nodes that call other nodes. Nobody changes it.

    (It is not frozen: made for every request and pickled for every call, that would cost as much as a step.)

    Args:
        request_id: Names the request in logs.
        deadline: Seconds since the epoch after which nobody waits for the answer; None: no bound.
        pins: For each node the revision that answers this request.
    """

    request_id: str = field(default_factory=new_request_id)
    deadline: float | None = None
    pins: Mapping[str, str] = field(default_factory=dict)


current_request: ContextVar[RequestContext | None] = ContextVar("servepipe_current_request", default=None)
"""The request that the running code answers; None outside a request, for instance in a node's constructor."""


class Caller(Protocol):
    """Carries calls to nodes out: in this process, or over Serve."""

    async def call(
        self, node: str, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], context: RequestContext
    ) -> Any:
        """Call ``method`` of ``node`` (None: the function, or the object itself) and return what it returns.

        Raises what the user's code raised, `NodeError` where that cannot be rebuilt, `NotReadyError` where the node
        cannot answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class NodeDefinition:
    """A node of a compiled graph with the imported code behind it.

    Args:
        name: Unique in the graph.
        target: The class (built once) or the function.
        args: Positional arguments of the constructor; empty for a function.
        kwargs: Its keyword arguments as pairs.
        max_ongoing_requests: How many calls run at once; more wait.
        blocking: False calls sync methods on the event loop; None or True in a thread.
        user_config: What ``reconfigure()`` of the class receives; None: it is not called.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Expr, ...] = ()
    kwargs: tuple[tuple[str, Expr], ...] = ()
    max_ongoing_requests: int = 5
    blocking: bool | None = None
    user_config: Mapping[str, Any] | None = None


class NodeHandle:
    """Calls a node from inside another one: ``await handle.forward.remote(x)``; a function node: ``handle.remote(x)``.

    Args:
        node: Name of the node.
        caller: Carries the calls out.
        loop: The event loop on which ``caller`` lives.
    """

    __slots__ = ("_caller", "_loop", "_node")

    def __init__(self, node: str, caller: Caller, loop: asyncio.AbstractEventLoop) -> None:
        self._node = node
        self._caller = caller
        self._loop = loop

    def remote(self, *args: Any, **kwargs: Any) -> NodeResponse:
        """Start a call of the function, or of the object's ``__call__``."""
        return self._start(None, args, kwargs)

    def __getattr__(self, method: str) -> MethodHandle:
        if method.startswith("_"):
            # Copying, pickling and printing probe for such names, and they are no part of a node's surface.
            raise AttributeError(f"a handle to node {self._node!r} has no {method!r}: it calls public methods only")
        return MethodHandle(self, method)

    def __repr__(self) -> str:
        return f"NodeHandle({self._node!r})"

    def __reduce__(self) -> str:
        raise TypeError(f"the handle to node {self._node!r} cannot be sent elsewhere: bind the node where it is needed")

    def _start(self, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> NodeResponse:
        context = current_request.get() or RequestContext()
        call = partial(self._caller.call, self._node, method, args, kwargs, context)
        return NodeResponse(call, self._loop, self._node, method)


class MethodHandle:
    """One method of a node, as `NodeHandle` gives it."""

    __slots__ = ("_handle", "_method")

    def __init__(self, handle: NodeHandle, method: str) -> None:
        self._handle = handle
        self._method = method

    def remote(self, *args: Any, **kwargs: Any) -> NodeResponse:
        """Start a call of the method."""
        return self._handle._start(self._method, args, kwargs)

    def __repr__(self) -> str:
        return f"{self._handle!r}.{self._method}"


_under_way: set[asyncio.Task[Any]] = set()
"""Event loops keep only weak references to tasks; a response that nobody holds must run to its end all the same."""


class NodeResponse:
    """A call under way: awaitable in async code, `result` in sync methods. It starts at once."""

    __slots__ = ("_future", "_loop", "_method", "_node", "_task")

    def __init__(
        self,
        call: Callable[[], Coroutine[Any, Any, Any]],
        loop: asyncio.AbstractEventLoop,
        node: str,
        method: str | None,
    ) -> None:
        self._loop = loop
        self._node = node
        self._method = method
        self._task: asyncio.Task[Any] | None = None
        self._future: concurrent.futures.Future[Any] | None = None  # its result is for `opened`
        if _running_loop() is loop:
            self._task = loop.create_task(call())
            _under_way.add(self._task)
            self._task.add_done_callback(_under_way.discard)
        else:
            work = caught(call)
            try:
                self._future = asyncio.run_coroutine_threadsafe(work, loop)
            except RuntimeError:
                work.close()
                raise RequestError(
                    f"{self!r} was called after its pipeline had been shut down", node=node, status=503
                ) from None
        siblings = _nested.get()
        if siblings is not None:
            siblings.add(self)

    def __await__(self) -> Generator[Any, None, Any]:
        if self._task is not None and _running_loop() is self._loop:
            return self._task.__await__()
        return self._from_another_loop().__await__()

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the answer in a thread, as sync methods do.

        Args:
            timeout_s: Seconds to wait; None: as long as it takes. The call itself goes on after that.

        Raises:
            RequestError: Called on the event loop that has to carry the call out, which would wait for itself.
            StepTimeoutError: No answer within ``timeout_s``.
        """
        if _running_loop() is self._loop:
            raise RequestError(
                f"{self!r}.result() would wait on the event loop for a call that this very loop carries out",
                fix="write `await` in an async method, or leave out blocking=False so that the method runs in a thread",
                node=self._node,
            )
        future = self._across_threads()
        try:
            outcome = future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            raise StepTimeoutError(f"{self!r} gave no answer within {timeout_s:g} s", node=self._node) from None
        return opened(outcome)

    def cancel(self) -> None:
        """Cancel the call; whoever waits for it gets ``CancelledError``. Code that runs in a thread runs to its end."""
        if self._future is not None:
            self._future.cancel()
        elif _running_loop() is self._loop:
            self._require_task().cancel()
        else:
            self._loop.call_soon_threadsafe(self._require_task().cancel)

    def __repr__(self) -> str:
        return f"{self._node}.{self._method}" if self._method else self._node

    def _require_task(self) -> asyncio.Task[Any]:
        assert self._task is not None
        return self._task

    def _across_threads(self) -> concurrent.futures.Future[Any]:
        """The call as a future that any thread may wait for."""
        if self._future is None:
            self._future = asyncio.run_coroutine_threadsafe(caught(self._require_task), self._loop)
        return self._future

    async def _from_another_loop(self) -> Any:
        return opened(await asyncio.wrap_future(self._across_threads()))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _NestedCalls:
    """Calls started on behalf of one other call, from its event loop and from threads."""

    __slots__ = ("_cancelled", "_lock", "_responses")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._responses: list[NodeResponse] = []
        self._cancelled = False

    def add(self, response: NodeResponse) -> None:
        """Remember a call that has just started; one that a thread starts after the end of its request ends at once."""
        with self._lock:
            if not self._cancelled:
                self._responses.append(response)
                return
        response.cancel()

    def cancel(self) -> None:
        """Cancel all of them, and whatever is still to be added."""
        with self._lock:
            self._cancelled = True
        for response in self._responses:
            response.cancel()


_nested: ContextVar[_NestedCalls | None] = ContextVar("servepipe_nested_calls", default=None)


class cancel_nested_calls:  # noqa: N801 - written as a function is, `with cancel_nested_calls():`
    """Calls that are started through handles inside this block are cancelled when the block itself is cancelled.

    A method that has started calls without awaiting them yet, or waits for one in a thread that nobody can interrupt,
    would otherwise leave them running for a request that is gone.
    """

    __slots__ = ("_nested", "_token")

    def __enter__(self) -> None:
        self._nested = _NestedCalls()
        self._token = _nested.set(self._nested)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _nested.reset(self._token)
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            self._nested.cancel()
