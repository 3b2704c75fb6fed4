"""Waiting for the operator: the live object is shown until it is where it should be, or cannot get there."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from typing import TextIO

from servepipe.errors import ServePipeError
from servepipe_operator.adapters.kube_resource import PIPELINES
from servepipe_operator.cluster.connection import SILENCE_S, SILENT, ClusterError, Connection, in_words, unanswered
from servepipe_operator.cluster.progress import Outcome, outcome, snapshot
from servepipe_operator.engine.state import Json
from servepipe_operator.view import View, view_for

__all__ = ["FAILED", "LATE", "follow", "wait_until_ready"]

#: Exit status: the operator says that it cannot get there; not there by the deadline.
FAILED = 1
LATE = 3
POLL_S = 1.0
HINT_AFTER_S = 10.0


async def wait_until_ready(
    connection: Connection, applied: Json, timeout_s: float, *, stream: TextIO | None = None
) -> tuple[int, str]:
    """Show how a change is carried out until it is done.

    Args:
        applied: The object as the change left it.

    Returns:
        The exit status (0, `FAILED` or `LATE`) and the last word about it.
    """
    metadata = applied["metadata"]
    generation = int(metadata.get("generation") or 0)
    worry = time.monotonic() + HINT_AFTER_S
    last = outcome(applied, generation)
    heard = time.monotonic()

    def look(live: Json) -> tuple[bool, str]:
        nonlocal last, heard
        heard = time.monotonic()
        if live["metadata"]["uid"] != metadata["uid"]:
            raise ClusterError(f"{metadata['name']} was deleted and made again meanwhile")
        last = outcome(live, generation)
        unseen = last.state == "waiting" and not (live.get("status") or {}).get("conditions")
        hint = last.text if unseen and time.monotonic() >= worry else ""
        return last.state != "waiting", hint

    # Around everything: a request that is not answered must not outlast it either.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await follow(connection, metadata["namespace"], metadata["name"], look, stream=stream)
    return _verdict(last, timeout_s, time.monotonic() - heard)


def _verdict(last: Outcome, timeout_s: float, silence_s: float) -> tuple[int, str]:
    match last.state:
        case "waiting" if silence_s >= SILENCE_S:
            gone = f"{SILENT} (for {silence_s:.0f} s)"
            return LATE, f"Not seen ready after {timeout_s:.0f} s. {gone}; before that: {last.text}"
        case "waiting":
            return LATE, f"Not ready after {timeout_s:.0f} s, and still going on: {last.text}"
        case "failed":
            return FAILED, last.text
        case _:
            return 0, last.text


async def follow(
    connection: Connection,
    namespace: str,
    name: str,
    look: Callable[[Json], tuple[bool, str]],
    *,
    stream: TextIO | None = None,
) -> None:
    """Show the pipeline whenever it changed; a server that does not answer is asked again.

    Args:
        look: Says whether that is the end, and what else is to be said.
    """
    view = view_for(stream or sys.stdout)
    shown: tuple[str, str] | None = None
    told = ""
    try:
        while True:
            try:
                with in_words(connection):
                    live = await connection.kube.get(PIPELINES, namespace, name)
                told = "" if told.startswith(SILENT) else told
            except ServePipeError as error:
                if not unanswered(error):
                    raise
                told = _tell_once(view, told, error.what)
            else:
                finished, hint = look(live)
                told = _tell_once(view, told, hint)
                version = (live["metadata"]["uid"], live["metadata"]["resourceVersion"])
                if version != shown and live.get("status"):
                    shown = version
                    view.show(snapshot(live, context=connection.context))
                if finished:
                    return
            await asyncio.sleep(POLL_S)
    finally:
        view.close()


def _tell_once(view: View, before: str, now: str) -> str:
    if now and before != now:
        view.say(now)
    return now or before
