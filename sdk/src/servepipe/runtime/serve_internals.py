"""The private parts of Ray Serve that the channel is built on, all of them, looked at before they are used.

Two things have no public name: the object that runs a replica's requests, with its limits and counts, and the replicas
that a handle knows. (`servepipe.runtime.request_path` and `http_path` look further into the first.) Where either is not
as it is in the versions that this was written for (Ray 2.58 to 2.60), `UnexpectedServeError` says what differs; the
process then uses handles only.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray._private.worker import global_worker
from ray.serve._private import constants
from ray.serve._private.common import RequestMetadata
from ray.serve.handle import DeploymentHandle

from servepipe.errors import ServePipeError
from servepipe.runtime.request_path import short_way

if TYPE_CHECKING:
    from servepipe.runtime.http_path import HttpWay

__all__ = [
    "OwnReplica",
    "UnexpectedServeError",
    "known_replicas",
    "metadata_of",
    "own_replica",
    "request_filter",
    "runs_user_code_elsewhere",
    "session_folder",
    "traces",
]


log = logging.getLogger("servepipe.ingress")


class UnexpectedServeError(ServePipeError):
    """This Serve is not as the channel needs it."""


class OwnReplica:
    """The replica in this process, as Serve runs it.

    Args:
        replica: Serve's own object.

    Attributes:
        id: Names it in its application.
        loop: On which everything here is to be called.

    Raises:
        UnexpectedServeError: It is not as expected.
    """

    def __init__(self, replica: Any) -> None:
        _expect(replica, "_event_loop", asyncio.AbstractEventLoop)
        _expect(replica, "_quiescing", bool)
        _expect(replica, "max_queued_requests", int)
        _expect_callable(replica, "_semaphore.locked")
        _expect_callable(replica, "_metrics_manager.inc_num_ongoing_requests", "request_metadata")
        _expect_callable(replica, "_metrics_manager.dec_num_ongoing_requests", "request_metadata")
        handle_request = _expect_callable(replica, "handle_request", "request_metadata")
        if not inspect.iscoroutinefunction(handle_request):
            raise UnexpectedServeError("Serve's handle_request is not async")
        self.loop: asyncio.AbstractEventLoop = replica._event_loop
        self._replica = replica
        self.id: str = _expect(replica, "_replica_id.unique_id", str)
        self._app = _expect(replica, "_replica_id.deployment_id.app_name", str)
        self._anyone = self._metadata("", "", "")  # raises now what it would raise later

    @property
    def ends(self) -> bool:
        """Whether Serve begins no request here any more."""
        return bool(self._replica._quiescing)

    @property
    def is_full(self) -> bool:
        """Whether the next request would wait for one of ``max_ongoing_requests`` to end."""
        return bool(self._replica._semaphore.locked())

    @property
    def max_queued_requests(self) -> int:
        """How many may wait; -1: any number."""
        return int(self._replica.max_queued_requests)

    def count(self, by: int) -> None:
        """Change the number of ongoing requests, on which autoscaling and draining depend, by 1 or -1."""
        manager = self._replica._metrics_manager
        if by > 0:
            manager.inc_num_ongoing_requests(self._anyone)
        else:
            manager.dec_num_ongoing_requests(self._anyone)

    def way(self, method: str, unlogged: Callable[[], bool]) -> Callable[..., Coroutine[Any, Any, Any]]:
        """How requests for ``method`` of the deployment's class run: ``await way(request_id, *args)``.

        Each as Serve runs one that came by a handle: context, limit, counts, metrics, access log.

        Args:
            method: The name of an async method.
            unlogged: Whether nobody wants the line of the access log.
        """
        metadata = partial(self._metadata, method)
        short = short_way(self._replica, method, metadata=metadata, unlogged=unlogged)
        handle_request = self._replica.handle_request
        numbers = itertools.count(1)
        prefix = f"{self.id}-"

        def run(request_id: str, *args: Any) -> Coroutine[Any, Any, Any]:
            # By this Serve finds the calls that a request has made, so it is nobody else's.
            internal = f"{prefix}{next(numbers)}"
            if short is None or is_tracing_enabled():
                found: Coroutine[Any, Any, Any] = handle_request(metadata(request_id, internal), *args)
                return found
            return short(request_id, internal, *args)

        return run

    def http_way(self, unlogged: Callable[[], bool]) -> HttpWay | None:
        """The short way of HTTP requests to the app of this replica; None, for a reason that is in the log: Serve's own
        is the only one. To be called when the app has been built and Serve knows how it listens.

        Args:
            unlogged: As for `way`.
        """
        try:
            from servepipe.runtime.http_path import HttpWay

            return HttpWay(self._replica, unlogged=unlogged, traced=is_tracing_enabled)
        except Exception as error:  # of a Serve that nobody has read: whatever differs there
            log.warning("requests take the long way through Serve's replica: %s", error or type(error).__name__)
            return None

    def _metadata(self, method: str, request_id: str, internal_request_id: str) -> RequestMetadata:
        try:
            return RequestMetadata(
                request_id=request_id,
                internal_request_id=internal_request_id,
                call_method=method,
                app_name=self._app,
                _by_reference=False,
            )
        except TypeError as error:
            raise UnexpectedServeError(f"Serve's RequestMetadata has other fields: {error}") from error


def own_replica() -> OwnReplica:
    """The replica that runs in this process. Raises `UnexpectedServeError` where there is none that is as expected."""
    actors = [actor for actor in getattr(global_worker, "actors", {}).values() if hasattr(actor, "_replica_impl")]
    if len(actors) != 1:
        raise UnexpectedServeError(f"this process runs {len(actors)} of Serve's replicas, not one")
    return OwnReplica(actors[0]._replica_impl)


def session_folder() -> Path | None:
    """Where this Ray keeps its own sockets, which goes when it goes; None: nobody knows."""
    try:
        folder = Path(global_worker.node.get_session_dir_path())
    except (AttributeError, TypeError):
        return None
    return folder if folder.is_dir() else None


def request_filter() -> logging.Filter | None:
    """What puts the id and the route of the request under way on a record of Serve's log; None: this Serve has none."""
    try:
        from ray.serve._private.logging_utils import ServeContextFilter
    except ImportError:
        return None
    found: logging.Filter = ServeContextFilter()
    return found


def runs_user_code_elsewhere() -> bool:
    """Whether user code of this process runs on another event loop than Serve's; also where nobody knows."""
    return bool(getattr(constants, "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", True))


def known_replicas(handle: DeploymentHandle[Any]) -> Sequence[Any]:
    """The running replicas that ``handle`` knows, in a list that is replaced, never changed, when they change.

    Empty until Serve's controller has told. Raises `UnexpectedServeError`.
    """
    try:
        router = handle._router._asyncio_router
        # Not by the property, which would make the request router before its turn.
        requests = router._request_router
        if requests is None:
            return ()
        replicas = requests._replicas_list
    except AttributeError as error:
        raise UnexpectedServeError(f"Serve's handles know their replicas in another way: {error}") from error
    if not isinstance(replicas, list):
        raise UnexpectedServeError(f"Serve's handles keep their replicas in a {type(replicas).__name__}, not in a list")
    return replicas


def metadata_of(replica: Any) -> tuple[str, Mapping[str, Any]]:
    """The id and the metadata of one of `known_replicas`. Raises `UnexpectedServeError`."""
    unique_id = _expect(replica, "replica_id.unique_id", str)
    return unique_id, _expect(replica, "replica_metadata", dict)


def traces() -> bool:
    """Whether the running request is being traced: then its calls go over handles, which carry the trace along."""
    return bool(_is_span_recording())


def _no_span() -> bool:
    return False


try:
    from ray.serve._private.tracing_utils import is_span_recording as _is_span_recording
    from ray.serve._private.tracing_utils import is_tracing_enabled
except ImportError:
    _is_span_recording = is_tracing_enabled = _no_span


def _expect(thing: Any, path: str, kind: type) -> Any:
    """The attribute at ``path``, which has to be a ``kind``."""
    for name in path.split("."):
        try:
            thing = getattr(thing, name)
        except AttributeError:
            raise UnexpectedServeError(f"Serve's {type(thing).__name__} has no {name}") from None
    if not isinstance(thing, kind):
        raise UnexpectedServeError(f"Serve's {path} is a {type(thing).__name__}, not a {kind.__name__}")
    return thing


def _expect_callable(thing: Any, path: str, first: str | None = None) -> Any:
    """The callable at ``path``, whose first parameter has to be ``first``."""
    found = _expect(thing, path, object)
    if not callable(found):
        raise UnexpectedServeError(f"Serve's {path} cannot be called")
    if first is not None and next(iter(inspect.signature(found).parameters), None) != first:
        raise UnexpectedServeError(f"Serve's {path} takes something else than {first} first")
    return found
