"""An HTTP request's short way through Serve's replica: what `request_path` is for calls.

Between the HTTP server of the ingress and its app Serve decodes every header twice, makes two ids and a description of
the request, looks for a route of an app that has none, and counts. Here the same parts of Serve get the same values in
the same order, for a request that is as nearly all are. `HttpWay` leaves any other to Serve: one that is to wait for
its turn, has a timeout of its own or a session of Serve's, asks whether the replica lives, or comes while Serve traces.

It stands for sources that were read; with any other there is no `HttpWay`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import ray.serve.context as serve_context
from ray.serve._private import http_util
from ray.serve._private import replica as serve_replica
from ray.serve._private.common import RequestMetadata, RequestProtocol
from ray.serve._private.constants import (
    RAY_SERVE_ENABLE_DIRECT_INGRESS,
    SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
    SERVE_HTTP_REQUEST_ID_HEADER,
    SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
    SERVE_LOGGER_NAME,
    SERVE_MULTIPLEXED_MODEL_ID,
)
from ray.serve._private.logging_utils import format_client_address
from ray.serve._private.utils import generate_request_id

from servepipe.runtime import serve_sources
from servepipe.runtime.http_request import WATCHES, Message, Receive, Scope, Send

__all__ = ["WRITTEN_AFTER", "HttpWay", "digest"]

WRITTEN_AFTER = {
    "2.58": "b26d1f7c878e6b79",
    "2.59": "198f1d94901a2f44",
    "2.60": "adc4518f5e168b8e",
}
"""By minor version of Ray the `digest` of what was read and is stood for."""

_REPLICA = (
    "_direct_ingress_asgi",
    "get_asgi_tracing_context",
    "_determine_http_route",
    "_parse_request_timeout",
    "_is_replica_quiescing",
    "_can_accept_request",
    "_wrap_request",
    "_tracing_context",
    "_handle_errors_and_metrics",
    "_record_errors_and_metrics",
    "_track_queued_request",
    "_start_request",
)
_USER_CODE = (
    "_call_http_entrypoint",
    "_run_user_code",
    "_call_func_or_gen",
    "_handle_user_method_result",
    "get_user_method_info",
    "_raise_if_not_initialized",
)
_OTHERS = (
    "ray.serve._private.http_util:RequestIdMiddleware.__call__",
    "ray.serve._private.http_util:ASGIAppReplicaWrapper.__call__",
    "ray.serve._private.http_util:_apply_middlewares",
    "ray.serve._private.http_util:parse_request_timeout_header",
    "ray.serve._private.http_util:parse_disconnect_disabled_header",
    "ray.serve._private.http_util:parse_session_id_header",
    "ray.serve._private.http_util:_matches_session_id_header",
    "ray.serve._private.replica:send_http_response",
    "ray.serve._private.replica:get_asgi_route_name",
    "ray.serve.context:_RequestContext",
)

METHOD = "__call__"
ENDPOINTS = ("/-/healthz", "/-/routes")
"""Paths that Serve answers itself."""

TIMEOUT = 408

REQUEST_ID = SERVE_HTTP_REQUEST_ID_HEADER.encode()

MOST_SPELLINGS = 256

_serve_log = logging.getLogger(SERVE_LOGGER_NAME)


def digest(replica: Any) -> str:
    """Of the source that an HTTP request to ``replica``, an object of Serve's, runs through; empty: it is not to be
    read."""
    return serve_sources.digest(replica, _REPLICA, _USER_CODE, _OTHERS)


class HttpWay:
    """Args:
        replica: Serve's own object, as `servepipe.runtime.serve_internals.OwnReplica` has looked at it, with its user
            code built.
        unlogged: Whether nobody wants the line of the access log.
        traced: Whether Serve traces requests.

    Raises:
        LookupError: Only Serve's own way is right here; the message says why.
    """

    def __init__(self, replica: Any, *, unlogged: Callable[[], bool], traced: Callable[[], bool]) -> None:
        if why := _only_serves_own(replica):
            raise LookupError(why)
        self._replica = replica
        self._unlogged = unlogged
        self._traced = traced
        self._call = replica._user_callable_wrapper.get_user_method_info(METHOD).callable
        self._manager = replica._metrics_manager
        self._semaphore = replica._semaphore
        self._app_name: str = replica._deployment_id.app_name
        self._deployment: str = replica._deployment_id.name
        self._anyone = self._metadata("", "", "", {})
        self._numbers = itertools.count(1)
        self._prefix = f"{replica._replica_id.unique_id}-http-"
        self._special = _special_headers()
        self._timeout = _Timeout(replica._http_options.request_timeout_s, self._too_late)
        # What is the same for all, as in `request_path`: the class is frozen.
        self._common = vars(
            serve_context._RequestContext(
                app_name=self._app_name,
                cancel_on_parent_request_cancel=replica._ingress and RAY_SERVE_ENABLE_DIRECT_INGRESS,
            )
        )

    def take(
        self, scope: Scope, receive: Receive, send: Send, close: Callable[[], None] | None = None
    ) -> Coroutine[Any, Any, None] | None:
        """What answers a request; None: it is Serve's, and nothing has been done for it.

        Args:
            close: Closes the connection.
        """
        replica = self._replica
        path: str = scope["path"]
        route = replica._route_prefix or ""
        if (
            not replica._user_callable_initialized
            or self._semaphore.locked()
            or not replica._can_accept_request(self._anyone)
            or scope.get("root_path")
            or path in ENDPOINTS
            or not path.startswith(route)
            or self._traced()
        ):
            return None
        request_id = b""
        for name, value in scope["headers"]:
            if name in self._special:
                if name != REQUEST_ID or request_id or not value or not value.isascii():
                    return None
                request_id = value
        return self._answer(scope, receive, send, close, route, request_id)

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        close: Callable[[], None] | None,
        route: str,
        request_id: bytes,
    ) -> None:
        # A list of its own: the HTTP server adds the trailers of a body to the one that it has.
        headers = scope["headers"] = [*scope["headers"]]
        if not request_id:
            request_id = generate_request_id().encode()
            headers.append((REQUEST_ID, request_id))
        scope[WATCHES] = True
        if route not in ("", "/"):
            scope["root_path"] = route
        request = _Request(scope, send, close, route, request_id, f"{self._prefix}{next(self._numbers)}")
        context = object.__new__(serve_context._RequestContext)
        vars(context).update(
            self._common,
            route=route,
            request_id=request.id,
            _internal_request_id=request.internal_id,
            _client=format_client_address(scope.get("client")),
        )
        serve_context._serve_request_context.set(context)
        error: asyncio.CancelledError | Exception | None = None
        self._timeout.begin(request)
        try:
            await self._semaphore.acquire()
            try:
                self._manager.inc_num_ongoing_requests(self._anyone)
                try:
                    await self._call(scope, receive, request.send)
                finally:
                    self._manager.dec_num_ongoing_requests(self._anyone)
            finally:
                self._semaphore.release()
        except (asyncio.CancelledError, Exception) as problem:
            error = problem
        finally:
            self._timeout.end(request)
        if request.telling is not None:
            await request.telling  # else the HTTP server would say that nobody answered
        if not request.is_late:  # all of that has been done
            self._end(request, error)
        error = None  # its traceback leads here

    def _end(self, request: _Request, error: asyncio.CancelledError | Exception | None) -> None:
        """Record how a request ended. Serve keeps from the HTTP server what the app raised."""
        latency_ms = (time.time() - request.started) * 1000
        status = request.status
        if error is not None or not self._unlogged():
            told = self._metadata(request.route, request.id, request.internal_id, request.scope)
            if isinstance(error, asyncio.CancelledError):
                self._replica._on_request_cancelled(told, error)
            elif error is not None:
                _serve_log.error("Request failed.", exc_info=error)
                self._replica._on_request_failed(told, error)
            self._replica._record_errors_and_metrics(error, status or None, latency_ms, told)
            return
        self._manager.record_request_metrics(
            route=request.route, latency_ms=latency_ms, is_error=False, exception_type=None
        )
        if status:
            self._manager.record_ingress_request_metrics(
                protocol=RequestProtocol.HTTP,
                method=request.scope["method"].upper(),
                route=request.route,
                app_name=self._app_name,
                deployment_name=self._deployment,
                latency_ms=latency_ms,
                is_error=status.startswith(("4", "5")),
                status_code=status,
            )

    def _too_late(self, request: _Request) -> None:
        """As with Serve that is the end of a request, whatever the app makes of being cancelled."""
        request.is_late = True
        request.status = str(TIMEOUT)
        if request.response_started:
            request.abort()
        else:
            message = f"Request {request.id} timed out after {self._timeout.seconds}s."
            telling = _quietly(serve_replica.send_http_response(message, TIMEOUT, request.tell))
            request.telling = asyncio.get_running_loop().create_task(telling)
        request.task.cancel()
        self._end(request, asyncio.CancelledError())

    def _metadata(self, route: str, request_id: str, internal_request_id: str, scope: Any) -> RequestMetadata:
        return RequestMetadata(
            request_id=request_id,
            internal_request_id=internal_request_id,
            call_method=METHOD,
            route=route,
            app_name=self._app_name,
            is_streaming=True,
            _request_protocol=RequestProtocol.HTTP,
            _http_method=scope.get("method", "").upper(),
            is_direct_ingress=True,
            _client=format_client_address(scope.get("client")),
        )


class _Request:
    """One that is being answered.

    Attributes:
        has_ended: The app does no more.
        response_started: A message of the answer has left.
        response_finished: So has the last.
        is_late: It has taken too long, and its end has been recorded.
        telling: Tells its caller so.
    """

    __slots__ = (
        "_close",
        "_peeked",
        "_send",
        "has_ended",
        "header",
        "id",
        "internal_id",
        "is_late",
        "response_finished",
        "response_started",
        "route",
        "scope",
        "started",
        "status",
        "task",
        "telling",
    )

    def __init__(
        self,
        scope: Scope,
        send: Send,
        close: Callable[[], None] | None,
        route: str,
        request_id: bytes,
        internal_id: str,
    ) -> None:
        self.scope, self._send, self._close, self.route = scope, send, close, route
        self.header = (REQUEST_ID, request_id)
        self.id = request_id.decode()
        self.internal_id = internal_id
        self.started = time.time()
        self.status = ""
        self._peeked = self.response_started = self.response_finished = self.is_late = self.has_ended = False
        self.telling: asyncio.Task[None] | None = None
        task = asyncio.current_task()
        assert task is not None
        self.task: asyncio.Task[Any] = task

    async def send(self, message: Message) -> None:
        """What the app sends with."""
        if self.is_late:
            return  # as to a caller who has left
        if not self._peeked:
            self._peeked = True
            if message["type"] == "http.response.start":
                self.status = str(message["status"])
        await self.tell(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.response_finished = True

    async def tell(self, message: Message) -> None:
        """Send a message, whoever it is from."""
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), self.header]
        await self._send(message)
        self.response_started = True

    def abort(self) -> None:
        """Close the connection, where that can be: half an answer is no answer."""
        if self._close is not None:
            self._close()


class _Timeout:
    """Serve's limit for each request, a last resort behind the app's own: nearly none comes near it. So there is one
    timer for all that run, which waits for the oldest.

    Args:
        seconds: None: there is no limit.
        too_late: Called with a request that has not been answered by then.
    """

    def __init__(self, seconds: float | None, too_late: Callable[[_Request], None]) -> None:
        self.seconds = seconds
        self._too_late = too_late
        self._until: dict[_Request, float] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, request: _Request) -> None:
        """It has begun."""
        if self.seconds is None:
            return
        loop = asyncio.get_running_loop()
        self._until[request] = loop.time() + self.seconds
        if self._timer is None:
            self._wait(loop, self.seconds)

    def end(self, request: _Request) -> None:
        """It has ended."""
        request.has_ended = True
        self._until.pop(request, None)

    def _wait(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        # In a context of its own: it would keep that of some request.
        self._timer = loop.call_later(seconds, self._look, context=contextvars.Context())

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._until:
            request, until = next(iter(self._until.items()))
            if (left := until - loop.time()) > 0:
                self._wait(loop, left)
                return
            del self._until[request]
            # What it waits for may have come in this very moment: it has one more turn.
            loop.call_soon(self._look_again, request, context=contextvars.Context())

    def _look_again(self, request: _Request) -> None:
        # What an app does after its answer is not limited.
        if not request.has_ended and not request.response_finished:
            self._too_late(request)


async def _quietly(telling: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(Exception):  # the caller may have gone
        await telling


def _only_serves_own(replica: Any) -> str:
    """Why this way would be wrong here; empty: it is right."""
    if why := serve_sources.only_serves_own(replica, digest(replica) in WRITTEN_AFTER.values(), "serves HTTP"):
        return why
    if hasattr(replica._user_callable_asgi_app, "routes"):
        return "the app has routes that Serve tells apart"
    info = replica._user_callable_wrapper.get_user_method_info(METHOD)
    if not info.is_asgi_app or not inspect.iscoroutinefunction(info.callable):
        return "the app is none of ASGI's"
    return ""


def _special_headers() -> frozenset[bytes]:
    """Headers that mean something to Serve, in every spelling that it takes. Raises LookupError: there are too many."""
    found: set[bytes] = {
        REQUEST_ID,
        SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER.encode(),
        SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER.encode(),
    }
    for name in (SERVE_MULTIPLEXED_MODEL_ID, getattr(http_util, "SERVE_SESSION_ID", "")):
        words = name.lower().replace("-", "_").split("_")
        if 2 ** (len(words) - 1) > MOST_SPELLINGS:
            raise LookupError("the header of sessions has too many spellings")
        found.update(_spellings(words))
    return frozenset(found)


def _spellings(words: list[str]) -> Iterable[bytes]:
    for separators in itertools.product("-_", repeat=len(words) - 1):
        yield "".join(itertools.chain(*zip(words, (*separators, ""), strict=True))).encode()
