"""A Ray of this run's own on this machine.

It never attaches to a Ray that runs (``address="local"``, and no variable that could name another reaches it), keeps
its files in the run's folder, listens on loopback wherever Ray lets it, and needs a token that only this user can read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import psutil

from servepipe.errors import RunError
from servepipe_operator.adapters.processes import Process, descendants, end, identify
from servepipe_operator.adapters.short_path import remove_link
from servepipe_operator.adapters.sockets import PortNumbers
from servepipe_operator.engine.state import Capacity
from servepipe_operator.ports import UnreachableError

__all__ = ["LocalRay"]

#: Where Serve's HTTP listens, and what stands for every address.
OUR_ADDRESSES = frozenset(("127.0.0.1", "0.0.0.0", "::"))
START_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 12.0


class LocalRay:
    """One Ray and the process that holds it.

    Args:
        folder: Where Ray's files go (sessions, sockets, logs, token); emptied by `start`.
        ports: What Ray, Serve and HAProxy listen on.
        cpus: Ray's logical CPUs. They limit nothing but Ray's own bookkeeping.
        gpus: GPUs that Ray may give to replicas, None for those that it finds.
        custom: Ray resources of the user's own names.
        environment: Variables for all of Ray's processes (Serve's flags), given a short path to HAProxy's folder; None
            takes one out.
        import_root: Folder that replicas find modules in that the pipeline's code does not name, or None.
    """

    def __init__(
        self,
        folder: Path,
        ports: PortNumbers,
        *,
        cpus: int,
        gpus: int | None,
        environment: Callable[[str], Mapping[str, str | None]],
        custom: Mapping[str, float] | None = None,
        import_root: Path | None = None,
    ) -> None:
        self.folder = folder
        self.ports = ports
        self.token = secrets.token_hex(32)
        self.token_file = folder / "token"
        self.log = folder.parent / "ray.log"
        self.address = ""
        self.dashboard = ""
        self.session = Path()
        self.link: Path | None = None
        self._cpus = cpus
        self._gpus = gpus
        self._custom = dict(custom or {})
        self._environment = environment
        self._import_root = import_root
        self._keeper: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()

    async def start(self) -> None:
        """Start Ray and wait until it answers.

        Raises:
            RunError: Ray did not start; the message has the end of its log.
        """
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
        self._prepare()  # not in a thread, which would go on after `stop`
        with self.log.open("ab") as log:
            # -P: a file called ray.py where the user stands must not become the module ray.
            self._keeper = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "servepipe_operator.adapters.ray_keeper",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.folder,
                env=self._variables(),
                start_new_session=True,
            )
        options = {
            "cpus": self._cpus,
            "gpus": self._gpus,
            "custom": self._custom,
            "dashboard_port": self.ports.dashboard,
            "folder": f"{self.link}/r",
        }
        try:
            answer = await self._ask(options, START_TIMEOUT_S)
        except UnreachableError as error:
            raise self._not_started(str(error)) from error
        if "error" in answer:
            raise self._not_started(answer["error"])
        self.address, self.dashboard = answer["address"], answer["dashboard"]
        self.session = self.folder / Path(answer["session"]).name

    def _prepare(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True)
        (self.folder / "haproxy").mkdir()
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(self.token, encoding="ascii")
        # The path of a unix socket has at most 107 characters (HAProxy: 97), of which Ray needs 62, Serve's HAProxy 70.
        self.link = Path(tempfile.mkdtemp(prefix="svp-", dir="/tmp" if Path("/tmp").is_dir() else None))
        (self.link / "r").symlink_to(self.folder, target_is_directory=True)
        (self.link / "h").symlink_to(self.folder / "haproxy", target_is_directory=True)

    def _variables(self) -> dict[str, str]:
        # Variables of another Ray (we may run inside one) would lead to it; tuning of Serve and of Ray's core is kept.
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("RAY_") or name.startswith("RAY_SERVE_") or name[4:5].islower()
        }
        path = os.environ.get("PYTHONPATH", "")
        root = str(self._import_root) if self._import_root else ""
        variables: dict[str, str | None] = {
            **kept,
            "RAY_USAGE_STATS_ENABLED": "0",
            **self._environment(f"{self.link}/h"),
            # From here on what nobody else can know.
            **self.ports.environment(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            # Ray then takes 127.0.0.1 for this machine's address and listens there.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # Else as many workers as logical CPUs are started at once.
            "RAY_prestart_worker_first_driver": "0",
            "RAY_num_workers_soft_limit": "2",
            "PYTHONPATH": os.pathsep.join(part for part in (root, path) if part),
            "PYTHONUNBUFFERED": "1",
        }
        return {name: value for name, value in variables.items() if value is not None}

    def _not_started(self, reason: str) -> RunError:
        with contextlib.suppress(OSError):
            tail = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:]
            reason = "\n  ".join([reason, *tail])
        return RunError(f"Ray did not start: {reason}", where=str(self.log), fix="The log has the whole story.")

    async def _ask(self, request: Any, timeout_s: float) -> dict[str, Any]:
        """One request, one answer. Raises `UnreachableError` when the holder is gone or silent."""
        keeper = self._keeper
        if keeper is None or keeper.stdin is None or keeper.stdout is None:
            raise UnreachableError("Ray is not started")
        async with self._asking:
            try:
                keeper.stdin.write(json.dumps(request).encode() + b"\n")
                await keeper.stdin.drain()
                line = await asyncio.wait_for(keeper.stdout.readline(), timeout_s)
            except TimeoutError:
                raise UnreachableError(f"Ray did not answer within {timeout_s:.0f} s") from None
            except OSError as error:
                raise UnreachableError(f"the process that holds Ray is gone ({error})") from error
        if not line:
            raise UnreachableError("the process that holds Ray has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def capacity(self) -> Capacity | None:
        """Ray's resources. Raises `UnreachableError`."""
        answer = await self._ask("capacity", ANSWER_TIMEOUT_S)
        if "error" in answer:
            raise UnreachableError(answer["error"])
        return Capacity(total=answer["total"], available=answer["available"])

    def running(self) -> bool:
        """False once the process that holds Ray has ended, by itself or by somebody else's hand."""
        return self._keeper is not None and self._keeper.returncode is None

    def processes(self) -> list[Process]:
        """Every process of this Ray, the holder first."""
        if self._keeper is None or (keeper := identify(self._keeper.pid)) is None:
            return []
        return [keeper, *descendants(keeper.pid)]

    def open_to_others(self) -> list[tuple[str, int]]:
        """What listens on more than loopback: name of the process and port."""
        found = set()
        for pid, ip, port in _listeners(_connections({process.pid for process in self.processes()})):
            if not ip.startswith("127.") and ip != "::1":
                with contextlib.suppress(psutil.Error):
                    found.add((psutil.Process(pid).name(), port))
        return sorted(found)

    def intruder(self) -> int | None:
        """The pid of somebody else who listens where our HTTP port is: since it was found free, and before we bound it.

        Whoever listens on that port of another address, also of 127.0.0.0/8, takes no request of ours.
        """
        found: set[int] = set()
        with contextlib.suppress(psutil.Error):
            for pid, ip, port in _listeners((one.pid, one) for one in psutil.net_connections("tcp")):
                if port == self.ports.http and ip in OUR_ADDRESSES:
                    found.add(pid)
        # Asked in this order: a HAProxy of ours that starts meanwhile must not look like a stranger.
        strangers = [p for p in map(identify, found) if p is not None]
        own = {process.pid for process in self.processes()}
        return next((p.pid for p in strangers if p.pid not in own and p.alive()), None)

    async def stop(self) -> None:
        """End Ray and all its processes; safe to call at any time, also twice and during `start`."""
        keeper, processes = self._keeper, self.processes()
        if keeper is not None:
            if keeper.stdin is not None:
                keeper.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(keeper.wait(), STOP_TIMEOUT_S)
        await asyncio.to_thread(end, processes, grace_s=0)
        if self.link is not None:
            await asyncio.to_thread(remove_link, self.link)

    def kill(self) -> None:
        """End everything at once, without asking anybody to finish."""
        end(reversed(self.processes()), grace_s=0, kill_s=3.0)
        if self.link is not None:
            remove_link(self.link)


def _connections(pids: Set[int]) -> list[tuple[int, Any]]:
    """The TCP connections of some processes."""
    try:
        # Of all at once: each look goes through every connection of the machine.
        everybodys = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS tells only root
        found = []
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                found += [(pid, connection) for connection in psutil.Process(pid).net_connections("tcp")]
        return found
    return [(one.pid, one) for one in everybodys if one.pid is not None and one.pid in pids]


def _listeners(connections: Iterable[tuple[int | None, Any]]) -> Iterator[tuple[int, str, int]]:
    """Process, address and port of those that listen; an IPv4 address that IPv6 wraps as what it is."""
    for pid, connection in connections:
        if pid is not None and connection.status == psutil.CONN_LISTEN and connection.laddr:
            yield pid, connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port
