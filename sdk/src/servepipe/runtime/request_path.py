"""A request's way through Serve's replica, in one function where Serve has eleven.

What Serve does for each request of a replica (context, limit, counts, metrics, errors) is little; most of its time goes
into the layers between: context managers, decorators, and questions that have the same answer for every call that comes
over a channel. `short_way` does the same with the same parts of Serve in the same order, for such calls only.

That is right for the Serve that it was written after, and perhaps for no other. So `WRITTEN_AFTER` holds a digest of
the source of all that it stands for, for every Ray that is supported. With any other source, and with settings that it
knows nothing of, calls go the long way: Serve's own ``handle_request``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import ray.serve.context as serve_context
from ray.serve._private.common import RequestMetadata
from ray.serve._private.constants import RAY_SERVE_ENABLE_DIRECT_INGRESS, SERVE_LOGGER_NAME

from servepipe.runtime import serve_sources

__all__ = ["WRITTEN_AFTER", "Way", "digest", "short_way"]

log = logging.getLogger("servepipe.node")

Way = Callable[..., Coroutine[Any, Any, Any]]
"""Runs the method for one request: ``await way(request_id, internal_request_id, *args)``."""

WRITTEN_AFTER = {
    "2.58": "0c682a71a6d571cd",
    "2.59": "79633430637a1685",
    "2.60": "79633430637a1685",
}
"""By minor version of Ray the `digest` of what was read and is stood for."""

_REPLICA = (
    "handle_request",
    "_unpack_proxy_args",
    "_wrap_request",
    "_tracing_context",
    "_handle_errors_and_metrics",
    "_record_errors_and_metrics",
    "_start_request",
    "_raise_user_exception",
    "_maybe_wrap_grpc_exception",
)
_USER_CODE = (
    "call_user_method",
    "_run_user_code",
    "_call_func_or_gen",
    "get_user_method_info",
    "_raise_if_not_initialized",
)

_serve_log = logging.getLogger(SERVE_LOGGER_NAME)


def digest(replica: Any) -> str:
    """Of the source that a request to ``replica``, an object of Serve's, runs through; empty: nobody can read it."""
    return serve_sources.digest(replica, _REPLICA, _USER_CODE, ["ray.serve.context:_RequestContext"])


def short_way(
    replica: Any, method: str, *, metadata: Callable[[str, str], RequestMetadata], unlogged: Callable[[], bool]
) -> Way | None:
    """The way to ``method`` of the deployment's class, an async one.

    Args:
        replica: Serve's own object, as `servepipe.runtime.serve_internals.OwnReplica` has looked at it.
        method: Its name.
        metadata: What Serve wants to know of a request with these two ids.
        unlogged: Whether nobody wants the line of the access log.

    Returns:
        None where only Serve's own way is right, for a reason that is in the log.
    """
    if why := _only_serves_own(replica, method):
        log.warning("calls take the long way through Serve's replica: %s", why)
        return None
    call = replica._user_callable_wrapper.get_user_method_info(method).callable
    current = serve_context._serve_request_context
    # What is the same for all. The class is frozen: to make one of it field by field takes longer than all the rest.
    common = vars(
        serve_context._RequestContext(
            app_name=replica._deployment_id.app_name,
            cancel_on_parent_request_cancel=replica._ingress and RAY_SERVE_ENABLE_DIRECT_INGRESS,
        )
    )
    anyone = metadata("", "")
    manager = replica._metrics_manager
    semaphore = replica._semaphore

    async def way(request_id: str, internal_request_id: str, *args: Any) -> Any:
        request = object.__new__(serve_context._RequestContext)
        vars(request).update(common, request_id=request_id, _internal_request_id=internal_request_id)
        current.set(request)
        started = time.time()
        try:
            await semaphore.acquire()
            try:
                manager.inc_num_ongoing_requests(anyone)
                try:
                    result = await call(*args)
                finally:
                    manager.dec_num_ongoing_requests(anyone)
            finally:
                semaphore.release()
        except (Exception, asyncio.CancelledError) as error:
            told = metadata(request_id, internal_request_id)
            if isinstance(error, asyncio.CancelledError):
                replica._on_request_cancelled(told, error)
            else:
                _serve_log.exception("Request failed.")
                replica._on_request_failed(told, error)
            replica._record_errors_and_metrics(error, None, _ms_since(started), told)
            raise error from None
        if unlogged():
            manager.record_request_metrics(route="", latency_ms=_ms_since(started), is_error=False, exception_type=None)
        else:
            told = metadata(request_id, internal_request_id)
            replica._record_errors_and_metrics(None, None, _ms_since(started), told)
        return result

    return way


def _only_serves_own(replica: Any, method: str) -> str:
    """Why the short way would be wrong here; empty: it is right."""
    if why := serve_sources.only_serves_own(replica, digest(replica) in WRITTEN_AFTER.values(), "runs requests"):
        return why
    if not inspect.iscoroutinefunction(replica._user_callable_wrapper.get_user_method_info(method).callable):
        return f"{method} is not async"
    return ""


def _ms_since(started: float) -> float:
    return (time.time() - started) * 1000
