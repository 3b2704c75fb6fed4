"""The deployment that runs one revision of one node.

It is the same class for every node: which user code it runs is an argument, and that code is imported in the replica
only. So the process that builds applications needs none of it, and a broken model breaks nothing but its own start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from servepipe.authoring import code, loader
from servepipe.errors import StepTimeoutError
from servepipe.graph.calls import NodeHandle, RequestContext, cancel_nested_calls, current_request
from servepipe.graph.expressions import decode_value
from servepipe.graph.failures import asked_for
from servepipe.graph.instance import NodeInstance
from servepipe.runtime import access_log, versions
from servepipe.runtime.arguments import constructor_arguments
from servepipe.runtime.batch_sizes import count_batch
from servepipe.runtime.loop_watch import LoopWatch
from servepipe.runtime.node_channel import NodeChannel, call_has_begun
from servepipe.runtime.printing import mend_print
from servepipe.runtime.problems import first_line
from servepipe.runtime.routing import Routes, application_name
from servepipe.runtime.serve_caller import ServeCaller
from servepipe.runtime.transport import pack

__all__ = ["NodeReplica"]

log = logging.getLogger("servepipe.node")

BLOCKED_S = 1.0
"""How long user code may keep the replica's event loop without a warning, seconds."""

ADVICE = (
    "No other call and no health check of this replica runs meanwhile. Make the method sync, without blocking: false; "
    "put what blocks into `await asyncio.to_thread(...)`; or give the node blocking: true."
)


class NodeReplica:
    """Args:
    args: As in "What runs in Ray" of the architecture page: pipeline, node, revision, import, args, kwargs, code, path,
        blocking, attempt; and the builder's versions (`servepipe.runtime.versions`).
    """

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        versions.verify(args)
        access_log.leave_out()
        mend_print()
        self._node: str = args["node"]
        self._application = application_name(self._node, args["revision"])
        self._routes = Routes({})
        self._table = ""
        self._holds = False
        self._user_config: Any = None
        self._configured = False
        self._error = ""
        self._busy = 0
        self._caller = ServeCaller(self._pin, is_idempotent=lambda node: node not in self._once)
        self._once: frozenset[str] = frozenset()
        self._channel: NodeChannel | None = None
        loader.only_imports()
        try:
            await self._build(args)
        except Exception:
            # Serve tells its controller the last line only; where it happened belongs into this replica's log.
            log.exception("node %s could not be built", self._node)
            raise
        self._watch = LoopWatch(limit_s=BLOCKED_S, what=f"node {self._node}", advice=ADVICE, log=log)

    async def _build(self, args: dict[str, Any]) -> None:
        target = await asyncio.to_thread(_import, args)
        self._instance = NodeInstance(self._node, target, blocking=args.get("blocking"), batch_begins=count_batch)
        loop = asyncio.get_running_loop()

        def handle(node: str) -> NodeHandle:
            return NodeHandle(node, self._caller, loop)

        positional, keywords = constructor_arguments(args, handle)
        await self._instance.build(positional, keywords)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply a routing table, a limit of calls and the node's own ``userConfig``, each only where it changed.

        Raises what the user's ``reconfigure()`` raises only while the replica starts. Later that would be fatal: Serve
        stops a replica whose reconfiguration fails, and would stop all of them for one wrong value. The replica keeps
        the configuration that it has, and tells the error with its acknowledgement.
        """
        routes = user_config.get("routes") or {}
        self._instance.limit_calls(int(user_config.get("maxOngoingRequests") or 5))
        # {} is what a resource without userConfig has: nothing to hand over.
        if (own := user_config.get("userConfig") or None) != self._user_config or self._error:
            try:
                await self._instance.reconfigure(None if own is None else decode_value(own))
            except Exception as error:
                if not self._configured:
                    raise
                log.exception("node %s keeps its userConfig, since the new one cannot be applied", self._node)
                self._error = f"userConfig: {first_line(error)}"
            else:
                self._user_config, self._error = own, ""
        self._routes = Routes(routes)
        self._once = frozenset(user_config.get("notIdempotent") or ())
        self._holds = bool(routes)
        applications = {
            application_name(node, route["revision"]) for node, choices in routes.items() for route in choices
        }
        await self._caller.keep_only(applications)
        for application in applications:
            self._caller.handle(application)  # now, so that its router knows the replicas when weight comes
        self._table = user_config.get("table") or ""
        self._configured = True

    async def call(
        self, method: str | None, args: tuple[Any, ...], kwargs: dict[str, Any], context: RequestContext
    ) -> Any:
        """What `ServeCaller` calls. Raises `NodeFailure` with what the user's code raised."""
        if context.deadline is not None and context.deadline < time.time():
            raise pack(StepTimeoutError(f"the request's deadline passed before node {self._node} was called"))
        call_has_begun()
        current_request.set(context)
        self._busy += 1
        try:
            with cancel_nested_calls():
                return await self._instance.call(method, args, kwargs)
        except BaseException as error:
            if asked_for(error):
                raise
            raise pack(error) from error
        finally:
            self._busy -= 1

    async def record_replica_metadata(self) -> dict[str, Any]:
        """Serve's hook, called once when the replica has been built: what its controller tells to handles."""
        self._channel = await NodeChannel.open(self._application)
        return {} if self._channel is None else dict(self._channel.metadata)

    async def acknowledge(self) -> dict[str, Any]:
        """The table in force here and the requests under way, as ``/-/routing`` shows them."""
        return {
            "replica": serve.get_replica_context().replica_id.unique_id,
            "application": self._application,
            "table": self._table,
            "busy": {self._application: self._busy} if self._busy else {},
            "errors": {self._application: self._error} if self._error else {},
            "holds": self._holds,
        }

    async def check_health(self) -> None:
        await self._instance.check_health()

    async def __call__(self, request: Request) -> Response:
        """Refuses HTTP: every replica has a port of its own, and behind it none of the ingress's checks."""
        message = f"node {self._node} is called through the pipeline's ingress only"
        return JSONResponse({"error": {"code": "Forbidden", "message": message, "node": self._node}}, 403)

    async def __del__(self) -> None:
        # Serve calls and awaits this once, when the replica has no more requests.
        if (channel := getattr(self, "_channel", None)) is not None:
            await channel.close()
        if (caller := getattr(self, "_caller", None)) is not None:
            await caller.close()
        if (instance := getattr(self, "_instance", None)) is not None:
            await instance.close()
        if (watch := getattr(self, "_watch", None)) is not None:
            watch.close()

    def _pin(self, node: str) -> str | None:
        return self._routes.draw().revisions.get(node)


def _import(args: dict[str, Any]) -> Any:
    root = args.get("path")
    if args.get("code"):
        code.verify(args["code"], args["import"].partition(":")[0], Path(root) if root else None, node=args["node"])
    return loader.load_object(args["import"], root=root)
