"""Which cluster the tests run on, and why: a function of what this machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

Mode = Literal["kind", "current", "machine"]
MODES: tuple[Mode, ...] = ("kind", "current", "machine")
#: What a test program that could not run anything ends with, as automake has it.
NOTHING_POSSIBLE = 77


@dataclass(frozen=True)
class Facts:
    """What of this machine matters.

    Attributes:
        linux, root: Of this process.
        kind: Whether the program is on PATH.
        docker: What `docker info` said that keeps it from working; empty where an engine runs.
        kubeconfig: The value of KUBECONFIG; empty where it is not set.
    """

    linux: bool
    root: bool
    kind: bool
    docker: str
    kubeconfig: str


@dataclass(frozen=True)
class Choice:
    """Attributes:
    mode: None where no cluster can be had.
    because: Why this one, or why none and what to do.
    """

    mode: Mode | None
    because: str

    def __str__(self) -> str:
        return f"e2e: {self.mode or 'nothing'} because {self.because}"


def choose(facts: Facts, wanted: Mode | None) -> Choice:
    """The cluster that was asked for, or the first that can be had: kind, then this machine.

    The cluster that the user works with is never taken unasked: tests make and delete namespaces in it.
    """
    missing = {mode: _missing(facts, mode) for mode in MODES}
    if wanted is not None:
        if missing[wanted]:
            return Choice(None, f"--cluster={wanted} was asked for, but {missing[wanted]}")
        return Choice(wanted, f"--cluster={wanted} was asked for")
    if not missing["kind"]:
        return Choice("kind", "a Docker engine runs and kind is installed")
    if not missing["machine"]:
        return Choice("machine", f"{missing['kind']}, and this is root on Linux")
    return Choice(
        None, f"{missing['kind']}; {missing['machine']}; a cluster of yours is used with --cluster=current only"
    )


def _missing(facts: Facts, mode: Mode) -> str:
    if mode == "kind":
        return facts.docker or ("" if facts.kind else "kind is not on PATH")
    if mode == "current":
        return "" if facts.kubeconfig else "KUBECONFIG is not set"
    if not facts.linux:
        return "a cluster on this machine needs Linux"
    return "" if facts.root else "a cluster on this machine needs root"


def look() -> Facts:
    """At this machine."""
    return Facts(
        linux=sys.platform == "linux",
        root=hasattr(os, "geteuid") and os.geteuid() == 0,
        kind=shutil.which("kind") is not None,
        docker=_docker(),
        kubeconfig=os.environ.get("KUBECONFIG", ""),
    )


def _docker() -> str:
    if shutil.which("docker") is None:
        return "docker is not on PATH"
    try:
        done = subprocess.run(
            ["docker", "info", "--format", "{{.ServerVersion}}"], capture_output=True, text=True, timeout=30
        )
    except subprocess.TimeoutExpired:
        return "`docker info` did not answer within 30 s"
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()
        return f"no Docker engine runs ({words[-1] if words else f'exit code {done.returncode}'})"
    return ""
