"""Calls nodes in replicas of their own.

One Serve application runs one revision of one node, so the address of a call is the name of the application. Handles
are made without asking whether the application exists: applications come and go in any order, and Serve's handles find
them as soon as they appear.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from servepipe.channel.errors import (
    AnswerTooLargeError,
    CallRejectedError,
    CallTimeoutError,
    ChannelLostError,
    FrameTooLargeError,
    NoChannelError,
    QueueFullError,
)
from servepipe.errors import RequestError, StepTimeoutError
from servepipe.graph.calls import RequestContext
from servepipe.runtime.node_channels import NodeChannels
from servepipe.runtime.routing import application_name, not_ready
from servepipe.runtime.too_large import TooLargeError, refused_by_channel, refused_by_handle
from servepipe.runtime.transport import NodeFailure, unpack

__all__ = ["DEPLOYMENT", "INGRESS", "ServeCaller", "ingress_handle"]

log = logging.getLogger("servepipe.runtime")

MARGIN_S = 0.05
"""A call gives up this long before its request does: it can still say what it waited for."""

DEPLOYMENT = "node"
"""Name of the one deployment of a node's application."""

_NOT_BEGUN: Mapping[type[Exception], str] = {
    CallRejectedError: "rejected",
    NoChannelError: "unreachable",
}
"""What a channel raises for a call that no replica began, and how that is called in metrics."""

INGRESS = "ingress"
"""Name of the ingress's application and of its one deployment."""


def ingress_handle() -> DeploymentHandle[Any]:
    """A Serve handle whose ``.remote(*args, **kwargs)`` runs the graph with these values, without its preprocessor.

    For programs that use a pipeline, with and without an event loop: the flags of `servepipe.runtime.flags` alone would
    tie the handle to a running loop.
    """
    handle = DeploymentHandle(INGRESS, INGRESS)
    handle._init(_run_router_in_separate_loop=True)
    return handle.options(method_name="run")


class ServeCaller:
    """A `servepipe.graph.calls.Caller` for one event loop: over channels to replicas, and over Serve's handles wherever
    there is no channel to use. Handles of Serve belong to the loop that first uses them.

    A call whose replica is lost is made again, unless its node is one that must not see it twice.

    Args:
        pin: The revision of a node that answers a request whose context pins none; None: the node is not routed.
        is_off: Whether a node is turned off by choice.
        is_idempotent: Whether a node may be called again when nobody knows how far the first call got.

    Attributes:
        answered: When each application last answered, by `time.monotonic`. One that did not since, because it has no
            replica or lost it, is left out.
    """

    def __init__(
        self,
        pin: Callable[[str], str | None],
        is_off: Callable[[str], bool] = lambda node: False,
        is_idempotent: Callable[[str], bool] = lambda node: True,
    ) -> None:
        self._pin = pin
        self._is_off = is_off
        self._is_idempotent = is_idempotent
        self._handles: dict[str, DeploymentHandle[Any]] = {}
        self._channels = NodeChannels(MARGIN_S)
        self.answered: dict[str, float] = {}

    async def call(
        self, node: str, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], context: RequestContext
    ) -> Any:
        """See `servepipe.graph.calls.Caller.call`."""
        if self._is_off(node):
            raise not_ready(
                node, "is turned off", code="NodeScaledToZero", fix=f"Set spec.nodes.{node}.replicas to 1 or more."
            )
        revision = context.pins.get(node) or self._pin(node)
        if revision is None:
            raise not_ready(node, "has no revision that could answer yet")
        application = application_name(node, revision)
        call = _Call(node, application, method, tuple(args), dict(kwargs), context)
        for last in (False, False, True):
            try:
                answer = await self._once(call)
            except NodeFailure as failure:
                self.answered[application] = time.monotonic()
                raise unpack(failure) from None
            except _Lost:
                self.answered.pop(application, None)
                if last or not self._is_idempotent(node):
                    raise _lost(node) from None
            except TooLargeError as error:
                # What the node has not seen may be sent again: a channel, which takes more, may be open by now.
                if last or error.called or not error.over_handle or self._channels.off:
                    self.answered[application] = time.monotonic()
                    raise error.error(node) from None
            except QueueFullError:
                # Over a handle it would wait beside those that wait at the replicas.
                self.answered[application] = time.monotonic()
                self._channels.ways["full"] += 1
                raise _overloaded(node) from None
            except StepTimeoutError:
                raise  # slow is not gone
            except Exception:
                self.answered.pop(application, None)
                raise
            else:
                self.answered[application] = time.monotonic()
                return answer
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, call: _Call) -> Any:
        """One attempt. Raises `NodeFailure`, `_Lost`, `TooLargeError`, `QueueFullError`, or what callers should see."""
        pool = self._channels.pool(call.application)
        if pool is not None:
            try:
                return await pool.call(call.method, call.args, call.kwargs, call.context)
            except CallTimeoutError as error:
                raise self._too_late(call) from error
            except ChannelLostError as error:
                self._channels.ways["lost"] += 1
                raise _Lost from error
            except (FrameTooLargeError, AnswerTooLargeError) as error:
                # Not over the handle, which takes less.
                self._channels.ways["too large"] += 1
                raise refused_by_channel(error) from None
            except tuple(_NOT_BEGUN) as error:
                # No replica began it.
                self._channels.ways[_NOT_BEGUN[type(error)]] += 1
        return await self._over_handle(call)

    async def _over_handle(self, call: _Call) -> Any:
        handle = self.handle(call.application)
        deadline = call.context.deadline
        left = None if deadline is None else deadline - time.time() - MARGIN_S
        response = None
        try:
            async with asyncio.timeout(left):
                response = handle.call.remote(call.method, call.args, call.kwargs, call.context)
                return await response
        except asyncio.CancelledError:
            if response is not None:
                response.cancel()
            raise
        except TimeoutError as error:
            if response is None or left is None:
                raise
            response.cancel()
            raise self._too_late(call) from error
        except Exception as error:
            if isinstance(cause := _cause(error), NodeFailure):
                raise cause from None
            if (refused := refused_by_handle(error)) is not None:
                raise refused from None
            raise _translated(error, call.node) from None

    def handle(self, application: str) -> DeploymentHandle[Any]:
        """The handle to a node application, made once: each keeps a router and a long poll of its own."""
        handle = self._handles.get(application)
        if handle is None:
            handle = DeploymentHandle(DEPLOYMENT, application).options(_by_reference=False)
            self._handles[application] = handle
            self._channels.add(application, handle)
        return handle

    async def keep_only(self, applications: Collection[str]) -> None:
        """Shut the handles to other applications down: each would go on reporting to Serve's controller."""
        names = self._handles.keys() - applications
        self._channels.remove(names)
        unused = [self._handles.pop(name) for name in names]
        for outcome in await asyncio.gather(*(handle.shutdown_async() for handle in unused), return_exceptions=True):
            if isinstance(outcome, Exception):
                log.warning("a handle could not be shut down: %s", outcome)
        for application in self.answered.keys() - applications:
            self.answered.pop(application)

    async def close(self) -> None:
        """End all channels; handles go with their process."""
        await self._channels.close()

    def _too_late(self, call: _Call) -> Exception:
        if not self.handle(call.application).running_replicas_populated():
            return not_ready(call.node, "has no running replica")
        return StepTimeoutError(f"node {call.node} gave no answer before the request's deadline", node=call.node)


@dataclass(slots=True)
class _Call:
    node: str
    application: str
    method: str | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: RequestContext


class _Lost(Exception):  # noqa: N818 - never leaves this module
    """The replica that was answering is gone, and nobody knows how far it got."""


def _lost(node: str) -> RequestError:
    # Not 503, which invites callers, and proxies on the way, to send the request again.
    return RequestError(
        f"node {node} lost the replica that was answering, which may have done its work",
        status=502,
        code="ReplicaLost",
        node=node,
    )


def _overloaded(node: str) -> RequestError:
    return not_ready(node, "has too many requests waiting", code="Overloaded", fix="See maxQueuedRequests.")


def _cause(error: Exception) -> object:
    return error if isinstance(error, NodeFailure) else getattr(error, "cause", None)


def _translated(error: Exception, node: str) -> Exception:
    """What Serve raised, as what the node's caller should see."""
    if isinstance(error, DeploymentUnavailableError):
        return not_ready(node, "is not available: its application failed to start")
    if isinstance(error, BackPressureError):
        return _overloaded(node)
    if isinstance(error, ActorDiedError | ActorUnavailableError | RayActorError):
        return _Lost()
    return error
