"""What `servepipe up`, `status` and `apply` show: a live table in a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:  # `servepipe status` needs nothing of the engine, whose import takes longer than all that it does
    from servepipe_operator.engine.state import Event, Json

__all__ = [
    "NodeRow",
    "PlainView",
    "QuietView",
    "RichView",
    "View",
    "condition_lines",
    "follow",
    "node_rows",
    "print_snapshot",
    "status_lines",
    "trouble_lines",
    "view_for",
]

FOLLOW_S = 1.0
INTERRUPTED = 130
NodeRow = tuple[str, str, str, str, str]
HEADINGS: NodeRow = ("NODE", "REVISION", "READY", "WEIGHT", "STATE")


class View(Protocol):
    """No method raises `OSError`: a reader that has gone (``| head``, a closed terminal) ends nothing that serves."""

    def say(self, text: str) -> None: ...
    def event(self, event: Event) -> None: ...
    def show(self, snapshot: Json) -> None: ...
    def close(self) -> None: ...


def node_rows(status: Mapping[str, Any]) -> list[NodeRow]:
    """One row per node, and a second one for a revision that is on its way in."""
    rows: list[NodeRow] = []
    for name, node in sorted((status.get("nodes") or {}).items()):
        candidate = node.get("candidate") or {}
        failed = node.get("failedRevision") or {}
        weight = candidate.get("weight", 0)
        state = node.get("state") or ("stable" if node.get("revision") else "starting")
        if "retryAt" in failed:  # else it is a memory: the spec asks for another revision by now
            state = f"{failed.get('revision', '')} failed: {failed.get('reason', '')}"
        ready = "inline" if node.get("placement") == "Inline" else _ready(node)
        rows.append(
            (name, node.get("revision") or "-", ready, f"{100 - weight}%" if node.get("revision") else "-", state)
        )
        if candidate:
            row = candidate.get("reason") or "candidate"
            rows.append(("", candidate.get("revision", ""), _ready(candidate), f"{weight}%", row))
    return rows


def _ready(node: Mapping[str, Any]) -> str:
    return f"{node.get('readyReplicas', 0)}/{node.get('replicas', 0)}" if "replicas" in node else "-"


def condition_lines(status: Mapping[str, Any]) -> list[str]:
    """The conditions, one entry each, with the reason and message of those that are not as wished."""
    lines = []
    for condition in status.get("conditions") or ():
        line = f"{condition['type']}={condition['status']}"
        if not _as_wished(condition):
            line += f" {condition.get('reason', '')}: {condition.get('message', '')}"
        lines.append(line.rstrip(": "))
    return lines


def trouble_lines(status: Mapping[str, Any]) -> list[str]:
    """The conditions that are not as wished, one line each; those that only repeat what another says are left out.

    Of a message of many lines the first: what is drawn again and again must fit. The rest is told by `status`.
    """
    lines: dict[str, str] = {}
    for condition in status.get("conditions") or ():
        if not _as_wished(condition):
            message = str(condition.get("message", "")).partition("\n")[0]
            why = f"{condition.get('reason', '')}: {message}".rstrip(": ")
            lines.setdefault(why, f"{condition['type']}={condition['status']} {why}")
    return list(lines.values())


def _as_wished(condition: Mapping[str, Any]) -> bool:
    wished = "False" if condition["type"] in ("Reconciling", "Stalled") else "True"
    return bool(condition["status"] == wished)


class QuietView:
    """Shows nothing; for runs inside another program."""

    def say(self, text: str) -> None: ...
    def event(self, event: Event) -> None: ...
    def show(self, snapshot: Json) -> None: ...
    def close(self) -> None: ...


class PlainView:
    """One line per thing that happens, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._rows: dict[tuple[str, str], NodeRow] = {}
        self._conditions: list[str] = []

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(text, file=self._stream, flush=True)

    def event(self, event: Event) -> None:
        node = f" {event.node}:" if event.node else ""
        self.say(f"{time.strftime('%H:%M:%S')} {event.reason}{node} {event.message}")

    def show(self, snapshot: Json) -> None:
        status = snapshot["status"]
        node, rows = "", {}
        for row in node_rows(status):
            node = row[0] or node
            rows[node, row[1]] = row
            if self._rows.get((node, row[1])) != row:
                self.say(f"{time.strftime('%H:%M:%S')} {node} {row[1]} ready {row[2]} weight {row[3]} {row[4]}")
        conditions = condition_lines(status)
        for line in conditions:
            if line not in self._conditions:
                self.say(f"{time.strftime('%H:%M:%S')} {line}")
        self._rows, self._conditions = rows, conditions

    def close(self) -> None: ...


class RichView:
    """A table that is drawn again in place, with what happened above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._live.start()

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._console.print(text, markup=False, highlight=False)

    def event(self, event: Event) -> None:
        style = "yellow" if event.type == "Warning" else "dim"
        node = f" {event.node}:" if event.node else ""
        text = f"{time.strftime('%H:%M:%S')} {event.reason}{node} {event.message}"
        with contextlib.suppress(OSError):
            self._console.print(text, style=style, markup=False, highlight=False)

    def show(self, snapshot: Json) -> None:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(*HEADINGS, box=None, pad_edge=False, title_justify="left")
        for row in node_rows(snapshot["status"]):
            table.add_row(*(Text(cell) for cell in row), style="red" if " failed: " in row[-1] else None)
        head = Text(f"{snapshot['pipeline']}  {snapshot['url']}", style="bold")
        lines = [Text(line, style=_trouble_style(line)) for line in trouble_lines(snapshot["status"])]
        if not lines and "Ready=True" in condition_lines(snapshot["status"]):
            lines = [Text("Ready", style="green")]
        with contextlib.suppress(OSError):
            self._live.update(Group("", head, table, *lines), refresh=True)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._live.stop()


def _trouble_style(line: str) -> str:
    """What has failed for good stands out from what is only on its way."""
    return "red" if line.startswith("Stalled=") else "yellow"


def view_for(stream: TextIO) -> View:
    """The live view for a terminal, plain lines for everything else and where Rich is not installed."""
    return RichView() if stream.isatty() and importlib.util.find_spec("rich") else PlainView(stream)


def follow(read: Callable[[], Json], *, stream: TextIO | None = None) -> int:
    """Show a snapshot again and again until Ctrl-C.

    Args:
        read: The pipeline's snapshot as it is now.

    Returns:
        The exit status of a command that was interrupted.
    """
    view = view_for(stream or sys.stdout)
    try:
        while True:
            view.show(read())
            time.sleep(FOLLOW_S)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        view.close()


def status_lines(status: Mapping[str, Any]) -> list[str]:
    """The table of nodes and what there is to say about the whole, once."""
    rows = [HEADINGS, *node_rows(status)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return table + condition_lines(status)


def print_snapshot(snapshot: Json, output: str) -> None:
    """Print a snapshot as ``json``, ``yaml`` or, for people, ``table``."""
    if output == "json":
        text = json.dumps(snapshot, indent=2)
    elif output == "yaml":
        import yaml

        text = yaml.safe_dump(snapshot, sort_keys=False, allow_unicode=True).rstrip()
    else:
        text = "\n".join(status_lines(snapshot["status"]))
    print(text, flush=True)
