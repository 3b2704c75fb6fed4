"""The project on this machine, as another terminal sees it: `servepipe compile`, `up`, `apply`, `status` and `down`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.5


class RunFailedError(Exception):
    """The pipeline does not do what it should; the message says what, and what it wrote last."""


@dataclass(frozen=True)
class Node:
    """A node as it runs: its revision, and the process of each replica by replica id (none for one in the ingress)."""

    revision: str
    replicas: dict[str, int]


class LocalRun(contextlib.AbstractContextManager["LocalRun"]):
    """`servepipe up` with a private run folder; the block's end ends it.

    Args:
        project: The folder of `pipeline.py`.
        state: Where the run folder and the logs go.
        pipeline: The pipeline's name.
        say: Told of progress, line by line.
    """

    def __init__(self, project: Path, state: Path, pipeline: str, say: Callable[[str], None]) -> None:
        self._project = project
        self._pipeline = pipeline
        self._say = say
        self._file = project / "pipeline.yaml"
        self._log = state / "up.log"
        self._run_file = state / "servepipe" / "runs" / pipeline / "run.json"
        self._environment = os.environ | {"XDG_STATE_HOME": str(state), "PYTHONUNBUFFERED": "1"}
        self._up: subprocess.Popen[bytes] | None = None

    def compile(self) -> None:
        """Compile the project as it is now."""
        self._servepipe("compile", "pipeline.py", "-o", str(self._file))

    def start(self) -> None:
        """Start the pipeline that was compiled; see `wait`."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._up = subprocess.Popen(
                [*_command(), "up", str(self._file)],
                cwd=self._project,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the pipeline
            )

    def apply(self) -> None:
        """Hand over the pipeline that was compiled last to the run."""
        self._servepipe("apply", str(self._file), "-p", self._pipeline)

    def status(self) -> dict[str, Any]:
        """What `GET /v1/status` of the run says. Raises `OSError` or `ValueError` while it does not answer."""
        run = json.loads(self._run_file.read_text(encoding="utf-8"))
        request = urllib.request.Request(
            f"{run['control']}/v1/status", headers={"Authorization": f"Bearer {run['token']}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            status: dict[str, Any] = json.load(answer)
            return status

    def wait(self, what: str, ready: Callable[[dict[str, Any]], T | None], timeout_s: float) -> T:
        """Look at the status until ``ready`` finds there what it looks for; say how far it is on the way.

        Raises:
            RunFailedError: It did not within ``timeout_s`` seconds, or never will, or the run ended.
        """
        deadline = time.monotonic() + timeout_s
        status: dict[str, Any] = {}
        said = ""
        while time.monotonic() < deadline:
            if self._up is None or self._up.poll() is not None:
                raise RunFailedError(f"servepipe up ended while it was waited for {what}:\n{self._last_lines()}")
            with contextlib.suppress(OSError, ValueError):
                status = self.status()
                found = ready(status)
                if found is not None:
                    return found
                if stalled := conditions_of(status).get("Stalled"):
                    raise RunFailedError(f"no {what}: {stalled['message']}\n{self._last_lines()}")
                if (now := progress(status)) != said:
                    said = now
                    self._say(f"  {now}")
            time.sleep(LOOK_EVERY_S)
        last = json.dumps(status.get("status", {}), indent=1)
        raise RunFailedError(f"no {what} within {timeout_s:.0f} s. Status:\n{last}\n{self._last_lines()}")

    def __exit__(self, *_: object) -> None:
        if self._up is None:
            return
        self._up.terminate()
        try:
            self._up.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._up.kill()
            self._up.wait()

    def _servepipe(self, *arguments: str) -> None:
        done = subprocess.run(
            [*_command(), *arguments],
            cwd=self._project,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise RunFailedError(f"servepipe {' '.join(arguments)} failed ({done.returncode}):\n{done.stdout}")

    def _last_lines(self, count: int = 40) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-count:])


def conditions_of(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The conditions that are True, by type."""
    conditions = status.get("status", {}).get("conditions", ())
    return {condition["type"]: condition for condition in conditions if condition["status"] == "True"}


def progress(status: dict[str, Any]) -> str:
    """How far the pipeline is: the applications that run, and what is being upgraded."""
    applications = status["applications"].values()
    if not applications:
        return "Ray is starting"
    running = [one for one in applications if any(replica["state"] == "RUNNING" for replica in one["replicas"])]
    nodes = status["status"].get("nodes", {}).items()
    upgrades = [
        f"{name} {node['candidate']['revision']} is {node['candidate'].get('reason', '').lower()}"
        for name, node in nodes
        if "candidate" in node and node.get("revision")
    ]
    return ", ".join([f"{len(running)} of {len(applications)} applications run", *upgrades])


def alive(pid: int) -> bool:
    """Whether there is such a process; one that has ended and that nobody has asked about yet is none."""
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command() -> list[str]:
    return [str(Path(sys.executable).with_name("servepipe"))]


def settled(status: dict[str, Any]) -> dict[str, Node] | None:
    """The nodes and the ingress as they run, once the pipeline is what its resource asks for; None before that."""
    conditions = conditions_of(status)
    if "Ready" not in conditions or "Reconciling" in conditions:
        return None
    nodes = {name: Node(node["revision"], {}) for name, node in status["status"]["nodes"].items()}
    nodes["ingress"] = Node("", {})
    for application, found in status["applications"].items():
        name = application.partition("--")[0]
        nodes[name].replicas.update((replica["id"], replica["pid"]) for replica in found["replicas"])
    return nodes
