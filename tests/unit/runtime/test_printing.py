"""Serve's `print` of replicas, mended."""

from __future__ import annotations

import builtins
import io
import logging
import sys
import traceback

import pytest
from ray.serve._private import logging_utils

from servepipe.runtime.printing import mend_print


@pytest.fixture
def in_a_replica(monkeypatch):
    monkeypatch.setattr(logging_utils, "buildin_print", builtins.print)
    monkeypatch.setattr(builtins, "print", logging_utils.redirected_print)


def test_values_are_printed_into_files_as_python_does(in_a_replica):
    mend_print()
    mend_print()
    file = io.StringIO()
    print("one", 2, file=file)
    print("a", "b", sep="-", end="!", file=file, flush=True)
    print(file=file)
    assert file.getvalue() == "one 2\na-b!\n"


def test_tracebacks_are_readable(in_a_replica):
    mend_print()
    file = io.StringIO()
    try:
        raise ValueError("bad")
    except ValueError:
        traceback.print_exc(file=file)
    lines = file.getvalue().splitlines()
    assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "ValueError: bad")


def test_everything_else_goes_to_serves_log(in_a_replica, caplog):
    caplog.set_level(logging.INFO, "ray.serve")
    mend_print()
    print("one", 2)
    print("three", file=sys.stderr)
    assert caplog.messages == ["one 2\n", "three\n"]


@pytest.mark.parametrize("theirs", [lambda *values, file: builtins.print(*values, file=file), None, lambda value: None])
def test_a_serve_that_does_it_right_or_in_another_way_is_left_alone(monkeypatch, theirs):
    if theirs is None:
        monkeypatch.delattr(logging_utils, "redirected_print")
    else:
        monkeypatch.setattr(logging_utils, "redirected_print", theirs)
    before = logging_utils.buildin_print
    mend_print()
    assert logging_utils.buildin_print is before
