"""`servepipe apply` and `servepipe diff` against a cluster.

One try of an apply: read the object, decide what to send (`merging`), have the API server rehearse it, show the
difference, send it. An object that changes in between is read and decided about again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass

from servepipe.api.document import to_document
from servepipe.cli.difference import print_difference
from servepipe.cli.files import read_pipeline
from servepipe.errors import ServePipeError
from servepipe_operator.adapters.kube_errors import Conflict, KubeError
from servepipe_operator.adapters.kube_resource import PIPELINES
from servepipe_operator.cluster.changes import conflict, difference, foreign_lines, kept_lines
from servepipe_operator.cluster.connection import ClusterError, Connection, connect_as, in_words, run
from servepipe_operator.cluster.fields import Path, handed_over
from servepipe_operator.cluster.merging import MANAGER, Decision, decide
from servepipe_operator.cluster.waiting import wait_until_ready
from servepipe_operator.engine.state import Json

__all__ = ["Comparison", "applied", "apply", "compare", "diff"]

ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Comparison:
    """What applying a file would do.

    Args:
        live: The object as it is, None where there is none.
        decision: What is sent.
        result: The object as it would be.
    """

    live: Json | None
    decision: Decision
    result: Json

    @property
    def lines(self) -> list[str]:
        """The unified diff; none where applying changes nothing."""
        return difference(self.live, self.result, ("live", "after apply"))


def apply(arguments: argparse.Namespace) -> int:
    """`servepipe apply` for a cluster; see the command's help for the exit status."""

    async def work() -> int:
        async with connect_as(MANAGER, arguments) as connection:
            file = resource_of(arguments.file, connection)
            name, place = file["metadata"]["name"], connection.place(file["metadata"]["namespace"])
            if arguments.pipeline not in (None, name):
                raise ServePipeError(
                    f"The file is the pipeline {name!r}, not {arguments.pipeline!r}", where=arguments.file
                )
            print(f"{name} in {place}", flush=True)
            result, changed = await applied(
                connection, file, take_ownership=arguments.take_ownership, dry_run=arguments.dry_run, tell=_tell
            )
            if arguments.dry_run:
                print("Nothing was changed: --dry-run")
                return 0
            print(f"{name} {changed}", flush=True)
            if not arguments.wait:
                return 0
            try:
                status, text = await wait_until_ready(connection, result, arguments.timeout)
            except asyncio.CancelledError:  # Ctrl-C
                print("Not waited for any longer; what was applied goes on.", file=sys.stderr)
                raise
            print(text, file=sys.stdout if status == 0 else sys.stderr)
            return status

    return run(work())


def diff(arguments: argparse.Namespace) -> int:
    """`servepipe diff FILE`: 0 nothing would change, 1 something would; fields that stay as ops made them are named."""

    async def work() -> int:
        async with connect_as(MANAGER, arguments) as connection:
            file = resource_of(arguments.old, connection)
            comparison = await compare(connection, file)
            _notes(comparison.decision)
            print_difference(comparison.lines)
            return 1 if comparison.lines else 0

    return run(work())


def resource_of(argument: str, connection: Connection) -> Json:
    """The valid resource of a file, with its namespace. Raises `ServePipeError`."""
    file = to_document(read_pipeline(argument).resource)
    stated = file["metadata"].setdefault("namespace", connection.namespace)
    if connection.named and stated != connection.namespace:
        raise ServePipeError(
            f"The file is for namespace {stated!r}, the command line for {connection.namespace!r}",
            where=argument,
            fix="Take one of them out.",
        )
    return file


async def compare(connection: Connection, file: Json, *, take_ownership: bool = False) -> Comparison:
    """Have the API server rehearse an apply. Raises `ServePipeError` where it would refuse."""
    live = await connection.find(file["metadata"]["name"], file["metadata"]["namespace"])
    decision = decide(file, live, take_ownership=take_ownership)
    with in_words(connection):
        try:
            answer = await connection.kube.apply(
                PIPELINES, decision.rehearsal or file, force=take_ownership, dry_run=True
            )
        except Conflict as error:
            raise (conflict(error.causes, file, live) or ClusterError(str(error))) from error
    return Comparison(live, decision, decision.rehearsed(answer))


async def applied(
    connection: Connection,
    file: Json,
    *,
    take_ownership: bool = False,
    dry_run: bool = False,
    tell: Callable[[Comparison], None] = lambda comparison: None,
) -> tuple[Json, str]:
    """Apply a resource.

    Args:
        tell: Told what will happen before anything does.

    Returns:
        The object as it is then, and what happened to it: ``created``, ``changed`` or ``unchanged``.

    Raises:
        ServePipeError: It is refused, or others hold fields that it changes.
    """
    told: list[str] | None = None
    for attempts_left in reversed(range(ATTEMPTS)):
        comparison = await compare(connection, file, take_ownership=take_ownership)
        if told != comparison.lines:
            told = comparison.lines
            tell(comparison)
        if dry_run:
            return comparison.result, "unchanged"
        live, decision = comparison.live, comparison.decision
        try:
            if live is not None and decision.handed:
                await _hand_over(connection, live, decision.handed)
            result = await connection.kube.apply(PIPELINES, decision.body, force=take_ownership)
        except Conflict as error:
            if attempts_left:
                continue  # somebody was faster: what stays as it is may be another field now
            with in_words(connection):
                raise (conflict(error.causes, file, live) or error) from error
        except KubeError:
            with in_words(connection):
                raise
        if live is None:
            return result, "created"
        same = result["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]
        return result, "unchanged" if same else "changed"
    raise AssertionError("unreachable")


async def _hand_over(connection: Connection, live: Json, paths: tuple[Path, ...]) -> None:
    """Make fields of others ours, so that applying without them removes them. Values do not change.

    Raises `Conflict` when the object changed since it was read.
    """
    metadata = live["metadata"]
    await connection.kube.json_patch(
        PIPELINES,
        metadata["namespace"],
        metadata["name"],
        [
            {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
            {"op": "replace", "path": "/metadata/managedFields", "value": handed_over(live, paths, MANAGER)},
        ],
    )


def _tell(comparison: Comparison) -> None:
    _notes(comparison.decision)
    if comparison.live is None:
        nodes = comparison.result["spec"]["nodes"]
        print(f"new, with {len(nodes)} node{'s' if len(nodes) > 1 else ''}: {', '.join(nodes)}", flush=True)
        return
    print_difference(comparison.lines)


def _notes(decision: Decision) -> None:
    for line in [*kept_lines(decision.kept), *foreign_lines(decision.foreign)]:
        print(line, flush=True)
    if decision.kept:
        print("(the file wins with --take-ownership)", flush=True)
