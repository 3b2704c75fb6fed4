"""A handle to a pipeline in a cluster: calls go over HTTP, as those of any other caller."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Generator, Mapping, Sequence
from typing import Any

from servepipe.errors import BadRequestError, RequestError
from servepipe_operator.cluster.call import Route

__all__ = ["Handle", "Response"]


class Response:
    """An answer that is on its way: ``.result()``, or ``await`` it."""

    def __init__(self, work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        self._future = asyncio.run_coroutine_threadsafe(work, loop)

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the answer.

        Raises:
            RequestError: The pipeline answered with an error; has its HTTP status and code.
            ClusterError: Nothing answers.
            TimeoutError: It took longer than ``timeout_s`` seconds; the request goes on.
        """
        return self._future.result(timeout_s)

    def cancel(self) -> None:
        """End the request."""
        self._future.cancel()

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self._future).__await__()


class Handle:
    """Calls a pipeline: ``handle.remote(1, 2, 3).result()``.

    With a preprocessor the one positional argument is the request's body, since that is what the preprocessor reads.
    """

    def __init__(self, route: Route, loop: asyncio.AbstractEventLoop) -> None:
        self._route, self._loop = route, loop

    def remote(self, *args: Any, **kwargs: Any) -> Response:
        """Run the graph on JSON values: positional arguments, or keyword arguments.

        Raises:
            BadRequestError: Both kinds, or values that JSON cannot carry.
        """
        return Response(self._call(body_for(args, kwargs, self._route.preprocessed)), self._loop)

    async def _call(self, body: bytes) -> Any:
        return answer_of(*await self._route.post(body))


def body_for(args: Sequence[Any], kwargs: Mapping[str, Any], preprocessed: bool = False) -> bytes:
    """The request's body for these arguments."""
    if args and kwargs:
        raise BadRequestError("over HTTP a call has positional or keyword arguments, not both")
    if preprocessed and (kwargs or len(args) != 1):
        raise BadRequestError("the pipeline has a preprocessor: give one argument, which is the request's body")
    value = args[0] if preprocessed else (dict(kwargs) if kwargs else list(args))
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise BadRequestError(f"the arguments are no JSON values: {error}") from error


def answer_of(status: int, kind: str, body: bytes) -> Any:
    """A JSON value, or text or bytes as they came. Raises `RequestError` for an error."""
    if 200 <= status < 300:
        if kind == "application/json":
            return json.loads(body)
        return body.decode(errors="replace") if kind.startswith("text/") else body
    try:
        error = json.loads(body)["error"]
        message, code = str(error["message"]), str(error.get("code", ""))
        step, node = str(error.get("step") or ""), str(error.get("node") or "")
    except (ValueError, KeyError, TypeError):
        message, code, step, node = body.decode(errors="replace").strip()[:500] or f"HTTP {status}", "", "", ""
    raise RequestError(message, status=status, code=code, step=step, node=node)
