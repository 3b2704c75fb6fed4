"""Runs a graph in the author's process: every node is an object here, and a call is a call."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from servepipe.errors import GraphError, RequestError
from servepipe.graph.background import background
from servepipe.graph.calls import NodeDefinition, NodeHandle, RequestContext, cancel_nested_calls, current_request
from servepipe.graph.containers import constructor_arguments
from servepipe.graph.fields import did_you_mean
from servepipe.graph.instance import NodeInstance
from servepipe.graph.interpreter import run
from servepipe.graph.ir import Graph, NodeRef, parts
from servepipe.graph.program import Program

__all__ = ["InProcessCaller", "Runner"]

log = logging.getLogger("servepipe.graph")


class InProcessCaller:
    """A `Caller` that builds each node once, when it is first called, and keeps it. Lives on one event loop.

    Args:
        nodes: All nodes by name, also those that only other nodes call.
        fakes: Objects that stand for some of them; their hooks are not called.

    Raises:
        GraphError: A fake has the name of no node, or is a class.
    """

    def __init__(self, nodes: Mapping[str, NodeDefinition], fakes: Mapping[str, Any] | None = None) -> None:
        self._nodes = nodes
        self._fakes = dict(fakes or {})
        for name, fake in self._fakes.items():
            if name not in nodes:
                raise GraphError(f"there is no node {name!r} to replace by a fake", fix=did_you_mean(name, nodes))
            if isinstance(fake, type):
                raise GraphError(f"the fake of node {name!r} is a class", fix=f"Give an object: {fake.__name__}().")
        self._instances: dict[str, NodeInstance] = {}
        self._building: dict[str, asyncio.Task[NodeInstance]] = {}
        self._holders = {
            name
            for name, node in nodes.items()
            for top in (*node.args, *(value for _, value in node.kwargs))
            for part in parts(top)
            if isinstance(part, NodeRef)
        }

    async def call(
        self, node: str, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], context: RequestContext
    ) -> Any:
        """See `servepipe.graph.calls.Caller.call`."""
        instance = self._instances.get(node) or await self._built(node)
        if current_request.get() is not context:  # the call of a handle that was made outside a request
            current_request.set(context)
        if node not in self._holders:
            return await instance.call(method, args, kwargs)
        with cancel_nested_calls():
            return await instance.call(method, args, kwargs)

    async def build_all(self) -> None:
        """Build every node that is not built yet, all at once. Raises what the first failing constructor raises."""
        await asyncio.gather(*(self._built(name) for name in self._nodes))

    async def close(self) -> None:
        """Call ``close()`` of every node that was built; what they raise is logged."""
        instances, self._instances = self._instances, {}
        self._building = {}
        for name, instance in instances.items():
            try:
                await instance.close()
            except Exception:
                log.exception("close() of node %s failed", name)

    async def _built(self, name: str) -> NodeInstance:
        building = self._building.get(name)
        if building is None:
            building = self._building[name] = asyncio.create_task(self._build(name))
        try:
            # Whoever asked first may be cancelled; the others still need the node.
            return await asyncio.shield(building)
        except Exception:
            # The next call tries again: what was missing may be there by then.
            if self._building.get(name) is building:
                del self._building[name]
            raise

    async def _build(self, name: str) -> NodeInstance:
        try:
            node = self._nodes[name]
        except KeyError:
            fix = did_you_mean(name, self._nodes)
            raise GraphError(f"there is no node {name!r}", fix=fix) from None
        target = self._fakes.get(name, node.target)
        instance = NodeInstance(name, target, blocking=node.blocking, max_ongoing_requests=node.max_ongoing_requests)
        if name not in self._fakes:
            current_request.set(None)  # a node outlives the request that happens to need it first
            loop = asyncio.get_running_loop()
            args, kwargs = constructor_arguments(node.args, node.kwargs, lambda held: NodeHandle(held, self, loop))
            await instance.build(args, kwargs)
            if node.user_config:  # {} is what a resource without userConfig has
                await instance.reconfigure(node.user_config)
        self._instances[name] = instance
        return instance


class Runner:
    """Runs one graph again and again on the background loop.

    Args:
        graph: The graph.
        nodes: Its nodes by name.
        fakes: Objects that stand for some of the nodes.

    Raises:
        GraphError: The graph is wrong, or a fake has the name of no node.
    """

    def __init__(
        self, graph: Graph, nodes: Mapping[str, NodeDefinition], fakes: Mapping[str, Any] | None = None
    ) -> None:
        self.program = Program(graph)
        self._nodes = nodes
        self._fakes = fakes
        self._caller = InProcessCaller(nodes, fakes)
        self._loop: asyncio.AbstractEventLoop | None = None
        _runners.add(self)

    def execute(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, context: RequestContext | None = None
    ) -> Any:
        """Run the graph and wait for its answer, from any thread that is not the graph's own.

        Args:
            args: The input's positional arguments.
            kwargs: Its keyword arguments.
            context: Request id and deadline; None: a new id, no deadline.

        Raises:
            BadRequestError: The graph reads an input that the arguments do not have.
            RequestError: Called from an async method of a node, which would wait for itself.
            Exception: What a node raised, as itself.
        """
        self._refuse_own_loop("execute")
        return background.run(lambda: self._run(args, kwargs, context))

    async def execute_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, context: RequestContext | None = None
    ) -> Any:
        """As `execute`, from any event loop; being cancelled cancels the request."""
        return await background.run_async(lambda: self._run(args, kwargs, context))

    def build(self) -> None:
        """Build all nodes now instead of when they are first called. Raises what a constructor raises."""
        self._refuse_own_loop("build")
        background.run(self._current_caller_builds)

    def reset(self) -> None:
        """Close the nodes that were built; the next call builds new ones. Not while a request runs."""
        caller, self._caller = self._caller, InProcessCaller(self._nodes, self._fakes)
        if self._loop is not None:
            self._refuse_own_loop("reset")
            background.run(caller.close)

    async def _run(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None, context: RequestContext | None) -> Any:
        return await run(self.program, args, kwargs or {}, self._here(), context or RequestContext())

    async def _current_caller_builds(self) -> None:
        await self._here().build_all()

    def _here(self) -> InProcessCaller:
        """The caller for the running loop, which is another one in a forked child."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                self._caller = InProcessCaller(self._nodes, self._fakes)
            self._loop = loop
        return self._caller

    def _refuse_own_loop(self, what: str) -> None:
        if background.is_current():
            raise RequestError(
                f"{what}() inside a node's async method would wait for the event loop that it runs on",
                fix="Write `await ...execute_async(...)`." if what == "execute" else "",
            )


_runners: weakref.WeakSet[Runner] = weakref.WeakSet()


async def _close_runners() -> None:
    for runner in tuple(_runners):
        await runner._caller.close()


background.at_end(_close_runners)
