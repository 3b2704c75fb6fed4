"""The deployment that callers talk to: it holds the graph and the weights, and runs a request through the nodes.

Everything that a request needs is in one `_State`, made when the table changes and swapped in one assignment, so that a
request never sees half of a change. One whose body takes long to come meets two: it runs by the graph that it was read
for, and draws its revisions when it begins to run.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from google.protobuf.wrappers_pb2 import BytesValue
from grpc import StatusCode
from ray import serve

from servepipe.authoring import code, loader
from servepipe.errors import RequestError
from servepipe.graph.calls import NodeHandle, RequestContext, current_request, new_request_id
from servepipe.graph.interpreter import run
from servepipe.graph.ir import Const
from servepipe.graph.program import Program
from servepipe.graph.wire import parse_graph
from servepipe.runtime import access_log, direct_http, versions
from servepipe.runtime.answers import encode_answer, encode_json
from servepipe.runtime.grpc_service import STATUS_CODES
from servepipe.runtime.http import Hook, HttpApp
from servepipe.runtime.http_request import Receive, Send, arguments, request_id_of, too_large
from servepipe.runtime.inline import InlineNodes
from servepipe.runtime.interface import Interface
from servepipe.runtime.loop_watch import LoopWatch
from servepipe.runtime.node_counts import NodeCounts
from servepipe.runtime.observer import Observer
from servepipe.runtime.printing import mend_print
from servepipe.runtime.problems import first_line, problem_of
from servepipe.runtime.routing import InFlight, Places, Routes, application_name
from servepipe.runtime.serve_caller import ServeCaller
from servepipe.runtime.transport import pack, unpack

__all__ = ["Ingress"]

log = logging.getLogger("servepipe.ingress")

BLOCKED_S = 0.2
"""How long code may keep the ingress's event loop without a warning, seconds."""

MOST_OF_THE_LOOP = 0.25
"""Which share of the loop's time a function may take without one."""

YOUNG_OBJECTS = 10_000
"""So many objects may be made, and not freed by themselves, until Python looks for cycles among them. A request leaves
none; of Python's own 700 there are as many whenever some tens of requests run at a time, and to look for cycles among
what they use took a twentieth of the ingress's time."""

ADVICE = (
    "No other request is answered meanwhile. In an Inline node: give it processes of its own, with placement: "
    "Dedicated. In a preprocessor or postprocessor: make it sync, or put what blocks into "
    "`await asyncio.to_thread(...)`."
)


class Ingress:
    """Args:
    args: As in "What runs in Ray" of the architecture page: pipeline, paths, codes, preprocessor, postprocessor, the
        digests of both, attempt; and the builder's versions (`servepipe.runtime.versions`).
    """

    _preprocessor: Hook | None
    _postprocessor: Hook | None

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        versions.verify(args)
        access_log.leave_out()
        mend_print()
        _look_for_cycles_less_often()
        direct_http.watch_callers()
        self._watch = LoopWatch(limit_s=BLOCKED_S, what="the ingress", advice=ADVICE, log=log, most=MOST_OF_THE_LOOP)
        self._set_up(args["pipeline"], serve.get_replica_context().app_name)
        loader.only_imports()
        sys.path[:0] = [path for path in args.get("paths") or [] if path not in sys.path]
        self._preprocessor = await asyncio.to_thread(_hook, args.get("preprocessor"), args.get("preprocessorCode"))
        self._postprocessor = await asyncio.to_thread(_hook, args.get("postprocessor"), args.get("postprocessorCode"))

    def _set_up(self, pipeline: str, application: str) -> None:
        """All that needs no Serve around it: an ingress without hooks and without a table."""
        self._pipeline = pipeline
        self._application = application
        self._state: _State | None = None
        self._coming: _State | None = None
        self._former: list[_State] = []
        self._in_flight = InFlight()
        self._counts = NodeCounts()
        self._calls = _Calls(self)
        self._error = ""
        self._serve_caller = ServeCaller(self._pin, self._is_off, self._is_idempotent)
        self._observer = Observer(application, self._serve_caller.handle, self._serve_caller.answered)
        self._inline = InlineNodes(lambda node: NodeHandle(node, self._calls, asyncio.get_running_loop()))
        self._retiring: set[asyncio.Task[None]] = set()
        self._preprocessor = self._postprocessor = None

    def __serve_build_asgi_app__(self) -> Any:
        async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await HttpApp(_no_run, _NOTHING)(scope, receive, send)
            elif self._state is None:
                await HttpApp(_no_run, _NOTHING, endpoints={"/-/ready": self._ready})(scope, receive, send)
            else:
                state = self._state
                state.requests += 1
                try:
                    await state.http(scope, receive, send)
                finally:
                    state.requests -= 1

        return app

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take a new table: prepare all of it, then swap.

        Raises what is wrong with the graph only while the replica starts. Later that would be fatal: Serve stops a
        replica whose reconfiguration fails. The replica keeps the table that it has, and tells the error with its
        acknowledgement.
        """
        try:
            state = _State(user_config, self)
        except Exception as error:
            if self._state is None:
                raise
            log.exception("table %s cannot be applied; %s stays", user_config.get("table"), self._state.table)
            self._error = first_line(error)
            return
        self._error = ""
        self._coming = state
        for application, (node, spec) in state.places.inline.items():
            await self._inline.ensure(application, node, spec)
        for application in state.places.dedicated:
            self._serve_caller.handle(application)  # now, so that its router knows the replicas when weight comes
        if self._state is not None and self._state.graph != state.graph:
            self._former.append(self._state)
        self._state, self._coming = state, None
        task = asyncio.create_task(self._retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph for a Serve handle, with Python values and without preprocessor and postprocessor."""
        try:
            return await self._run_state(self._current(), args, kwargs)
        except Exception as error:
            failure = pack(error)
            # An exception that cannot be pickled would end as a serialization error that names nothing.
            raise error if failure.pickled is not None else unpack(failure)  # noqa: B904

    async def Run(self, request: BytesValue, grpc_context: Any) -> BytesValue:  # noqa: N802 - the method's name in gRPC
        """Run the graph for gRPC; see `servepipe.runtime.grpc_service`."""
        interface = _NOTHING if self._state is None else self._state.interface
        metadata = {str(key).lower(): value for key, value in grpc_context.invocation_metadata()}
        request_id = request_id_of([(b"x-request-id", str(metadata.get("request_id", "")).encode())])
        try:
            state = self._current()
            if len(request.value) > state.max_body_bytes:
                raise too_large(state.max_body_bytes)
            args, kwargs = arguments(request.value, interface)
            body, content_type = encode_answer(await self._run_state(state, args, kwargs, request_id=request_id))
        except Exception as error:
            problem = problem_of(error, interface)
            if problem.status >= 500:
                log.error("request %s: %s", request_id, problem.message, exc_info=problem.log_exception)
            grpc_context.set_code(STATUS_CODES.get(problem.status, StatusCode.UNKNOWN))
            # Serve cuts details off at 4096 characters, and half a JSON object is none.
            told = replace(problem, message=problem.message[:2000])
            grpc_context.set_details(encode_json(told.body(request_id)).decode())
            raise
        grpc_context.set_trailing_metadata([("content-type-of-value", content_type.decode())])
        return BytesValue(value=body)

    async def acknowledge(self) -> dict[str, Any]:
        """The table in force here and the requests under way, as ``/-/routing`` shows them."""
        return {
            "replica": serve.get_replica_context().replica_id.unique_id,
            "application": self._application,
            "table": "" if self._state is None else self._state.table,
            "busy": self._busy(),
            "errors": self._inline.errors | ({self._application: self._error} if self._error else {}),
        }

    def _busy(self) -> dict[str, int]:
        """How many requests under way may call each application."""
        busy = Counter(self._in_flight.by_application())
        for state in self._used():
            for application in (*state.places.inline, *state.places.dedicated):
                busy[application] = max(busy[application], state.requests)
        return dict(busy)

    async def call(
        self, node: str, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], context: RequestContext
    ) -> Any:
        """Call one node as the graph does, for a Serve handle. See `servepipe.graph.calls.Caller.call`."""
        return await self._call(node, method, args, kwargs, context)

    def _call(
        self, node: str, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], context: RequestContext
    ) -> Coroutine[Any, Any, Any]:
        revision = context.pins.get(node) or self._pin(node)
        if revision is None:
            return self._serve_caller.call(node, method, args, kwargs, context)
        if (application := application_name(node, revision)) not in self._inline:
            call = self._serve_caller.call(node, method, args, kwargs, context)
        else:
            call = self._inline.call(application, node, method, args, kwargs)
            if current_request.get() is not context:
                call = _within(context, call)
        return self._counts.counted(node, revision, context.deadline, call)

    def _pin(self, node: str) -> str | None:
        return None if self._state is None else self._state.routes.draw().revisions.get(node)

    def _is_off(self, node: str) -> bool:
        return self._state is not None and node in self._state.places.off

    def _is_idempotent(self, node: str) -> bool:
        return self._state is None or node not in self._state.places.once

    # Requests

    def _current(self) -> _State:
        if self._state is None:
            raise RequestError("the ingress has no graph yet", status=503, code="NotReady")
        return self._state

    async def _run_state(
        self,
        state: _State,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        request_id: str | None = None,
        deadline: float | None = None,
    ) -> Any:
        if self._state is not None and self._state is not state and self._state.graph == state.graph:
            state = self._state  # what the former one names may be gone
        pins = state.routes.draw()
        if deadline is None and state.timeout_s is not None:
            deadline = time.time() + state.timeout_s
        context = RequestContext(request_id or new_request_id(), deadline, pins.revisions)
        self._in_flight.begin(pins)
        try:
            return await run(state.program, args, kwargs, self._calls, context)
        finally:
            self._in_flight.end(pins)

    async def _retire(self) -> None:
        """Close Inline revisions and drop handles that the table no longer has, once no request may use them.

        What a table that is being prepared needs stays: this may still be waiting when the next one comes. So does what
        a former graph needs whose requests are still being read.
        """
        while True:
            busy = self._in_flight.by_application()
            unused = [name for name in self._inline if not self._needed(name)]
            for application in [name for name in unused if name not in busy]:
                # Closing one runs the user's code, and a table may come meanwhile that needs the next.
                if not self._needed(application):
                    await self._inline.close(application)
            if not self._used() and not any(name in busy for name in unused):
                used = {name for state in self._tables() for name in state.places.dedicated}
                await self._serve_caller.keep_only(used | busy.keys())
                return
            await asyncio.sleep(1.0)

    def _needed(self, inline: str) -> bool:
        return any(inline in state.places.inline for state in self._tables())

    def _tables(self) -> list[_State]:
        """The table in force and the one that is being prepared, where there are; and those of graphs in use."""
        return [state for state in (self._state, self._coming, *self._used()) if state is not None]

    def _used(self) -> list[_State]:
        """Tables of other graphs than the present one that requests still run by."""
        self._former = [state for state in self._former if state.requests]
        return self._former

    # Endpoints

    async def _ready(self) -> tuple[int, Any]:
        state = self._state
        if state is None:
            return 503, {"ready": False, "notReady": [], "message": "the ingress has no graph yet"}
        waiting = [node for node, name in state.places.inline_nodes.items() if name in self._inline.errors]
        try:
            waiting += await self._observer.not_ready(state.places.dedicated_nodes)
        except Exception as error:
            message = f"Serve's controller does not say which nodes run: {first_line(error)}"
            return 503, {"ready": False, "notReady": sorted(waiting), "message": message}
        return (503 if waiting else 200), {"ready": not waiting, "notReady": sorted(waiting)}

    async def _graph(self) -> tuple[int, Any]:
        state = self._current()
        return 200, state.description

    async def _routing(self) -> tuple[int, Any]:
        return 200, {"replicas": await self._observer.acknowledgements()}


class _Calls:
    """The `servepipe.graph.calls.Caller` of the interpreter, and of handles inside Inline nodes."""

    def __init__(self, ingress: Ingress) -> None:
        self.call = ingress._call


class _State:
    """One table, prepared. Raises what `parse_graph` and `Program` raise: Serve then keeps the replica from serving.

    Attributes:
        requests: How many HTTP requests began with it and have not ended.
    """

    def __init__(self, config: dict[str, Any], ingress: Ingress) -> None:
        graph = parse_graph(config["graph"])
        nodes: dict[str, Any] = config["nodes"]
        self.table: str = config["table"]
        self.graph: Any = config["graph"]
        self.requests = 0
        self.program = Program(graph)
        self.interface = Interface.of(graph)
        self.routes = Routes({name: node["routes"] for name, node in nodes.items()})
        self.places = Places(nodes)
        self.timeout_s: float | None = config.get("requestTimeoutSeconds")
        self.max_body_bytes: int = config.get("maxBodyBytes") or 104_857_600
        self.description = {
            "pipeline": config.get("pipeline", ""),
            "graphRevision": config.get("graphRevision", ""),
            "table": self.table,
            "graph": config["graph"],
            "nodes": {
                name: {
                    "routes": [{"revision": route["revision"], "weight": route["weight"]} for route in node["routes"]],
                    "placement": "Inline" if name in self.places.inline_nodes else "Dedicated",
                    "off": name in self.places.off,
                }
                for name, node in nodes.items()
            },
        }

        self.http = HttpApp(
            partial(ingress._run_state, self),
            self.interface,
            preprocessor=ingress._preprocessor,
            postprocessor=ingress._postprocessor,
            endpoints={"/-/ready": ingress._ready, "/-/graph": ingress._graph, "/-/routing": ingress._routing},
            max_body_bytes=self.max_body_bytes,
            timeout_s=self.timeout_s,
            sends_request_id=False,  # Serve's servers do
        )


_NOTHING = Interface((), Const(None))


async def _within(context: RequestContext, call: Coroutine[Any, Any, Any]) -> Any:
    """The call of a handle that was made outside a request."""
    token = current_request.set(context)
    try:
        return await call
    finally:
        current_request.reset(token)


async def _no_run(args: Any, kwargs: Any, *, request_id: str, deadline: float | None) -> Any:
    raise RequestError("the ingress has no graph yet", status=503, code="NotReady")


def _look_for_cycles_less_often() -> None:
    if 0 < gc.get_threshold()[0] < YOUNG_OBJECTS:  # 0: somebody wants none of it
        gc.set_threshold(YOUNG_OBJECTS)


def _hook(import_path: str | None, digest: str | None) -> Hook | None:
    if not import_path:
        return None
    if digest:
        code.verify(digest, import_path.partition(":")[0])
    return Hook(import_path, loader.load_object(import_path))
