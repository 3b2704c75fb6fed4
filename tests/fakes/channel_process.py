"""A replica in a process of its own: ``python channel_process.py NAME FOLDER`` listens and prints its endpoint as JSON.

Its calls return what they get; ``slow`` waits a little before that, ``pid`` returns the process.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from servepipe.channel.server import ChannelServer


async def handle(call):
    if call.method == "slow":
        await asyncio.sleep(0.01)
    return os.getpid() if call.method == "pid" else call.args[0]


async def main(name: str, folder: str) -> None:
    async with ChannelServer(handle, application="m1--a", replica=name, machine="here") as server:
        await server.listen_unix(Path(folder))
        print(json.dumps(server.endpoint.encode()), flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until whoever started this closes it
        await server.drain(10)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
