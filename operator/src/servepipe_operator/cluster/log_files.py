"""Which files on which machines hold what a node's replicas wrote: pure functions of what Serve's API answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["LogFile", "known_nodes", "log_files", "whole_lines"]

INGRESS = "ingress"
ENDED = frozenset({"STOPPING"})
MARKERS = (":job_id:", ":actor_name:", ":task_name:")  # Ray's own, for its log monitor


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file to ask Ray's log API for.

    Args:
        query: What names it: ``node_id`` and ``filename``, or ``node_id``, ``pid`` and ``suffix``.
        prefix: ``<revision>/<replica>``, before each of its lines.
    """

    query: tuple[tuple[str, str], ...]
    prefix: str


def known_nodes(details: Mapping[str, Any]) -> tuple[str, ...]:
    """The nodes that have replicas of their own, and ``ingress``."""
    return tuple(sorted({_node_of(name) for name in details.get("applications") or {}}))


def log_files(details: Mapping[str, Any], node: str, *, previous: bool = False) -> tuple[LogFile, ...]:
    """The files of a node's replicas, oldest replica first.

    What Serve and servepipe log is in a file of the replica's own; what user code prints is in those of its process.

    Args:
        details: What ``GET /api/serve/applications/`` answered.
        previous: Of replicas that ended, as far as Serve remembers them, instead of those that are there.
    """
    return tuple(file for replica in _replicas(details, node, previous) for file in _files(*replica))


def whole_lines(rest: bytes, chunk: bytes) -> tuple[list[str], bytes]:
    """The lines that ended with ``chunk``, without Ray's own markers, and the beginning of the next one."""
    *ended, rest = (rest + chunk).split(b"\n")
    lines = [line.decode(errors="replace").rstrip("\r") for line in ended]
    return [line for line in lines if not line.startswith(MARKERS)], rest


def _replicas(details: Mapping[str, Any], node: str, previous: bool) -> list[tuple[str, Mapping[str, Any]]]:
    found: list[tuple[float, str, Mapping[str, Any]]] = []
    for name, application in (details.get("applications") or {}).items():
        if _node_of(name) != node:
            continue
        for deployment in (application.get("deployments") or {}).values():
            living = [one for one in deployment.get("replicas") or () if one.get("state") not in ENDED]
            replicas = (deployment.get("recent_dead_replicas") or ()) if previous else living
            found += [(float(one.get("start_time_s") or 0), _prefix(name, one), one) for one in replicas]
    found.sort(key=lambda each: each[:2])
    return [(prefix, replica) for _, prefix, replica in found]


def _files(prefix: str, replica: Mapping[str, Any]) -> Iterator[LogFile]:
    machine = str(replica.get("node_id") or "")
    if not machine:
        return  # it has not been placed yet
    if path := str(replica.get("log_file_path") or ""):
        yield LogFile((("node_id", machine), ("filename", path.lstrip("/"))), prefix)
    if pid := replica.get("pid"):
        for suffix in ("out", "err"):
            yield LogFile((("node_id", machine), ("pid", str(pid)), ("suffix", suffix)), prefix)


def _prefix(application: str, replica: Mapping[str, Any]) -> str:
    revision = application.rpartition("--")[2]
    return f"{revision}/{str(replica.get('replica_id', '')).rpartition('#')[2][:6]}"


def _node_of(application: str) -> str:
    return INGRESS if application == INGRESS else application.rpartition("--")[0] or application
