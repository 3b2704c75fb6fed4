"""Logs: a line of JSON for each record, whoever wrote it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from servepipe_operator.controller import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root, ours = logging.getLogger(), logging.getLogger("servepipe_operator")
    before = (root.handlers[:], root.level, ours.level)
    yield io.StringIO()
    root.handlers[:], level, own = before
    root.setLevel(level)
    ours.setLevel(own)
    logging.captureWarnings(False)


def records(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_line_with_what_it_is_about(stream: io.StringIO) -> None:
    logs.configure(stream=stream)
    log = logging.getLogger("servepipe_operator.x")
    with logs.about(pipeline="ns/a"):
        log.info("two\nlines: %s", "ä", extra={"node": "m1"})
        with logs.about(node="m2"):
            log.warning("inner")
    log.error("outside", extra={"pipeline": "ns/b", "node": ""})
    first, second, third = records(stream)
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info", "message": "two\nlines: ä", "logger": "servepipe_operator.x", "pipeline": "ns/a", "node": "m1",
    }  # fmt: skip
    assert (second["pipeline"], second["node"]) == ("ns/a", "m2")
    assert third["pipeline"] == "ns/b"
    assert "node" not in third


def test_libraries_warnings_and_tracebacks_go_the_same_way(stream: io.StringIO) -> None:
    logs.configure(stream=stream)
    logging.getLogger("aiohttp.client").info("not said")
    logging.getLogger("aiohttp.client").warning("said")
    logging.getLogger("servepipe_operator").debug("not said")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("careful", UserWarning, stacklevel=1)
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("servepipe_operator").exception("failed")
    library, warning, failed = records(stream)
    assert (library["logger"], library["message"]) == ("aiohttp.client", "said")
    assert "careful" in warning["message"]
    assert failed["exception"].endswith("ValueError: x")


@pytest.mark.parametrize(("level", "said"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(stream: io.StringIO, level: str, said: int) -> None:
    logs.configure(level, stream)
    for name in logs.LEVELS:
        logging.getLogger("servepipe_operator").log(getattr(logging, name.upper()), "x")
    assert len(records(stream)) == said


async def test_tasks_do_not_mix_their_pipelines(stream: io.StringIO) -> None:
    logs.configure(stream=stream)
    both = asyncio.Barrier(2)

    async def work(name: str) -> None:
        with logs.about(pipeline=name):
            await both.wait()
            logging.getLogger("servepipe_operator").info(name)

    await asyncio.gather(work("a"), work("b"))
    assert all(record["pipeline"] == record["message"] for record in records(stream))
