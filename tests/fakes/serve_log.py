"""What Serve's logger tells, without the times."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Told = Callable[[logging.LogRecord, str, BaseException | None], Any]


class _Heard(logging.Handler):
    def __init__(self, told: Told) -> None:
        super().__init__()
        self.told, self.records = told, []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        text = record.getMessage()
        # A line of the access log ends with the time that the request took.
        self.records.append(self.told(record, text.rpartition(" ")[0] or text, error))


@contextmanager
def serves_log(monkeypatch: Any, told: Told) -> Iterator[list[Any]]:
    """``told(record, text, error)`` of each record from INFO on, meanwhile."""
    handler = _Heard(told)
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.addHandler(handler)
    logger._cache.clear()
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)
        logger._cache.clear()
