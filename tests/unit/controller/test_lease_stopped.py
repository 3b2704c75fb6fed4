"""A leader that is really stopped (SIGSTOP) for longer than its Lease, and then continued: nothing of it arrives.

The child stops itself, so that the place is exact: before it asks for the right to write, or right after it was given
and before the first byte leaves. No test can choose those places from outside.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fake_kube import FakeKube, serving

from servepipe_operator.controller.lease import Elector, LeaseTimes

DEADLINE_S = 60
CHILD = """
import asyncio, os, signal, sys
import aiohttp
from servepipe_operator.adapters.kube import Kube, Resource
from servepipe_operator.adapters.kube_access import Access
from servepipe_operator.controller.lease import Elector, LeaseLostError, LeaseTimes

url, place = sys.argv[1:]
stopping = False

async def main():
    async with aiohttp.ClientSession() as session:
        elector = Elector(Kube(session, Access(url)), "ns", "servepipe", "old", LeaseTimes(2, 0.5, 0.4, 0.2))
        await elector.acquire()
        asked = 0

        def allowed():
            nonlocal asked
            asked += 1
            if stopping and asked == 1 and place == "before":
                os.kill(os.getpid(), signal.SIGSTOP)
            elector.require()
            if stopping and asked == 1 and place == "after":
                os.kill(os.getpid(), signal.SIGSTOP)

        kube = Kube(session, Access(url), allowed=allowed)
        pods = Resource("v1", "Pod", "pods")
        keeping = asyncio.create_task(elector.keep())
        await kube.apply(pods, {"metadata": {"name": "written", "namespace": "ns"}})
        global stopping
        asked, stopping = 0, True
        try:
            await kube.apply(pods, {"metadata": {"name": "late", "namespace": "ns"}})
        except LeaseLostError:
            print("refused", flush=True)
        await keeping

try:
    asyncio.run(main())
except LeaseLostError:
    sys.exit(3)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop processes")
@pytest.mark.parametrize("place", ["before", "after"])
async def test_no_write_of_a_leader_that_was_stopped(place: str) -> None:
    fake = FakeKube()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.handle)
    async with TestServer(app) as server, serving(fake) as kube:
        url = str(server.make_url("")).rstrip("/")
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, url, place, stdout=asyncio.subprocess.PIPE
        )
        try:
            process = psutil.Process(child.pid)
            async with asyncio.timeout(DEADLINE_S):  # until the child has stopped itself
                while process.status() != psutil.STATUS_STOPPED:
                    await asyncio.sleep(0.01)
                    assert child.returncode is None, "the child ended before it was stopped"
            assert any(path.endswith("/pods/written") for path in fake.writes)
            new = Elector(kube, "ns", "servepipe", "new", LeaseTimes(2, 0.5, 0.4, 0.2))
            async with asyncio.timeout(DEADLINE_S):  # until the Lease has run out
                await new.acquire()
            before = len(fake.writes)
            os.kill(child.pid, signal.SIGCONT)
            async with asyncio.timeout(DEADLINE_S):  # until the child has found out and ended
                output, _ = await child.communicate()
            assert child.returncode == 3
            assert output == b"refused\n"
            assert fake.writes[before:] == []
        finally:
            if child.returncode is None:
                child.kill()
                await child.communicate()
