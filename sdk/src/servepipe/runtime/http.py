"""What a pipeline means over HTTP, as plain ASGI.

The ingress on Ray and `servepipe.testing` serve the same `HttpApp`, so that a request means the same in a test and in
production. Nothing here imports Ray, and starlette only where a pipeline uses it: a request costs little more than
reading and writing JSON.

    POST /        body: a JSON array (positional arguments), an object (keyword arguments where the graph reads
                  keywords, else the single argument), or any other JSON value (the single argument). With a
                  preprocessor any body, and what the preprocessor returns is the single argument.
    GET  /-/...   the endpoints that the owner of the app adds.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from servepipe.errors import BadRequestError, RequestError, StepTimeoutError
from servepipe.graph.failures import as_exception, asked_for, opened
from servepipe.graph.inputs import describe_arguments
from servepipe.graph.instance import is_async
from servepipe.graph.limit import Limit
from servepipe.graph.threads import in_thread
from servepipe.runtime.answers import JSON, AnswerNotSupportedError, encode_answer, encode_json
from servepipe.runtime.departure import Departure
from servepipe.runtime.http_request import (
    UNWATCHED,
    WATCHES,
    Message,
    Receive,
    Scope,
    Send,
    arguments,
    known_headers,
    read_body,
    replay,
    route_path,
    too_large,
)
from servepipe.runtime.interface import Interface
from servepipe.runtime.problems import HookError, problem_of

__all__ = ["Endpoint", "Hook", "HttpApp", "Run"]

Endpoint: TypeAlias = Callable[[], Awaitable[tuple[int, Any]]]

REQUEST_ID = "x-request-id"
GRACE_S = 0.1

log = logging.getLogger("servepipe.ingress")

# Not the event loop's own threads, which are few: slow hooks must not hold up what else the ingress does in threads,
# such as finding out whether it is ready.
_HOOK_THREADS = ThreadPoolExecutor(32, thread_name_prefix="servepipe-hook")


class Run(Protocol):
    """Runs the graph once. ``deadline`` is in seconds since the epoch, None for no deadline."""

    async def __call__(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, request_id: str, deadline: float | None
    ) -> Any: ...


@dataclass(frozen=True, slots=True)
class Hook:
    """A preprocessor or postprocessor: where it comes from (``"module:function"``, for errors) and the function."""

    import_path: str
    function: Callable[[Any], Any]
    _is_async: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_is_async", is_async(self.function))

    async def __call__(self, value: Any) -> Any:
        """Sync functions run in a thread, so that they cannot hold up other requests.

        Raises what the function raises, as an exception that ends the request and nothing else.
        """
        function = self.function
        try:
            if self._is_async:
                return await function(value)
            context = contextvars.copy_context()
            thread = _HOOK_THREADS.submit(context.run, in_thread, function, (value,), {})
            result = opened(await asyncio.wrap_future(thread))
            return await result if inspect.isawaitable(result) else result
        except BaseException as error:
            if isinstance(error, Exception) or asked_for(error):
                raise
            # SystemExit would end the event loop, a CancelledError that nobody asked for the request without answer.
            raise as_exception(error) from error


class HttpApp:
    """An ASGI app for one graph.

    Args:
        run: Runs the graph.
        interface: What the graph reads and which step answers.
        preprocessor: Turns the request into the single argument; None for JSON bodies.
        postprocessor: Turns the output into the answer; None to answer the output itself.
        endpoints: Further paths that answer GET, by path (``"/-/ready"``): status and a JSON value.
        max_body_bytes: A larger body is answered with 413.
        timeout_s: A request that takes longer, in seconds, is answered with 504. None: no limit.
        sends_request_id: Answer with the header ``x-request-id``; False where the server in front of the app does.
    """

    def __init__(
        self,
        run: Run,
        interface: Interface,
        *,
        preprocessor: Hook | None = None,
        postprocessor: Hook | None = None,
        endpoints: Mapping[str, Endpoint] | None = None,
        max_body_bytes: int = 104_857_600,
        timeout_s: float | None = 60.0,
        sends_request_id: bool = True,
    ) -> None:
        self._run = run
        self._interface = interface
        self._preprocessor = preprocessor
        self._postprocessor = postprocessor
        self._endpoints = endpoints or {}
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._sends_request_id = sends_request_id
        self._methods = ("POST",) if preprocessor is None else ("GET", "POST", "PUT")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await _lifespan(receive, send)
            elif scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        request_id, too_long = known_headers(scope["headers"], self._max_body_bytes)
        limit = None
        try:
            path = route_path(scope) if scope.get("root_path") else scope["path"]
            if path != "/" and path:
                with _watched(scope, receive, send):
                    answer: Any = await self._elsewhere(path, scope["method"])
            elif scope["method"] not in self._methods:
                raise _method_not_allowed(scope["method"], self._methods)
            elif too_long:
                raise too_large(self._max_body_bytes)
            elif self._timeout_s is None:
                answer = await self._answer(scope, receive, send, request_id, None)
            else:
                # The graph keeps the deadline by itself, and knows which step is late; it gets the chance to say so.
                limit = Limit(self._timeout_s + GRACE_S)
                deadline = time.time() + self._timeout_s
                answer = await limit.keep(self._answer(scope, receive, send, request_id, deadline))
        except Exception as error:
            # Whatever the graph makes of being cancelled, past the limit the answer is that it took too long.
            told = self._timeout(error) if limit is not None and limit.expired else error
            await self._send_error(told, scope, request_id, send)
        else:
            await self._send_answer(answer, scope, request_id, receive, send)

    def _timeout(self, error: Exception) -> StepTimeoutError:
        told = StepTimeoutError(
            f"the request took longer than {self._timeout_s:g} s", fix="See spec.ingress.requestTimeoutSeconds."
        )
        told.__cause__ = error
        return told

    async def _elsewhere(self, path: str, method: str) -> _Status:
        endpoint = self._endpoints.get(path)
        if endpoint is None:
            raise BadRequestError(
                f"nothing is served at {path}", status=404, code="NotFound", fix="Send requests to the route itself."
            )
        if method not in ("GET", "HEAD"):
            raise _method_not_allowed(method, ("GET", "HEAD"))
        return _Status(*await endpoint())

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str, deadline: float | None) -> Any:
        body = await read_body(receive, self._max_body_bytes)
        with _watched(scope, receive, send):
            if self._preprocessor is None:
                args, kwargs = arguments(body, self._interface)
                output = await self._run(args, kwargs, request_id=request_id, deadline=deadline)
            else:
                value = await self._preprocess(self._preprocessor, scope, body, receive)
                output = await self._run_preprocessed((value,), {}, request_id, deadline)
            return output if self._postprocessor is None else await self._postprocess(output)

    async def _preprocess(self, preprocessor: Hook, scope: Scope, body: bytes, receive: Receive) -> Any:
        from starlette.requests import Request

        try:
            return await preprocessor(Request(_as_sent(scope), replay(body, receive)))
        except RequestError:
            raise
        except Exception as error:
            raise HookError("preprocessor", preprocessor.import_path, error) from error

    async def _run_preprocessed(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], request_id: str, deadline: float | None
    ) -> Any:
        assert self._preprocessor is not None
        try:
            return await self._run(args, kwargs, request_id=request_id, deadline=deadline)
        except BadRequestError as error:
            missing = self._interface.missing(args, kwargs)
            if not missing or error.status != 422:
                raise
            raise BadRequestError(
                f"the graph reads {', '.join(missing)}, but the preprocessor {self._preprocessor.import_path} returned "
                f"{describe_arguments(args, kwargs)}",
                fix="Let it return what dag_input is indexed with.",
                step=error.step,
            ) from error

    async def _postprocess(self, output: Any) -> Any:
        assert self._postprocessor is not None
        try:
            return await self._postprocessor(output)
        except RequestError:
            raise
        except Exception as error:
            raise HookError("postprocessor", self._postprocessor.import_path, error) from error

    async def _send_answer(self, answer: Any, scope: Scope, request_id: str, receive: Receive, send: Send) -> None:
        status = 200
        if isinstance(answer, _Status):
            status, answer = answer.status, answer.value
        elif _is_response(answer):
            if self._sends_request_id:
                answer.headers.setdefault(REQUEST_ID, request_id)
            started = False

            async def sending(message: Message) -> None:
                nonlocal started
                started = True
                await send(message)

            try:
                with _watched(scope, receive, send):
                    await answer(_as_sent(scope), receive, sending)
            except Exception as error:  # a file that is not there, say
                if started:
                    raise
                await self._send_error(error, scope, request_id, send)
            return
        try:
            body, content_type = encode_answer(answer)
        except AnswerNotSupportedError as error:
            await self._send_error(error, scope, request_id, send)
            return
        await _send(send, scope, status, body, content_type, self._headers(request_id))

    async def _send_error(self, error: Exception, scope: Scope, request_id: str, send: Send) -> None:
        problem = problem_of(error, self._interface, postprocessed=self._postprocessor is not None)
        if problem.status >= 500:
            log.error("request %s: %s", request_id, problem.message, exc_info=problem.log_exception)
        body = encode_json({"error": problem.body(request_id)})
        headers = (*self._headers(request_id), *problem.headers)
        await _send(send, scope, problem.status, body, JSON, headers)

    def _headers(self, request_id: str) -> tuple[tuple[bytes, bytes], ...]:
        return ((REQUEST_ID.encode(), request_id.encode()),) if self._sends_request_id else ()


_NOT_WATCHED = nullcontext()


def _watched(scope: Scope, receive: Receive, send: Send) -> AbstractContextManager[None]:
    """Inside it the caller is watched, where that is up to the app."""
    return Departure(receive, send) if WATCHES in scope else _NOT_WATCHED


def _as_sent(scope: Scope) -> Scope:
    """``scope`` as the caller sent it, for code of the user's."""
    if WATCHES not in scope:
        return scope
    sent = {**scope, "headers": [header for header in scope["headers"] if header != UNWATCHED]}
    del sent[WATCHES]
    return sent


@dataclass(frozen=True, slots=True)
class _Status:
    status: int
    value: Any


def _method_not_allowed(method: str, allowed: tuple[str, ...]) -> BadRequestError:
    return BadRequestError(
        f"{method} is not served here", status=405, code="MethodNotAllowed", fix=f"Use {' or '.join(allowed)}."
    )


def _is_response(value: Any) -> bool:
    responses = sys.modules.get("starlette.responses")
    return responses is not None and isinstance(value, responses.Response)


async def _send(
    send: Send,
    scope: Scope,
    status: int,
    body: bytes,
    content_type: bytes,
    headers: Sequence[tuple[bytes, bytes]],
) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", content_type), length, *headers],
        }
    )
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
