"""`servepipe logs` for a pipeline in a cluster: Serve's replicas log to files, and Ray's log API reads them."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

import aiohttp

from servepipe.errors import ServePipeError
from servepipe_operator.adapters.kube_errors import error_from
from servepipe_operator.cluster.connection import Connection, NotNowError, connect_as, message_of, run
from servepipe_operator.cluster.log_files import LogFile, known_nodes, log_files, whole_lines
from servepipe_operator.cluster.merging import OPS_MANAGER
from servepipe_operator.cluster.reach import RayDashboard, dashboard, proxied_instead
from servepipe_operator.engine.state import Json
from servepipe_operator.ports import UnreachableError

__all__ = ["Reader", "logs"]

TAIL = 1000
INTERVAL_S = 0.5
LOOK_S = 5.0
RETRY_S = 2.0
TIMEOUT_S = 30.0


def logs(arguments: argparse.Namespace) -> int:
    """`servepipe logs NODE`: each line with the revision and the replica that wrote it."""
    if arguments.follow and arguments.previous:
        raise ServePipeError("What has ended writes nothing more", fix="Take -f or --previous, not both.")

    async def work() -> int:
        async with connect_as(OPS_MANAGER, arguments) as connection:
            live = await connection.get(arguments.pipeline)
            print(f"{live['metadata']['name']} in {connection.place()}", file=sys.stderr, flush=True)
            _refuse_without_replicas(live, arguments.node)
            tail = arguments.tail or TAIL
            if arguments.follow:
                await _follow(connection, live, arguments.node, tail)
            async with _reachable(connection, live, _Told()) as ray:
                await Reader(ray, tail).show(arguments.node, follow=False, previous=arguments.previous)
            return 0

    return run(work())


async def _follow(connection: Connection, live: Json, node: str, tail: int) -> NoReturn:
    """Until Ctrl-C. Once there was something to read, a head that does not answer or is replaced is waited for."""
    told = _Told()
    begun = False
    while True:
        try:
            if begun:
                live = await connection.get(live["metadata"]["name"])
            async with _reachable(connection, live, told) as ray:
                reader = Reader(ray, tail)
                try:
                    await reader.show(node, follow=True, previous=False)
                finally:
                    if reader.begun:
                        begun = True
                        told.forget()
        except NotNowError as error:
            if not begun:
                raise
            told(f"{error.where}: {error.what}; lines may be missing or repeated until it answers again")
        await asyncio.sleep(RETRY_S)


class _Told:
    """Says on stderr what is not a line of the logs, each thing once until it is forgotten."""

    def __init__(self) -> None:
        self._lines: set[str] = set()

    def __call__(self, line: str) -> None:
        if line not in self._lines:
            print(f"({line})", file=sys.stderr, flush=True)
        self._lines.add(line)

    def forget(self) -> None:
        self._lines.clear()


@asynccontextmanager
async def _reachable(connection: Connection, live: Json, told: Callable[[str], None]) -> AsyncIterator[RayDashboard]:
    """The pipeline's dashboard, and errors in the words of people."""
    async with dashboard(connection, live) as ray:
        if ray.way.instead:
            told(proxied_instead(ray.way.instead))
        try:
            yield ray
        except (UnreachableError, aiohttp.ClientError, TimeoutError) as error:
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise NotNowError(
                f"Ray's dashboard cannot be read: {reason}",
                where=ray.way.where,
                fix=ray.way.fix,
            ) from None


def _refuse_without_replicas(live: Json, node: str) -> None:
    """Raises `ServePipeError` for a node that is not there, or that runs in the ingress."""
    nodes = live["spec"]["nodes"]
    if node != "ingress" and node not in nodes and node not in ((live.get("status") or {}).get("nodes") or {}):
        raise ServePipeError(
            f"There is no node {node!r}", fix=f"The nodes are: {', '.join(sorted(nodes))}; and ingress."
        )
    if nodes.get(node, {}).get("placement") == "Inline":
        raise ServePipeError(
            f"{node!r} runs in the ingress process", fix="Its lines are there: servepipe logs ingress."
        )


class Reader:
    """Reads the files of one pipeline's replicas and prints their lines.

    Args:
        ray: Its dashboard.
        tail: How many lines of each file to begin with.

    Attributes:
        begun: Whether the dashboard has said which files there are.
    """

    def __init__(self, ray: RayDashboard, tail: int) -> None:
        self.begun = False
        self._ray, self._tail = ray, tail

    async def show(self, node: str, *, follow: bool, previous: bool) -> None:
        """Print what there is, and with ``follow`` go on, with new replicas too.

        Raises:
            UnreachableError: The dashboard refuses; also what aiohttp raises where it does not answer.
        """
        files = await self._files(node, previous)
        if follow:
            await self._follow(node)
        elif not files:
            what = "no replica that ended lately" if previous else "no replica"
            print(f"{node} has {what}", file=sys.stderr, flush=True)
        for file in files if not follow else ():
            async for line in self._lines(file, "file"):
                print(f"{file.prefix} | {line}", flush=True)

    async def _follow(self, node: str) -> None:
        tasks: dict[LogFile, asyncio.Task[None]] = {}
        try:
            while True:
                for file in await self._files(node, False):
                    if file not in tasks or _broke_off(tasks[file]):
                        tasks[file] = asyncio.create_task(self._print(file))
                await asyncio.sleep(LOOK_S)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _print(self, file: LogFile) -> None:
        async for line in self._lines(file, "stream"):
            print(f"{file.prefix} | {line}", flush=True)

    async def _files(self, node: str, previous: bool) -> tuple[LogFile, ...]:
        async with self._ray.get("/api/serve/applications/", timeout_s=TIMEOUT_S) as response:
            if response.status != 200:
                raise await _refusal(response)
            details = await response.json()
        self.begun = True
        if not previous and node not in known_nodes(details):
            return ()
        return log_files(details, node, previous=previous)

    async def _lines(self, file: LogFile, media: str) -> AsyncIterator[str]:
        """The lines of one file; one that is not there has none."""
        query = {**dict(file.query), "lines": str(self._tail)}
        timeout_s: float | None = TIMEOUT_S
        if media == "stream":
            query["interval"], timeout_s = str(INTERVAL_S), None
        rest = b""
        async with self._ray.get(f"/api/v0/logs/{media}", query, timeout_s=timeout_s) as response:
            if response.status == 500:
                return  # Ray's answer for a file that a process has not opened, or that is gone
            if response.status != 200:
                raise await _refusal(response)
            async for chunk in response.content.iter_any():
                lines, rest = whole_lines(rest, chunk)
                for line in lines:
                    yield line
        if rest:
            yield rest.decode(errors="replace")


async def _refusal(response: aiohttp.ClientResponse) -> UnreachableError:
    """What Ray says, or the API server where it is between."""
    error = error_from("logs", response.status, await response.text(), response.headers)
    return UnreachableError(f"HTTP {response.status}: {message_of(error)[:500]}")


def _broke_off(task: asyncio.Task[None]) -> bool:
    """Whether reading has to begin again; raises what has nothing to do with the cluster, like a closed pipe."""
    error = task.exception() if task.done() else None
    if error is None:
        return False
    if not isinstance(error, UnreachableError | aiohttp.ClientError | TimeoutError):
        raise error
    print(f"(read again, lines may be repeated: {str(error) or type(error).__name__})", file=sys.stderr, flush=True)
    return True
