"""What `servepipe logs` asks Ray's log API for is what real replicas wrote."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import aiohttp
import pytest

from servepipe_operator.adapters.kube_access import Access
from servepipe_operator.cluster.log_files import log_files
from servepipe_operator.cluster.logs import Reader
from servepipe_operator.cluster.reach import RayDashboard

pytestmark = pytest.mark.ray

CODE = """
import logging, sys

class Talker:
    def __init__(self):
        print("it prints")
        print("it prints an error", file=sys.stderr)
        logging.getLogger("ray.serve").warning("it logs")

    def forward(self, x):
        print(f"asked {x}")
        return x
"""
GRAPH = {
    "steps": [{"name": "say", "node": "talker", "method": "forward", "args": [{"$input": []}]}],
    "output": {"$step": "say"},
}


@contextlib.asynccontextmanager
async def reader(s):
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        token = s.headers.get("Authorization", "").removeprefix("Bearer ")
        yield Reader(RayDashboard(session, Access(""), s.dashboard, token), 1000)


async def read(s, **options):
    async with reader(s) as logs:
        await asyncio.wait_for(logs.show("talker", **options), 60)


async def follow(s, capsys, *, until, then):
    """Follow until the node was asked ``until``, ask it ``then``, and go on until that is seen too."""
    seen = ""
    async with reader(s) as logs:
        task = asyncio.create_task(logs.show("talker", follow=True, previous=False))
        async with asyncio.timeout(60):
            for words, ask in ((f"asked {until}", then), (f"asked {then}", None)):
                while words not in seen:
                    seen += capsys.readouterr().out
                    await asyncio.sleep(0.05)
                if ask is not None:
                    await asyncio.to_thread(s.ask, ask)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return seen


def test_what_replicas_print_and_log(serve_session, tmp_path, capsys):
    s = serve_session
    (tmp_path / "talking.py").write_text(CODE)
    s.deploy(
        s.node("talker", "talking:Talker", path=tmp_path, replicas=2), s.ingress(GRAPH, {"talker": "r1"}, path=tmp_path)
    )
    assert s.ask("something").json == "something"
    capsys.readouterr()

    def everything():
        asyncio.run(read(s, follow=False, previous=False))
        shown = capsys.readouterr().out
        return shown if "asked something" in shown else None

    lines = s.wait_for("the printed line", everything, 30).splitlines()
    ids = {name.rpartition("#")[2][:6] for name in s.replicas("talker--r1")}
    assert {line.partition(" | ")[0] for line in lines} == {f"r1/{one}" for one in ids}
    for words, count in (("it prints", 2), ("it prints an error", 2), ("asked something", 1)):
        assert sum(line.endswith(words) for line in lines) == count, (words, "\n".join(lines))
    assert sum("it logs" in line for line in lines) >= 2
    assert not any(":actor_name:" in line or ":job_id:" in line for line in lines)

    followed = asyncio.run(follow(s, capsys, until="something", then="later"))
    assert followed.count("it prints an error") == 2, followed

    details = {"applications": s.applications()}
    (deployment,) = details["applications"]["talker--r1"]["deployments"].values()
    victim = deployment["replicas"][0]
    os.kill(victim["pid"], signal.SIGKILL)

    def remembered():
        found = {"applications": s.applications()}
        return log_files(found, "talker", previous=True)

    s.wait_for("Serve to remember the replica that died", remembered, 60)
    asyncio.run(read(s, follow=False, previous=True))
    dead = capsys.readouterr().out.splitlines()
    prefix = f"r1/{victim['replica_id'].rpartition('#')[2][:6]}"
    assert any(line.startswith(f"{prefix} | ") and line.endswith("it prints") for line in dead), dead
