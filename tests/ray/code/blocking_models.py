"""User code for the tests of blocked event loops on real Ray."""

import os
import time
from pathlib import Path

from channel_models import Worker


class Blocks(Worker):
    """Async, and yet it blocks what it runs on until the file ``go`` appears in the folder that it is given."""

    def __init__(self, health=None):
        self.health = health

    def check_health(self):
        if self.health is not None:
            with Path(self.health).open("a") as file:
                file.write(".")

    async def block(self, what):
        folder = Path(what["folder"])
        (folder / f"begun-{what['key']}").touch()
        while not (folder / "go").exists():
            time.sleep(0.02)  # noqa: ASYNC251 - this is what it is about
        return os.getpid()
