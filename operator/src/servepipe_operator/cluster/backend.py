"""What ``app.deploy("kubernetes")`` does: applies the resource, waits until it serves, and hands out a handle."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from servepipe.api.document import to_document
from servepipe.errors import RunError
from servepipe.graph.background import background
from servepipe_operator.adapters.kube_resource import PIPELINES
from servepipe_operator.cluster.apply import applied
from servepipe_operator.cluster.call import Route
from servepipe_operator.cluster.changes import kept_lines
from servepipe_operator.cluster.connection import (
    SILENCE_S,
    SILENT,
    ClusterError,
    Connection,
    connect,
    in_words,
    unanswered,
)
from servepipe_operator.cluster.handle import Handle
from servepipe_operator.cluster.merging import MANAGER
from servepipe_operator.cluster.progress import outcome
from servepipe_operator.engine.state import Json

__all__ = ["KubernetesBackend"]

POLL_S = 0.5


class KubernetesBackend:
    """Runs pipelines in a cluster in which the operator is installed.

    Args:
        context: Of the kubeconfig; by default its current one.
        namespace: By default the resource's own, else the context's.
        kubeconfig: A file; by default ``KUBECONFIG``, else ``~/.kube/config``.
        take_ownership: The resource wins over what others set, as with ``servepipe apply --take-ownership``.
        timeout_s: How long `deploy` waits until it serves.
    """

    def __init__(
        self,
        *,
        context: str | None = None,
        namespace: str | None = None,
        kubeconfig: str | Path | None = None,
        take_ownership: bool = False,
        timeout_s: float = 900.0,
    ) -> None:
        self._context, self._namespace = context, namespace
        self._kubeconfig = None if kubeconfig is None else str(kubeconfig)
        self._take_ownership, self._timeout_s = take_ownership, timeout_s
        self._open: AsyncExitStack | None = None

    def deploy(self, resource: Any, *, import_root: Path | None) -> Handle:
        """Apply ``resource``; returns when the operator reports that it is what serves.

        Args:
            resource: The ``ServePipeline``.
            import_root: Not used: the code is in the images.

        Raises:
            ClusterError: The cluster cannot be reached, or refuses.
            ServePipeError: Somebody else holds a field that the resource changes.
            RunError: The operator cannot get there, or not by the deadline.
        """
        return background.run(lambda: self._deploy(to_document(resource)))

    def shutdown(self) -> None:
        """Close the connections. The pipeline goes on: ``servepipe delete`` removes it."""
        opened, self._open = self._open, None
        if opened is not None:
            background.run(opened.aclose)

    async def _deploy(self, file: Json) -> Handle:
        if self._open is not None:
            await self._open.aclose()
        self._open = AsyncExitStack()
        connection = await self._open.enter_async_context(
            connect(MANAGER, kubeconfig=self._kubeconfig, context=self._context, namespace=self._namespace)
        )
        session = await self._open.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), cookie_jar=aiohttp.DummyCookieJar())
        )
        if connection.named:
            file["metadata"]["namespace"] = connection.namespace
        file["metadata"].setdefault("namespace", connection.namespace)
        notes: list[str] = []
        live, _ = await applied(
            connection,
            file,
            take_ownership=self._take_ownership,
            tell=lambda comparison: notes.extend(kept_lines(comparison.decision.kept)),
        )
        live = await self._serving(connection, live, notes)
        route = Route(connection, live, session)
        self._open.push_async_callback(route.close)
        return Handle(route, background.loop())

    async def _serving(self, connection: Connection, live: Json, notes: list[str]) -> Json:
        metadata = live["metadata"]
        now, heard, late = outcome(live, int(metadata["generation"])), time.monotonic(), False
        try:
            async with asyncio.timeout(self._timeout_s):
                while now.state == "waiting":
                    await asyncio.sleep(POLL_S)
                    try:
                        with in_words(connection):
                            live = await connection.kube.get(PIPELINES, metadata["namespace"], metadata["name"])
                    except ClusterError as error:
                        if not unanswered(error):
                            raise
                    else:
                        now, heard = outcome(live, int(metadata["generation"])), time.monotonic()
        except TimeoutError:
            late = True
        if now.state == "ready":
            return live
        after = f" after {self._timeout_s:.0f} s" if late else ""
        silence_s = time.monotonic() - heard
        silence = f"{SILENT} (for {silence_s:.0f} s); before that: " if late and silence_s >= SILENCE_S else ""
        raise RunError(
            f"{metadata['name']!r} is not ready{after}: {silence}{now.text}",
            where=connection.place(metadata["namespace"]),
            fix="\n".join(notes),
        )
