"""What tests of both ways of an HTTP request share."""

from __future__ import annotations

import gc

import pytest
from http_path_bed import Bed
from serve_log import serves_log


@pytest.fixture
def heard(monkeypatch):
    with serves_log(
        monkeypatch, lambda record, text, error: (record.levelname, text, error and repr(error))
    ) as records:
        yield records


@pytest.fixture(params=["short", "long"])
def bed_of(request):
    def make(app, **options):
        return Bed(app, request.param, **options)

    yield make
    # Serve leaves tasks whose errors nobody has asked for; that is told now, and not in the middle of another test.
    gc.collect()
