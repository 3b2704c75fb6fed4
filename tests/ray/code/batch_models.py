"""User code for the tests of batches on real Ray."""

import asyncio
import os
import time
from pathlib import Path

from servepipe import batch, set_batch
from servepipe.runtime.serve_internals import own_replica


class Kernel:
    """Doubles ``x`` of each item. A batch with items that have a ``folder`` notes them there as ``began-X``, and ends
    when there is a file ``go`` in each. What is not a number is a bad item.
    """

    def __init__(self):
        self.batches = []

    @batch(max_size=8, max_wait_ms=20)
    def double(self, items):
        folders = self.begin(items)
        while not all((folder / "go").exists() for folder in folders):
            time.sleep(0.01)
        time.sleep(0.02)
        return [doubled(item) for item in items]

    @batch(max_size=8, max_wait_ms=20)
    async def double_later(self, items):
        folders = self.begin(items)
        try:
            while not all((folder / "go").exists() for folder in folders):  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            for folder in folders:
                (folder / "cancelled").touch()
            raise
        await asyncio.sleep(0.02)
        return [doubled(item) for item in items]

    def twice(self, item):
        return self.double({**item, "x": self.double(item)})

    def reconfigure(self, user_config):
        set_batch(self.double, **user_config)

    def begin(self, items):
        self.batches.append([(item["test"], item["x"]) for item in items])
        folders = {Path(item["folder"]) for item in items if "folder" in item}
        for item in items:
            if "folder" in item:
                (Path(item["folder"]) / f"began-{item['x']}").touch()
        return folders

    async def told(self, test):
        """The batches with items of a test."""
        batches = [[x for name, x in items if name == test] for items in self.batches]
        return [items for items in batches if items]

    async def pid(self, _):
        return os.getpid()

    async def ongoing(self, _):
        """The requests that Serve counts here, without this one."""
        return own_replica()._replica.get_num_ongoing_requests() - 1


def doubled(item):
    return 2 * item["x"] if isinstance(item["x"], int) else ValueError(f"bad item {item['x']}")
