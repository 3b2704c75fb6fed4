"""A Ray of its own with Serve applications that are written by hand (`peers`), configured by PUT as servepipe's are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from graphbench.cases import Case
from graphbench.contestants import Contestant
from graphbench.systems.base import BENCHMARKS, SystemFailedError, last_chars, wait_for
from servepipe.errors import ServePipeError
from servepipe_operator.adapters.local_ray import LocalRay
from servepipe_operator.adapters.serve_api import RayServeApi
from servepipe_operator.adapters.sockets import PortNumbers, choose_ports
from servepipe_operator.engine.state import Application
from servepipe_operator.ports import ServeRejectedError, UnreachableError

__all__ = ["FLAGS", "Flags", "RaySystem", "applications_for"]

CPUS = 64
START_S = 600.0
TIMEOUT_S = 310


@dataclass(frozen=True)
class Flags:
    """Args:
    tuned: With servepipe's own flags and without access log, or as it comes.
    callbacks: With what Serve calls of servepipe's, too, as under `servepipe up`.
    """

    tuned: bool
    callbacks: bool


FLAGS = {
    "serve-tuned": Flags(tuned=True, callbacks=False),
    "serve-default": Flags(tuned=False, callbacks=False),
    "serve-floor": Flags(tuned=True, callbacks=True),
}


def applications_for(case: Case, contestants: list[Contestant], *, access_log: bool) -> list[dict[str, Any]]:
    """The applications for one PUT: one for each contestant that has its own, at a route with its name.

    Args:
        access_log: As it comes Serve writes one; switched off it spares a line for each request and replica.
    """
    found: dict[str, dict[str, Any]] = {}
    for contestant in contestants:
        module, _, variant = contestant.application.partition(":")
        route = route_of(contestant)
        found[route] = {
            "name": route.strip("/"),
            "route_prefix": route,
            "import_path": f"peers.{module}:build",
            "args": {"graph": f"{case.name}-{variant}" if variant else case.name},
        }
    applications = list(found.values())
    if not access_log:
        for application in applications:
            application["logging_config"] = {"enable_access_log": False}
    return applications


def route_of(contestant: Contestant) -> str:
    """``/by-value-handles``: named after the application.

    No route begins with another one: which of two that do is meant differs between Serve's proxies.
    """
    module, _, variant = contestant.application.partition(":")
    return "/" + f"{variant}-{module}".lstrip("-").replace("_", "-")


class RaySystem:
    """One Ray with Serve.

    Args:
        contestants: Those of the case that run on it.
        folder: For everything that it writes.
        taken: Ports that others have chosen and may not have bound yet.
    """

    def __init__(
        self, case: Case, contestants: list[Contestant], folder: Path, *, flags: Flags, taken: Callable[[], list[int]]
    ) -> None:
        self._case, self._contestants, self._flags = case, contestants, flags
        self._folder, self._taken = folder, taken
        self._ray: LocalRay | None = None
        self._ports: PortNumbers | None = None
        self._session: aiohttp.ClientSession | None = None
        self._applications: dict[str, Application] = {}

    async def start(self) -> None:
        """Until every application runs. Raises `SystemFailedError`."""
        await self.start_ray()
        await self.deploy()
        await wait_for("running applications", self.running, START_S, self.why)

    async def start_ray(self) -> None:
        """Ray alone, without Serve."""
        self._ports = ports = choose_ports(taken=self._taken())
        self._ray = LocalRay(
            self._folder / "ray",
            ports,
            cpus=CPUS,
            gpus=0,
            environment=lambda haproxy: self._environment(ports, haproxy),
            import_root=BENCHMARKS,
        )
        try:
            await self._ray.start()
        except ServePipeError as error:
            raise SystemFailedError(str(error)) from error

    def _environment(self, ports: PortNumbers, haproxy: str) -> Mapping[str, str]:
        if not self._flags.tuned:
            return {}
        return ports.flags(haproxy, callback=self._flags.callbacks)

    async def deploy(self) -> None:
        """Hand the applications over; Serve starts with the first of them."""
        assert self._ports is not None
        config = {
            "proxy_location": "EveryNode",
            "http_options": {"host": "127.0.0.1", "port": self._ports.http, "request_timeout_s": TIMEOUT_S},
            "applications": applications_for(self._case, self._contestants, access_log=not self._flags.tuned),
        }
        try:
            await self._api().put(config)
        except (ServeRejectedError, UnreachableError) as error:
            raise SystemFailedError(str(error)) from error

    async def applications(self) -> dict[str, Application]:
        """As Serve tells them; {} before there are any."""
        with contextlib.suppress(UnreachableError):
            self._applications = await self._api().applications() or {}
        return self._applications

    async def running(self) -> dict[str, Application] | None:
        """All of them, once they run. Raises `SystemFailedError` for one that never will."""
        assert self._ray is not None
        if not self._ray.running():
            raise SystemFailedError(f"Ray has ended:\n{last_chars(self._ray.log)}")
        found = await self.applications()
        for application in found.values():
            if application.status == "DEPLOY_FAILED":
                raise SystemFailedError(f"{application.name}: {application.message}\n{application.deployment_message}")
        wanted = applications_for(self._case, self._contestants, access_log=True)
        everybody = len(found) == len(wanted) and all(one.status == "RUNNING" for one in found.values())
        return found if everybody else None

    def _api(self) -> RayServeApi:
        assert self._ray is not None
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return RayServeApi(self._session, self._ray.dashboard, self._ray.token)

    def url(self, contestant: Contestant) -> str:
        assert self._ports is not None
        return f"http://127.0.0.1:{self._ports.http}{route_of(contestant)}"

    def ports(self) -> list[int]:
        return [] if self._ports is None else list(self._ports.to_json().values())

    def pids(self) -> list[int]:
        processes = [] if self._ray is None else self._ray.processes()
        return [process.pid for process in processes]

    def replica_pids(self) -> list[int]:
        """Of all replicas, the ingresses' too."""
        return [
            replica.pid for one in self._applications.values() for replica in one.replicas if replica.pid is not None
        ]

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self._ray is not None:
            await self._ray.stop()

    def why(self) -> str:
        return "\n".join(f"{one.name}: {one.status} {one.message}" for one in self._applications.values())
