"""Nodes that run inside the ingress process, several revisions side by side.

A revision that cannot be imported or built fails the calls to it and nothing else: neither the table that names it nor
the replica. One that does not take a new ``userConfig`` goes on with the one that it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from servepipe.authoring import code, loader
from servepipe.graph.calls import NodeHandle, cancel_nested_calls
from servepipe.graph.expressions import decode_value
from servepipe.graph.instance import NodeInstance
from servepipe.runtime.arguments import constructor_arguments
from servepipe.runtime.batch_sizes import count_batch
from servepipe.runtime.inline_load import InlineLoad
from servepipe.runtime.problems import first_line
from servepipe.runtime.routing import not_ready

__all__ = ["InlineNodes"]

log = logging.getLogger("servepipe.ingress")


class _Inline:
    def __init__(self, node: str, instance: NodeInstance, holds: bool) -> None:
        self.node = node
        self.instance = instance
        self.holds = holds
        """Whether it has handles to other nodes."""
        self.user_config: Any = None
        self.configured = False


class InlineNodes:
    """Args:
    handle: Makes the handle to a node that an Inline class was bound to.
    """

    def __init__(self, handle: Callable[[str], NodeHandle]) -> None:
        self._handle = handle
        self._nodes: dict[str, _Inline] = {}
        self.errors: dict[str, str] = {}
        """By application name: the first line of why a revision could not be built."""
        self._load: InlineLoad | None = None

    def __contains__(self, application: str) -> bool:
        return application in self._nodes or application in self.errors

    def __iter__(self) -> Iterator[str]:
        return iter([*{**self._nodes, **self.errors}])

    async def ensure(self, application: str, node: str, spec: Mapping[str, Any]) -> None:
        """Build ``application`` unless it is there, and bring its live settings up to date. Never raises."""
        if self._load is None:
            self._load = InlineLoad(self._callable)
        try:
            if application not in self._nodes:
                self._nodes[application] = await self._build(node, spec)
            await self._configure(self._nodes[application], spec)
            self.errors.pop(application, None)
        except Exception as error:
            log.exception("inline node %s cannot be used", application)
            self.errors[application] = first_line(error)

    def call(
        self, application: str, node: str, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Call a revision that runs here. Raises `NotReadyError` where it could not be built."""
        inline = self._nodes.get(application)
        if inline is None or not inline.configured:
            return self._refuse(application, node)
        if inline.holds:
            return _with_nested_calls(inline.instance, method, args, kwargs)
        return inline.instance.call(method, args, kwargs)

    async def close(self, application: str) -> None:
        """Close and forget a revision; an error of its ``close()`` is logged."""
        self.errors.pop(application, None)
        inline = self._nodes.pop(application, None)
        if inline is not None:
            try:
                await inline.instance.close()
            except Exception:
                log.exception("closing inline node %s", application)

    def _callable(self) -> set[str]:
        return {inline.node for inline in self._nodes.values() if inline.configured}

    async def _build(self, node: str, spec: Mapping[str, Any]) -> _Inline:
        module = spec["import"].partition(":")[0]
        if spec.get("code"):
            await asyncio.to_thread(code.verify, spec["code"], module, node=node)
        target = await asyncio.to_thread(loader.load_object, spec["import"])
        instance = NodeInstance(node, target, blocking=spec.get("blocking"), batch_begins=count_batch)
        held: list[str] = []

        def handle(name: str) -> NodeHandle:
            held.append(name)
            return self._handle(name)

        await instance.build(*constructor_arguments(spec, handle))
        return _Inline(node, instance, holds=bool(held))

    async def _refuse(self, application: str, node: str) -> None:
        raise not_ready(node, f"could not be built: {self.errors.get(application, 'it is gone')}")

    async def _configure(self, inline: _Inline, spec: Mapping[str, Any]) -> None:
        inline.instance.limit_calls(int(spec.get("maxOngoingRequests") or 5))
        # {} is what a resource without userConfig has: nothing to hand over.
        if (own := spec.get("userConfig") or None) != inline.user_config:
            await inline.instance.reconfigure(None if own is None else decode_value(own))
            inline.user_config = own
        inline.configured = True


async def _with_nested_calls(
    instance: NodeInstance, method: str | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    with cancel_nested_calls():
        return await instance.call(method, args, kwargs)
