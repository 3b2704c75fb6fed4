"""User code for the tests on two hosts."""

import asyncio
import gc
import os
import time
from pathlib import Path

import numpy

from servepipe.channel.server import ChannelServer

HOST = os.environ["SERVEPIPE_TEST_HOST"]


class Worker:
    """Tells on which host it is, and as which process there."""

    async def who(self, _):
        return [HOST, os.getpid()]

    async def brief(self, _):
        await asyncio.sleep(0.005)
        return [HOST, os.getpid()]

    async def hold(self, what):
        """Notes that it has begun as a file ``KEY.HOST.NUMBER`` in the folder; ends when the file ``go`` is there."""
        folder = Path(what["folder"])
        (folder / f"{what['key']}.{HOST}.{time.monotonic_ns()}").touch()
        while not (folder / "go").exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.02)
        return [HOST, os.getpid()]

    async def array(self, size):
        """So many bytes, and where they were made."""
        return {"made": HOST, "data": _bytes(size)}

    async def check(self, array):
        """Where an array was made and where it was looked at, and whether it came whole."""
        data = array["data"]
        return [array["made"], HOST, bool((data == _bytes(len(data))).all())]

    async def endpoint(self, _):
        """Where this replica listens, with its token."""
        gc.unfreeze()  # Serve has hidden what a new replica has from the collector
        (server,) = (thing for thing in gc.get_objects() if type(thing) is ChannelServer)  # some have no isinstance()
        return server.endpoint.encode()


def _bytes(size):
    # Quickly made, and no two parts of a power of two are the same.
    return numpy.resize(numpy.random.default_rng(size).integers(0, 256, 1_000_003, numpy.uint8), size)
