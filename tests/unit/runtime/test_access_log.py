"""Which records Serve's logger makes in our replicas."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from ray.serve._private.logging_utils import log_access_log_filter
from ray.serve.context import _RequestContext, _serve_request_context

from servepipe.runtime import access_log

ACCESS = {"serve_access_log": True, "log_to_stderr": False}


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def made() -> Iterator[list[str]]:
    """The message of every record that is made, wanted or not."""
    made: list[str] = []
    factory = logging.getLogRecordFactory()

    def note(*args: Any, **more: Any) -> logging.LogRecord:
        record = factory(*args, **more)
        made.append(record.getMessage())
        return record

    logging.setLogRecordFactory(note)
    yield made
    logging.setLogRecordFactory(factory)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Serve's, as in a replica; at the end as it was."""
    logger = logging.getLogger("ray.serve")
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    logger.handlers[:], logger.propagate = [], False
    logger.setLevel(logging.INFO)
    access_log.leave_out()
    yield logger
    logger.__dict__.pop("info", None)
    logger.handlers[:], logger.propagate, logger.filters[:] = handlers, propagate, []
    logger.setLevel(level)


def handler(*, refuses: bool) -> Kept:
    """As Serve configures it, with and without the access log."""
    one = Kept()
    if refuses:
        one.addFilter(log_access_log_filter)
    return one


def test_what_all_handlers_refuse_is_not_made(logger: logging.Logger, made: list[str]) -> None:
    kept = handler(refuses=True)
    logger.handlers[:] = [kept]  # pytest may have put its own there
    logger.info("GET / 200", extra=ACCESS)
    assert (made, kept.records) == ([], [])


def test_everything_else_is(logger: logging.Logger, made: list[str]) -> None:
    kept = handler(refuses=True)
    logger.handlers[:] = [kept]  # pytest may have put its own there
    logger.info("started %s", "m1")
    logger.info("more", extra={"other": 1})
    logger.warning("GET / 500", extra={"other": 1})
    assert made == ["started m1", "more", "GET / 500"]
    assert [record.getMessage() for record in kept.records] == made
    assert {record.funcName for record in kept.records} == {"test_everything_else_is"}


def test_the_setting_is_followed(logger: logging.Logger) -> None:
    """Serve puts a new handler there when it changes."""
    for refuses in (True, False, True):
        kept = handler(refuses=refuses)
        logger.handlers[:] = [kept]
        logger.info("GET / 200", extra=ACCESS)
        assert [record.getMessage() for record in kept.records] == ([] if refuses else ["GET / 200"])


def test_one_handler_that_wants_it_gets_it(logger: logging.Logger) -> None:
    wants = handler(refuses=False)
    logger.handlers[:] = [handler(refuses=True), wants]
    logger.info("GET / 200", extra=ACCESS)
    assert len(wants.records) == 1


def test_a_logger_above_that_is_told_everything_is_told_this_too(logger: logging.Logger, made: list[str]) -> None:
    logger.handlers[:] = [handler(refuses=True)]
    logger.propagate = True
    logger.info("GET / 200", extra=ACCESS)
    assert made == ["GET / 200"]


def test_it_may_be_asked_for_twice(logger: logging.Logger) -> None:
    info = logger.info
    access_log.leave_out()
    assert logger.info is info


@pytest.mark.parametrize("on", [False, True])
def test_other_lines_say_which_request_they_belong_to(logger: logging.Logger, on: bool) -> None:
    """Also where there is no access log, whose filter does it otherwise."""
    logger.addHandler(kept := handler(refuses=not on))
    access_log.leave_out()  # again: once is enough
    _serve_request_context.set(_RequestContext(route="/x", request_id="r7", app_name="m1--r1"))
    logger.error("failed")
    (record,) = kept.records
    assert (record.request_id, record.route, record.application) == ("r7", "/x", "m1--r1")  # type: ignore[attr-defined]
    assert len(logger.filters) == 1
