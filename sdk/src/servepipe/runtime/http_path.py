"""An HTTP request's way through Serve's replica, in one function: what `request_path` is for calls.

Between the HTTP server of the ingress and its app Serve decodes every header twice, makes two ids and a description of
the request, looks for a route of an app that has none, and counts. Here the same parts of Serve get the same values in
the same order, for a request that is as nearly all are. `HttpWay` leaves any other to Serve: one that is to wait for
its turn, has a timeout of its own or a session of Serve's, asks whether the replica lives, or comes while Serve traces.

It stands for sources that were read; with any other there is no `HttpWay`.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import ray
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

log = logging.getLogger("servepipe.ingress")

WRITTEN_AFTER = {
    "2.58": "227efbe7347d5cbb",
    "2.59": "a2af0c38bc701815",
    "2.60": "2da03d3b5895ed05",
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
#: Of ``ray.serve._private.http_util``.
_HTTP = (
    "_apply_middlewares",
    "parse_request_timeout_header",
    "parse_disconnect_disabled_header",
    "parse_session_id_header",
    "_matches_session_id_header",
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
    others = [getattr(http_util, name, None) for name in _HTTP]
    others += [http_util.RequestIdMiddleware.__call__, http_util.ASGIAppReplicaWrapper.__call__]
    others += [serve_replica.send_http_response, serve_context._RequestContext]
    return serve_sources.digest(replica, _REPLICA, _USER_CODE, others)


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
        self._timeout = _Timeout(replica._http_options.request_timeout_s)
        # What is the same for all, as in `request_path`: the class is frozen.
        self._common = vars(
            serve_context._RequestContext(
                app_name=self._app_name,
                cancel_on_parent_request_cancel=replica._ingress and RAY_SERVE_ENABLE_DIRECT_INGRESS,
            )
        )

    def take(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None] | None:
        """What answers a request; None: it is Serve's, and nothing has been done for it."""
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
        headers = scope["headers"]
        for name, value in headers:
            if name in self._special:
                if name != REQUEST_ID or request_id or not value or not value.isascii():
                    return None
                request_id = value
        return self._answer(scope, receive, send, route, request_id)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, route: str, request_id: bytes) -> None:
        if not request_id:
            request_id = generate_request_id().encode()
            scope["headers"].append((REQUEST_ID, request_id))
        scope[WATCHES] = True
        if route not in ("", "/"):
            scope["root_path"] = route
        told_id = request_id.decode()
        internal_id = f"{self._prefix}{next(self._numbers)}"
        request = object.__new__(serve_context._RequestContext)
        vars(request).update(
            self._common,
            route=route,
            request_id=told_id,
            _internal_request_id=internal_id,
            _client=format_client_address(scope.get("client")),
        )
        serve_context._serve_request_context.set(request)
        status = ""
        peeked = response_started = late = False

        async def sending(message: Message) -> None:
            nonlocal peeked, response_started, status
            if message["type"] == "http.response.start":
                if not peeked:
                    status = str(message["status"])
                message["headers"] = [*message.get("headers", ()), (REQUEST_ID, request_id)]
            peeked = True
            await send(message)
            response_started = True

        def too_late() -> str:
            """It has taken too long; returns what its caller has to be told, if anything."""
            nonlocal late, peeked, status
            late = peeked = True
            status = str(TIMEOUT)
            return "" if response_started else f"Request {told_id} timed out after {self._timeout.seconds}s."

        started = time.time()
        error: BaseException | None = None
        key = self._timeout.begin(too_late, sending)
        try:
            await self._semaphore.acquire()
            try:
                self._manager.inc_num_ongoing_requests(self._anyone)
                try:
                    await self._call(scope, receive, sending)
                finally:
                    self._manager.dec_num_ongoing_requests(self._anyone)
            finally:
                self._semaphore.release()
        except asyncio.CancelledError as problem:
            error = problem
            self._replica._on_request_cancelled(self._metadata(route, told_id, internal_id, scope), problem)
        except Exception as problem:
            error = problem
            _serve_log.exception("Request failed.")
            self._replica._on_request_failed(self._metadata(route, told_id, internal_id, scope), problem)
        finally:
            self._timeout.end(key)
        latency_ms = (time.time() - started) * 1000
        if late:
            error = asyncio.CancelledError()  # whatever the app made of being cancelled
        if error is not None or not self._unlogged():
            told = self._metadata(route, told_id, internal_id, scope)
            # Serve keeps from the HTTP server how the app ended.
            self._replica._record_errors_and_metrics(error, status or None, latency_ms, told)
            return
        self._manager.record_request_metrics(route=route, latency_ms=latency_ms, is_error=False, exception_type=None)
        if status:
            self._manager.record_ingress_request_metrics(
                protocol=RequestProtocol.HTTP,
                method=scope["method"].upper(),
                route=route,
                app_name=self._app_name,
                deployment_name=self._deployment,
                latency_ms=latency_ms,
                is_error=status.startswith(("4", "5")),
                status_code=status,
            )

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


class _Timeout:
    """Serve's limit for each request, a last resort behind the app's own: nearly none comes near it. So there is one
    timer for all that run, which waits for the oldest.

    Args:
        seconds: None: there is no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._running: dict[asyncio.Task[Any], tuple[float, Callable[[], str], Send]] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._telling: set[asyncio.Task[None]] = set()

    def begin(self, too_late: Callable[[], str], send: Send) -> asyncio.Task[Any] | None:
        """The running task answers a request from now on; what is to be given to `end`."""
        if self.seconds is None:
            return None
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._running[task] = loop.time(), too_late, send
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._look)
        return task

    def end(self, task: asyncio.Task[Any] | None) -> None:
        """It does no more."""
        if task is not None:
            self._running.pop(task, None)

    def _look(self) -> None:
        assert self.seconds is not None
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._running:
            task = next(iter(self._running))
            began, too_late, send = self._running[task]
            left = began + self.seconds - loop.time()
            if left > 0:
                self._timer = loop.call_later(left, self._look)
                return
            del self._running[task]
            # As with Serve the caller is told at once, whatever the app makes of being cancelled.
            if message := too_late():
                telling = loop.create_task(serve_replica.send_http_response(message, TIMEOUT, send))
                self._telling.add(telling)
                telling.add_done_callback(self._telling.discard)
            task.cancel()


def _only_serves_own(replica: Any) -> str:
    """Why this way would be wrong here; empty: it is right."""
    user_code = replica._user_callable_wrapper
    if digest(replica) not in WRITTEN_AFTER.values():
        return f"Ray {ray.__version__} serves HTTP in a way that this servepipe was not written after"
    if user_code._run_user_code_in_separate_thread:
        return "Serve's flag has user code run in a thread of its own"
    if user_code._is_enabled_for_debug:
        return "Serve's log tells of the start of each request"
    if hasattr(replica._user_callable_asgi_app, "routes"):
        return "the app has routes that Serve tells apart"
    info = user_code.get_user_method_info(METHOD)
    if not info.is_asgi_app or not inspect.iscoroutinefunction(info.callable):
        return "the app is none of ASGI's"
    if not _special_headers():
        return "the header of sessions has too many spellings"
    return ""


def _special_headers() -> frozenset[bytes]:
    """Headers that mean something to Serve, in every spelling that it takes; empty: too many."""
    spellings: set[bytes] = {
        REQUEST_ID,
        SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER.encode(),
        SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER.encode(),
    }
    for name in (SERVE_MULTIPLEXED_MODEL_ID, getattr(http_util, "SERVE_SESSION_ID", "")):
        words = name.lower().replace("-", "_").split("_")
        if 2 ** (len(words) - 1) > MOST_SPELLINGS:
            return frozenset()
        spellings.update(_joined(words))
    return frozenset(spellings)


def _joined(words: list[str]) -> Iterable[bytes]:
    for separators in itertools.product("-_", repeat=len(words) - 1):
        yield "".join(itertools.chain(*zip(words, (*separators, ""), strict=True))).encode()
