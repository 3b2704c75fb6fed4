"""How kubelets ask Ray's container for its health, unless its template says. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kuberay import names
from kuberay.commands import AGENT_PORT

Object = dict[str, Any]

#: Since when one port of the agent tells of everything on the node.
UNIFIED_SINCE = (2, 53)


def add(cluster: Object, ray: Object, flags: Mapping[str, str], *, head: bool) -> None:
    """Ray's own health, on workers too: only for a RayService they also ask Serve's proxy.

    Args:
        flags: Of ``ray start``.
    """
    agent = _port(flags, "dashboard-agent-listen-port", AGENT_PORT)
    asked = [_ask(2, agent, "api/local_raylet_healthz")]
    if head:
        asked.append(_ask(10, _port(flags, "dashboard-port", names.DEFAULT_PORTS["dashboard"]), "api/gcs_healthz"))
    health = _exec(asked)
    if _version(cluster) >= UNIFIED_SINCE:
        health = {"httpGet": {"path": "/api/healthz", "port": agent}}
    pace: Object = {"timeoutSeconds": 5 if head else 2, "periodSeconds": 5}
    ray.setdefault("livenessProbe", {**health, **pace, "initialDelaySeconds": 30, "failureThreshold": 120})
    tolerated = 10
    if names.creator(cluster) == "RayService" and not head:
        serve = next((port["containerPort"] for port in ray.get("ports", []) if port.get("name") == "serve"), 8000)
        health, tolerated = _exec([*asked, _ask(10, serve, "-/healthz")]), 1
    ray.setdefault("readinessProbe", {**health, **pace, "initialDelaySeconds": 10, "failureThreshold": tolerated})


def _exec(commands: list[str]) -> Object:
    return {"exec": {"command": ["bash", "-c", " && ".join(commands)]}}


def _ask(timeout_s: int, port: int, path: str) -> str:
    return f"wget --tries 1 -T {timeout_s} -q -O- http://localhost:{port}/{path} | grep success"


def _port(flags: Mapping[str, str], flag: str, default: int) -> int:
    return int(flags[flag]) if flags.get(flag, "").isdecimal() else default


def _version(cluster: Object) -> tuple[int, int]:
    """Of Ray; one that is not told is taken for an old one."""
    numbers = re.match(r"v?(\d+)\.(\d+)", cluster["spec"].get("rayVersion", ""))
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
