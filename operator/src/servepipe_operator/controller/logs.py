"""Logs as JSON, a line for each record, with the pipeline and the node that it is about.

All loggers go this way, those of libraries and Python's warnings too. The pipeline comes from where the code runs, so
that whoever reconciles one need not name it; a node is given with ``extra={"node": ...}`` or by `about`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

__all__ = ["LEVELS", "JsonFormatter", "about", "configure"]

LEVELS = ("debug", "info", "warning", "error")
_ABOUT: ContextVar[dict[str, str]] = ContextVar("servepipe_log_about", default={})  # noqa: B039 - never changed
_FIELDS = ("pipeline", "node")


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """Records of this block, in this task, are about ``pipeline`` or ``node``."""
    token = _ABOUT.set({**_ABOUT.get(), **fields})
    try:
        yield
    finally:
        _ABOUT.reset(token)


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "message", "logger"}``, and where they apply ``pipeline``, ``node``, ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
            **_ABOUT.get(),
        }
        line |= {name: str(vars(record)[name]) for name in _FIELDS if vars(record).get(name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(level: str = "info", stream: TextIO | None = None) -> None:
    """Send everything that this process logs to ``stream`` (default: stderr).

    Args:
        level: One of `LEVELS`; libraries log from ``warning`` on unless it is ``debug``.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel("DEBUG" if level == "debug" else "ERROR" if level == "error" else "WARNING")
    logging.getLogger("servepipe_operator").setLevel(level.upper())
    logging.captureWarnings(True)
