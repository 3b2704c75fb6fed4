"""User code for the tests of channels on real Ray."""

import asyncio
import os
import time
from pathlib import Path

import ray.serve.context as serve_context
from ray import serve


class Worker:
    """Tells who it is; notes each call that it begins as a file ``KEY.PID.NUMBER`` in the folder that it is given."""

    async def pid(self, _):
        return os.getpid()

    async def brief(self, _):
        await asyncio.sleep(0.005)
        return os.getpid()

    async def hold(self, what):
        """Ends when the file ``go`` appears in the folder; tells the way that it came."""
        folder = Path(what["folder"])
        (folder / f"{what['key']}.{os.getpid()}.{time.monotonic_ns()}").touch()
        while not (folder / "go").exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.02)
        return await self.way(None)

    def block(self, folder):
        """Sync; ends when the file ``go`` appears in the folder. Notes that it began, and that it ended."""
        (Path(folder) / "began").touch()
        while not (Path(folder) / "go").exists():
            time.sleep(0.02)
        (Path(folder) / "ended").touch()

    async def way(self, _):
        """The way of this very call: one over a channel has an id that begins with its replica's."""
        replica = serve.get_replica_context().replica_id.unique_id
        internal = serve_context._get_serve_request_context()._internal_request_id
        return "channel" if internal.startswith(replica) else "handle"

    async def size(self, data):
        return len(data)

    async def large(self, size):
        return bytes(size)


def zeros(size):
    return bytes(size)
