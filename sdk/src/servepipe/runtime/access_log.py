"""Lines of the access log that nobody wants are not made, and all others say which request they belong to.

Serve writes a line for each request, and where the access log is off (``accessLog: false``) its handlers throw it away:
after the record was made and the caller's frame was looked for, which is a quarter of the work. With the access log
goes the filter that puts the request's id on every other line, of errors and of what user code prints: here the logger
has it.
"""

from __future__ import annotations

import logging
from typing import Any

from servepipe.runtime.serve_internals import request_filter

__all__ = ["is_left_out", "leave_out"]

_logger = logging.getLogger("ray.serve")
#: What Serve puts on a record of the access log, and the name of the filter by which a handler refuses it.
_MARK = "serve_access_log"
_FILTER = "log_access_log_filter"


class _Info:
    """`Logger.info` of one logger, without what all of its handlers refuse."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._info = logger.info
        self._handlers: list[logging.Handler] = []
        self._refused = False

    def __call__(self, msg: object, *args: object, **options: Any) -> None:
        extra = options.get("extra")
        if extra is not None and _MARK in extra and self.leaves_out():
            return
        options["stacklevel"] = options.get("stacklevel", 1) + 1
        self._info(msg, *args, **options)

    def leaves_out(self) -> bool:
        """Whether the access log is refused by all."""
        # Serve puts other handlers there when the setting changes.
        if self._handlers != self._logger.handlers:
            self._handlers = [*self._logger.handlers]
            self._refused = not self._logger.propagate and all(map(_refuses, self._handlers))
        return self._refused


def _refuses(handler: logging.Handler) -> bool:
    return any(getattr(one, "__name__", "") == _FILTER for one in handler.filters)


def leave_out() -> None:
    """From now on, in this process, Serve's logger makes no record of the access log that its handlers would refuse."""
    named = request_filter()
    if named is not None and not any(type(one) is type(named) for one in _logger.filters):
        _logger.addFilter(named)
    if not isinstance(_logger.info, _Info):
        _logger.info = _Info(_logger)  # type: ignore[method-assign]


def is_left_out() -> bool:
    """Whether a line of the access log would not be made in this process now."""
    info = _logger.info
    return isinstance(info, _Info) and info.leaves_out()
