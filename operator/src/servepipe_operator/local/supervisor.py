"""One local run: its Ray, its engine, its folder, from start to end.

    compile ─▶ take the folder ─▶ end orphans ─▶ choose ports ─▶ start Ray ─▶ reconcile until told to stop ─▶ clean up
                                                                                ▲ apply, scale, file change

Nothing is started before the pipeline has compiled. From the first process on, ``run.json`` says what there is, so
that whatever kills this process, the next start finds what is left of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from servepipe.errors import RunError, ServePipeError
from servepipe_operator.adapters.file_history import FileHistory
from servepipe_operator.adapters.following import FollowingRouting, RememberingServe, deployed_route
from servepipe_operator.adapters.local_ray import LocalRay
from servepipe_operator.adapters.processes import adopt_orphans
from servepipe_operator.adapters.routing import IngressRouting
from servepipe_operator.adapters.serve_api import RayServeApi
from servepipe_operator.adapters.sockets import PortNumbers, choose_ports
from servepipe_operator.adapters.status_file import StatusFile
from servepipe_operator.engine.state import Application, Environment, Event, Json, Plan
from servepipe_operator.local.code_store import kept_code, tidy_code
from servepipe_operator.local.control import ControlServer
from servepipe_operator.local.desired import Desired
from servepipe_operator.local.logs import ended_files, read_lines, replica_files
from servepipe_operator.local.notices import open_ports_notice, refuse_intruder
from servepipe_operator.local.resources import cpus_for, custom_resources
from servepipe_operator.local.run_folder import RunFolder, ports_locked, with_ports
from servepipe_operator.local.run_record import RunRecord
from servepipe_operator.local.snapshot import snapshot_of
from servepipe_operator.local.sources import Compiled, compile_document
from servepipe_operator.local.view_events import ViewEvents
from servepipe_operator.local.watch import Watched
from servepipe_operator.ports import Ports, UnreachableError
from servepipe_operator.reconcile import reconcile
from servepipe_operator.view import View

__all__ = ["Options", "Supervisor"]

TICK_S = 0.5
CHANGING_S = 0.3
RECORD_CHANGING_S, RECORD_STEADY_S = 1.0, 5.0
INTRUDER_S = 1.0
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143
IGNORED_FIELDS = {
    "image": "",
    "imagePullSecrets": "",
    "serviceAccountName": "",
    "cluster": "but for Serve's flags in the template of the head",
}


@dataclass(frozen=True, slots=True)
class Options:
    """How to run.

    Args:
        port: HTTP port that must be used; None takes 8000 or the next free one.
        replicas_at_most: Cap on the replicas of any one node, or None.
        gpus: False leaves GPUs out of every request for resources.
        reload: Compiles the source again when a watched file changes; None does not watch.
        source: What was started, for people.
    """

    port: int | None = None
    replicas_at_most: int | None = None
    gpus: bool = True
    reload: Callable[[], Awaitable[Compiled]] | None = None
    source: str = ""


class Supervisor:
    """Runs one compiled pipeline until it is told to stop."""

    def __init__(self, compiled: Compiled, options: Options, view: View) -> None:
        self.folder = RunFolder.of(compiled.pipeline)
        self.view = view
        self.status: Json = {}
        self._record = RunRecord(self.folder, view)
        self._options = options
        self._desired = Desired(compiled, self.folder.resource, replicas_at_most=options.replicas_at_most)
        self._observed_generation = 0
        self._ray: LocalRay | None = None
        self._applications: dict[str, Application] = {}
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._said_open = False
        self._recorded_at = self._port_seen_at = 0.0
        self._trouble = ""
        self._exit_code = 0
        self._watched = Watched(compiled.files)

    # From start to end

    async def run(self) -> int:
        """Start, run and clean up; returns the exit code.

        Raises:
            ServePipeError: It could not be started. Everything has been cleaned up.
        """
        try:
            self.folder.take()
        except BaseException:
            self.view.close()  # a screen that is not given back has no cursor
            raise
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)
        main = asyncio.create_task(self._run(), name="run")
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        try:
            await asyncio.wait({main, stopping}, return_when=asyncio.FIRST_COMPLETED)
            main.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await main  # raises what made it fail
        finally:
            stopping.cancel()
            await self._clean_up()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)
        return self._exit_code

    async def _run(self) -> None:
        adopt_orphans()
        self._desired.start()
        for orphan in await asyncio.to_thread(self.folder.end_orphans):
            self.view.say(f"Ended process {orphan.pid} of an earlier run: {orphan.name}")
        await self._find_code()
        control = ControlServer(self, token := secrets.token_urlsafe(32))
        try:
            name = self._desired.compiled.pipeline
            self._record.begin(name, control=await control.start(), token=token, source=self._options.source)
            ports = await self._choose_ports()
            await self._start_ray(ports)
            await self._serve(ports)
        finally:
            await control.stop()

    async def _find_code(self) -> None:
        """Know the code of every revision in history; drop what no record names any more."""
        try:
            await tidy_code(self.folder.code, self.folder.history, keep=self._desired.compiled.code_paths)
        except OSError as error:
            self.view.say(f"Note: old code in {self.folder.code} could not be removed: {error}")
        self._desired.know_code(kept_code(self.folder.code))

    async def _choose_ports(self) -> PortNumbers:
        def choose() -> PortNumbers:
            with ports_locked() as taken:
                ports = choose_ports(self._options.port, taken=taken)
                self._record.write(with_ports(self._record.run, ports))
            return ports

        choosing = asyncio.ensure_future(asyncio.to_thread(choose))
        try:
            return await asyncio.shield(choosing)
        finally:
            await asyncio.wait({choosing})  # else the thread would write run.json after it was removed

    async def _start_ray(self, ports: PortNumbers) -> None:
        self.view.say(f"Starting Ray for {self._desired.compiled.pipeline!r} in {self.folder.path}")
        flags, shell = self._desired.flags, dict(os.environ)
        for notice in flags.notices(ports.flags(""), shell):
            self.view.say(f"Note: {notice}")
        self._ray = LocalRay(
            self.folder.ray,
            ports,
            cpus=cpus_for(self._desired.resource, at_most=self._options.replicas_at_most),
            gpus=None if self._options.gpus else 0,
            custom=custom_resources(self._desired.resource),
            environment=lambda folder: flags.over(ports.flags(folder), shell),
            import_root=Path(self._desired.compiled.root),
        )
        starting = asyncio.create_task(self._ray.start())
        try:
            while not starting.done():
                await asyncio.wait({starting}, timeout=TICK_S)
                self._record.processes_of(self._ray)
            await starting
        finally:
            starting.cancel()
            await asyncio.wait({starting})  # what it may just have started is known then, and can be ended
        self._record.change(
            ray_address=self._ray.address, ray_dashboard=self._ray.dashboard, ray_token_file=str(self._ray.token_file)
        )
        self._record.processes_of(self._ray)

    async def _serve(self, ports: PortNumbers) -> None:
        ray = self._require_ray()
        self._record.change(url=self._url(ports))
        self.view.say(f"Requests: {self._url(ports)}   Ray's dashboard: {ray.dashboard}")
        for notice in self._desired.compiled.notices:
            self.view.say(f"Note: {notice}")
        async with aiohttp.ClientSession() as session:
            world = Ports(
                serve=RememberingServe(
                    RayServeApi(session, ray.dashboard, ray.token, ray.capacity), self._applications
                ),
                routing=FollowingRouting(lambda: IngressRouting(session, self._url_now(ports))),
                history=FileHistory(self.folder.history, self._corrupt_record),
                status=StatusFile(self.folder.status),
                events=ViewEvents(self.view),
            )
            self._record.change(state="Running")
            while True:
                self._wake.clear()
                plan = await self._reconcile(world, ports)
                if not self._said_open and self._available():
                    self._said_open = True
                    if notice := open_ports_notice(await asyncio.to_thread(ray.open_to_others)):
                        self.view.say(notice)
                await self._wait(plan)

    async def _reconcile(self, world: Ports, ports: PortNumbers) -> Plan | None:
        generation = self._desired.generation
        environment = Environment(
            code_paths=self._desired.code_paths,
            http={"host": "127.0.0.1", "port": ports.http},
            # Serve offers gRPC on all addresses of the machine, to anybody: only where it is asked for.
            grpc={"port": ports.grpc} if self._desired.grpc else {},
            url=self._url(ports),
            ignored_fields=IGNORED_FIELDS,
            gpus_ignored=not self._options.gpus,
            replicas_at_most=self._options.replicas_at_most,
            changing_s=CHANGING_S,
        )
        try:
            plan: Plan = await reconcile(self._desired.pipeline, world, environment, time.time())
        except (UnreachableError, OSError) as error:
            if str(error) != self._trouble:  # once, not at every look
                self._trouble = str(error)
                self.view.event(Event("Warning", "Unreachable", self._trouble))
            return None
        self._trouble = ""
        self._record.change(url=self._url_now(ports))
        # Before anybody is told that it runs: what runs is what the next start may have to end.
        self._record_processes(RECORD_CHANGING_S if plan.look_again_after_s <= CHANGING_S else 0.0)
        self.status = plan.status
        self._observed_generation = generation
        self.view.show(self.snapshot())
        return plan

    async def _wait(self, plan: Plan | None) -> None:
        """Until it is time to look again, something was asked for, or a watched file changed."""
        look_again = CHANGING_S if plan is None else max(plan.look_again_after_s, 0.0)
        deadline = time.monotonic() + look_again
        while not self._wake.is_set():
            if not self._require_ray().running():
                raise RunError(
                    "Ray has ended by itself", where=str(self._require_ray().log), fix="Start the pipeline again."
                )
            self._record_processes(RECORD_STEADY_S)
            if not self._said_open and time.monotonic() - self._port_seen_at >= INTRUDER_S:
                await refuse_intruder(self._require_ray())
                self._port_seen_at = time.monotonic()
            if self._options.reload is not None and self._watched.changed():
                await self._reload(self._options.reload)
            left = deadline - time.monotonic()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), min(left, TICK_S))

    async def _clean_up(self) -> None:
        self._stopping.set()  # from here on a signal does not wait any more
        self.view.close()
        if self._ray is not None:
            self.view.say("Stopping")
            self._record.stopping()
            await self._ray.stop()
        self.folder.forget()
        self.folder.release()

    def _on_signal(self, number: signal.Signals) -> None:
        self._exit_code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED
        if not self._stopping.is_set():
            self._stopping.set()
            return
        self.view.close()
        if self._ray is not None:
            self._ray.kill()
        self.folder.forget()
        sys.stderr.write("\nKilled what was left.\n")
        os._exit(self._exit_code)

    # What others may ask for

    def snapshot(self) -> Json:
        """See `servepipe_operator.local.control.Controlled`."""
        return snapshot_of(
            self._record.run,
            folder=str(self.folder.path),
            status=self.status,
            applications=self._applications,
            generation=self._desired.generation,
            observed_generation=self._observed_generation,
        )

    async def apply(self, document: str, folder: str) -> Json:
        """See `servepipe_operator.local.control.Controlled`."""
        self._apply(await compile_document(document, folder))
        return {"pipeline": self._desired.compiled.pipeline, "generation": self._desired.generation}

    async def scale(self, node: str, replicas: int) -> Json:
        """See `servepipe_operator.local.control.Controlled`."""
        self._desired.scale(node, replicas)
        self._wake.set()
        return {"node": node, "replicas": replicas, "generation": self._desired.generation}

    async def logs(self, node: str, follow: bool, previous: bool) -> AsyncIterator[str]:
        """See `servepipe_operator.local.control.Controlled`."""
        nodes = self._desired.resource["spec"]["nodes"]
        if node != "ingress" and node not in nodes:
            raise ServePipeError(
                f"There is no node {node!r}", fix=f"The nodes are: {', '.join(sorted(nodes))}; and ingress."
            )
        own = f"{node}--"
        if not any(name.startswith(own) for name in self._applications):
            own = "ingress"  # an Inline node runs in the ingress's process

        def files() -> dict[Path, str]:
            folder = self._require_ray().session / "logs"
            shown = [a for name, a in self._applications.items() if name.startswith(own)]
            return ended_files(folder, own, shown) if previous else replica_files(folder, shown)

        async for line in read_lines(files, for_ever=follow):
            yield line

    def stop(self) -> None:
        """See `servepipe_operator.local.control.Controlled`."""
        self._stopping.set()

    # Small steps

    def _apply(self, compiled: Compiled) -> None:
        self._desired.apply(compiled)
        self._watched.replace(compiled.files)
        self._wake.set()

    async def _reload(self, reload: Callable[[], Awaitable[Compiled]]) -> None:
        try:
            compiled = await reload()
            self._apply(compiled)
        except ServePipeError as error:
            self.view.say(f"Changed, but not applied: {error}")
            return
        self.view.say(f"{time.strftime('%H:%M:%S')} A file changed: applied")
        for notice in compiled.notices:
            self.view.say(f"Note: {notice}")

    def _record_processes(self, every_s: float) -> None:
        if time.monotonic() - self._recorded_at >= every_s:
            self._record.processes_of(self._ray)
            self._recorded_at = time.monotonic()

    def _available(self) -> bool:
        conditions = {c["type"]: c["status"] for c in self.status.get("conditions") or ()}
        return conditions.get("Available") == "True"

    def _url(self, ports: PortNumbers) -> str:
        """Where the pipeline is to answer."""
        return f"http://127.0.0.1:{ports.http}{self._desired.route}"

    def _url_now(self, ports: PortNumbers) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{ports.http}{deployed_route(self._applications, self._desired.route)}"

    def _corrupt_record(self, path: Path, reason: str) -> None:
        self.view.event(Event("Warning", "CorruptRecord", f"{path} is ignored: {reason}"))

    def _require_ray(self) -> LocalRay:
        if self._ray is None:
            raise RunError("Ray has not started yet")
        return self._ray
