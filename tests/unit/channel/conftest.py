"""Everything runs on asyncio's own loop and, where it is installed, on uvloop, which Ray takes then."""

from __future__ import annotations

import asyncio
import importlib.util


def pytest_asyncio_loop_factories(config, item):
    loops = {"asyncio": asyncio.SelectorEventLoop}
    if importlib.util.find_spec("uvloop"):
        import uvloop

        loops["uvloop"] = uvloop.new_event_loop
    return loops
