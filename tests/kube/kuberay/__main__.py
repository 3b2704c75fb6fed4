"""``python -m kuberay KUBECONFIG``: the stand-in as a process, told what to do through a port of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import resource
from pathlib import Path

from aiohttp import web

from kuberay.standin import Pace, StandIn

#: What is left to be told where pods are real.
OF_THE_CONTROLLER = ("pause", "resume")


async def run(kubeconfig: Path, pace: Pace, port_file: Path | None, *, real_pods: bool) -> None:
    standin = StandIn(kubeconfig, pace, real_pods=real_pods)
    async with asyncio.TaskGroup() as group:
        group.create_task(standin.run())
        await standin.ready.wait()
        port = await _listen(standin, real_pods=real_pods)
        print(f"KubeRay's stand-in works; it is told what to do at http://127.0.0.1:{port}", flush=True)
        if port_file is not None:
            written = port_file.with_suffix(".new")
            written.write_text(str(port))
            written.replace(port_file)


async def _listen(standin: StandIn, *, real_pods: bool) -> int:
    async def call(request: web.BaseRequest) -> web.Response:
        asked = json.loads(await request.read())
        if real_pods and asked["method"] not in OF_THE_CONTROLLER:
            return web.Response(status=400, text=f"{asked['method']}: pods and Ray are real here, ask them")
        try:
            answer = await getattr(standin, asked["method"])(**asked["arguments"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return web.Response(status=400, text=f"{type(error).__name__}: {error}")
        return web.json_response(answer)

    server = await asyncio.get_running_loop().create_server(web.Server(call, access_log=None), "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    return port


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kuberay", description=__doc__)
    parser.add_argument("kubeconfig", type=Path)
    parser.add_argument("--real-pods", action="store_true", help="the cluster has nodes: play no pods, and hurry not")
    parser.add_argument("--faster", type=float, help=f"than the real one (default: {Pace.faster:g}, 1 with real pods)")
    parser.add_argument("--pod-start", type=float, default=Pace.pod_start_s, metavar="SECONDS")
    parser.add_argument("--workers", type=int, default=Pace.workers, help="RayClusters at a time")
    parser.add_argument("--warnings-only", action="store_true", help="no other Events")
    parser.add_argument("--port-file", type=Path, help="where to write the port that tests call")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO if given.verbose else logging.WARNING, format="%(name)s %(message)s")
    # Two sockets listen for every head.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    faster = given.faster or (1.0 if given.real_pods else Pace.faster)
    pace = Pace(faster, given.pod_start, given.workers, not given.warnings_only)
    asyncio.run(run(given.kubeconfig, pace, given.port_file, real_pods=given.real_pods))


if __name__ == "__main__":
    main()
