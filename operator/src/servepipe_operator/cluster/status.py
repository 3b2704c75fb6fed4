"""`servepipe status` for pipelines in a cluster."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from servepipe_operator.cluster.connection import Connection, connect_as, run
from servepipe_operator.cluster.merging import OPS_MANAGER
from servepipe_operator.cluster.progress import snapshot
from servepipe_operator.cluster.waiting import follow
from servepipe_operator.engine.state import Json
from servepipe_operator.view import print_snapshot

__all__ = ["list_lines", "status"]

_HEADINGS = ("NAME", "AVAILABLE", "READY", "NODES", "UPGRADING", "URL", "AGE")


def status(arguments: argparse.Namespace) -> int:
    """`servepipe status [NAME]`: one pipeline, or a line for each where the namespace has several."""

    async def work() -> int:
        async with connect_as(OPS_MANAGER, arguments) as connection:
            stream = sys.stdout if arguments.output == "table" else sys.stderr
            if arguments.pipeline is None and not arguments.watch:
                pipelines = await connection.list()
                if len(pipelines) > 1:
                    print(f"{len(pipelines)} pipelines in {connection.place()}", file=stream, flush=True)
                    _print_list(pipelines, arguments.output, connection)
                    return 0
            live = await connection.get(arguments.pipeline)
            shown = snapshot(live, context=connection.context)
            url = f" ({shown['url']})" if shown["url"] else ""
            print(f"{shown['pipeline']} in {connection.place()}{url}", file=stream, flush=True)
            if arguments.watch:
                await follow(connection, shown["namespace"], shown["pipeline"], lambda live: (False, ""))
            elif not shown["status"] and arguments.output == "table":
                print("no operator has looked at it yet", flush=True)
            else:
                print_snapshot(shown, arguments.output)
            return 0

    return run(work())


def list_lines(pipelines: Sequence[Mapping[str, Any]], now: datetime) -> list[str]:
    """The same columns as ``kubectl get svp``."""
    rows = [_HEADINGS]
    for one in sorted(pipelines, key=lambda one: str(one["metadata"]["name"])):
        state = one.get("status") or {}
        held = {each["type"]: each["status"] for each in state.get("conditions") or ()}
        rows.append(
            (
                one["metadata"]["name"],
                held.get("Available", "-"),
                held.get("Ready", "-"),
                state.get("nodesReady") or "-",
                state.get("upgrading") or "-",
                state.get("url") or "-",
                _age(one["metadata"].get("creationTimestamp"), now),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _print_list(pipelines: Sequence[Json], output: str, connection: Connection) -> None:
    if output == "table":
        print("\n".join(list_lines(pipelines, datetime.now(UTC))), flush=True)
        return
    listed = {"items": [snapshot(one, context=connection.context) for one in pipelines]}
    if output == "json":
        print(json.dumps(listed, indent=2), flush=True)
    else:
        import yaml

        print(yaml.safe_dump(listed, sort_keys=False, allow_unicode=True).rstrip(), flush=True)


def _age(created: str | None, now: datetime) -> str:
    if created is None:
        return "-"
    seconds = max(int((now - datetime.fromisoformat(created)).total_seconds()), 0)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
