"""`servepipe up`, as a user starts it: the pipeline is compiled with an overlay, and the resource runs."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import aiohttp

from graphbench.cases import Case
from graphbench.contestants import Contestant
from graphbench.systems.base import BENCHMARKS, ROOT, Child, SystemFailedError, output_of, wait_for

__all__ = ["PLACEMENTS", "ServepipeUp", "overlay_for", "ready", "source_of", "stalled"]

PLACEMENTS = {"up-separate": "Dedicated", "up-auto": "Auto", "up-inline": "Inline"}
COMPILE_S = 120.0
START_S = 600.0
STOP_S = 60.0


def overlay_for(case: Case, system: str) -> dict[str, Any]:
    """What is laid over the compiled pipeline: another name for each, and where its nodes run."""
    name = f"bench-{case.name}-{system.removeprefix('up-')}"
    placement = PLACEMENTS[system]
    nodes = {} if placement == "Auto" else {node: {"placement": placement} for node in case.nodes}
    return {"metadata": {"name": name}, "spec": {"nodes": nodes}}


def source_of(case: Case) -> Path:
    """The file of its pipeline."""
    return ROOT / case.source if case.source else BENCHMARKS / "workload" / f"{case.name}.py"


def ready(snapshot: dict[str, Any]) -> bool:
    """Whether what was asked for is what serves."""
    if snapshot["observedGeneration"] < snapshot["generation"]:
        return False
    conditions = {one["type"]: one["status"] for one in snapshot["status"].get("conditions") or ()}
    return conditions.get("Ready") == "True" and "Reconciling" not in conditions


def stalled(snapshot: dict[str, Any]) -> str:
    """Why it waits for somebody's help; "" while it does not."""
    conditions = snapshot["status"].get("conditions") or ()
    found = [one for one in conditions if (one["type"], one["status"]) == ("Stalled", "True")]
    return ", ".join(f"{one['reason']}: {one['message']}" for one in found)


class ServepipeUp:
    """One `servepipe up`.

    Args:
        system: Which placement; see `PLACEMENTS`.
        folder: For everything that it writes.
    """

    def __init__(self, case: Case, system: str, folder: Path) -> None:
        self._case, self._system, self._folder = case, system, folder
        self._source = source_of(case)
        self._state = folder.parent / "state"  # of all runs, so that they know of each other's ports
        self._child: Child | None = None
        self._run: dict[str, Any] = {}
        self._snapshot: dict[str, Any] = {}

    async def start(self) -> None:
        """Compile, start, and wait until it is Ready. Raises `SystemFailedError`."""
        await self.launch()
        await wait_for(f"a ready {self._system}", self.settled, START_S, self.why)

    async def launch(self) -> None:
        """Compile and start, without waiting for anything but the compiler."""
        project = self._folder / "project"
        await asyncio.to_thread(
            shutil.copytree, self._source.parent, project, ignore=shutil.ignore_patterns("__pycache__")
        )
        overlay = self._folder / "overlay.yaml"
        overlay.write_text(json.dumps(overlay_for(self._case, self._system)))  # JSON is YAML
        resource = project / "pipeline.yaml"
        await self._command("compile", str(project / self._source.name), "-f", str(overlay), "-o", str(resource))
        words = [_servepipe(), "up", str(resource)]
        self._child = Child(words, self._folder / "up.log", self._environment(), cwd=project)
        await self._child.start()

    async def settled(self) -> dict[str, Any] | None:
        """The snapshot, once it is ready. Raises `SystemFailedError` when it cannot become so by itself."""
        snapshot = await self.snapshot()
        if snapshot and (why := stalled(snapshot)):
            raise SystemFailedError(f"{self._system} is stalled: {why}\n{self.why()}")
        return snapshot if snapshot and ready(snapshot) else None

    async def snapshot(self) -> dict[str, Any] | None:
        """What the run says of itself now; None while it says nothing. Raises `SystemFailedError` when it has ended."""
        assert self._child is not None
        self._child.check()
        run = self.run_record()
        if run is None:
            return None
        headers = {"Authorization": f"Bearer {run['token']}"}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
                session.get(f"{run['control']}/v1/status", headers=headers) as response,
            ):
                self._snapshot = await response.json()
        except (aiohttp.ClientError, OSError):
            return None
        return self._snapshot

    def run_record(self) -> dict[str, Any] | None:
        """``run.json``; None while there is none."""
        name = overlay_for(self._case, self._system)["metadata"]["name"]
        try:
            text = (self._state / "servepipe" / "runs" / name / "run.json").read_text(encoding="utf-8")
            self._run = json.loads(text)
        except (OSError, ValueError):
            return None
        return self._run

    def url(self, contestant: Contestant) -> str:
        return str(self._snapshot["url"])

    def pids(self) -> list[int]:
        return [] if self._child is None else self._child.pids()

    def replica_pids(self) -> list[int]:
        """Of the nodes' replicas, without the ingress."""
        applications: dict[str, Any] = self._snapshot["applications"]
        return [one["pid"] for name, app in applications.items() if name != "ingress" for one in app["replicas"]]

    async def stop(self) -> None:
        if self._child is not None:
            await self._child.stop(STOP_S)

    def _environment(self) -> dict[str, str]:
        # A run that attached to somebody's Ray would end here, at an address where there is none.
        return {"XDG_STATE_HOME": str(self._state), "RAY_ADDRESS": "127.0.0.1:1", "PYTHONUNBUFFERED": "1"}

    async def _command(self, *words: str) -> None:
        process = await asyncio.create_subprocess_exec(
            _servepipe(),
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await output_of(process, COMPILE_S)
        except TimeoutError:
            raise SystemFailedError(f"servepipe {words[0]} took longer than {COMPILE_S:.0f} s") from None
        if process.returncode != 0:
            raise SystemFailedError(f"servepipe {' '.join(words)}: {output.decode(errors='replace')}")

    def why(self) -> str:
        return self._child.last_lines() if self._child else ""


def _servepipe() -> str:
    return str(Path(sys.executable).with_name("servepipe"))
