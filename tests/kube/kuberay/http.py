"""What listens on the pods' addresses: Ray's dashboard on heads, Serve's proxy with the ingress behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from kuberay.ray import RayCluster
from kuberay.serve_details import details
from servepipe_operator.ports import ServeRejectedError

Object = dict[str, Any]

DASHBOARD, PROXY = 8265, 8000
APPLICATIONS = "/api/serve/applications"
HANG_S = 3600.0
LOG_LINE = "INFO replica is up\n"


class Answers:
    """Args:
    cluster_at: The cluster whose pod has an address, and the pod's name.
    """

    def __init__(self, cluster_at: Callable[[str], tuple[RayCluster, str] | None]) -> None:
        self._cluster_at = cluster_at

    async def answer(self, ip: str, port: int, request: web.BaseRequest) -> web.StreamResponse:
        found = self._cluster_at(ip)
        if found is None:
            return web.Response(status=502, text="nothing runs here any more")
        cluster, pod = found
        behaviour = cluster.behaviour["dashboard" if port == DASHBOARD else "serve"]
        if behaviour.mood == "hang":
            await asyncio.sleep(behaviour.seconds or HANG_S)
        if behaviour.mood == "slow":
            await asyncio.sleep(behaviour.seconds)
        if behaviour.mood == "error":
            return web.Response(status=500, text="Internal Server Error")
        if port == DASHBOARD:
            return await _dashboard(cluster, request)
        return _proxy(cluster, pod, request)


async def _dashboard(cluster: RayCluster, request: web.BaseRequest) -> web.Response:
    head = cluster.head
    if head is None:
        return web.Response(status=502, text="there is no head")
    if head.token:
        refused = _unauthorized(head.token, request)
        if refused is not None:
            return refused
    path = request.path.rstrip("/")
    if path == "/api/ray/version" or path == "/api/version":
        version = cluster.version or head.version
        return web.json_response({"version": "4", "ray_version": version, "ray_commit": "0" * 40})
    if path == "/api/gcs_healthz":
        return web.Response(text="success")
    if path == APPLICATIONS and request.method == "GET":
        cluster.gets += 1
        return web.json_response(details(cluster.serve))
    if path == APPLICATIONS and request.method == "PUT":
        return await _put(cluster, request)
    if path.startswith("/api/v0/logs"):
        return _logs(cluster, path, request)
    return web.Response(status=404, text="404: Not Found")


def _unauthorized(token: str, request: web.BaseRequest) -> web.Response | None:
    sent = request.headers.get("Authorization") or request.headers.get("X-Ray-Authorization") or ""
    if not sent:
        return web.Response(status=401, text="Unauthorized: Missing authentication token")
    if sent.removeprefix("Bearer ") != token:
        return web.Response(status=403, text="Forbidden: Invalid authentication token")
    return None


async def _put(cluster: RayCluster, request: web.BaseRequest) -> web.Response:
    caller = request.headers.get("User-Agent", "")
    try:
        config = json.loads(await request.read())
    except ValueError as error:
        cluster.puts.add(400, {}, caller)
        return web.Response(status=400, text=str(error))
    try:
        cluster.put(config, caller)
    except ServeRejectedError as error:
        return web.Response(status=400, text=str(error))
    except (ValueError, KeyError, TypeError) as error:
        return web.Response(status=400, text=f"the simulation cannot run this: {type(error).__name__}: {error}")
    return web.Response()


def _logs(cluster: RayCluster, path: str, request: web.BaseRequest) -> web.Response:
    """Ray's log API, with one file for each replica."""
    replicas = [one for application in cluster.serve.applications.values() for one in application.replicas]
    if path == "/api/v0/logs":
        files = [f"serve/replica_{one.id.replace('#', '_')}.log" for one in replicas]
        answer = {"result": True, "msg": "", "data": {"result": {"worker_out": [], "serve": files}}}
        return web.json_response(answer)
    return web.Response(text=LOG_LINE)


def _proxy(cluster: RayCluster, pod: str, request: web.BaseRequest) -> web.Response:
    serve = cluster.serve
    serve.settle()
    on_head = cluster.head is not None and cluster.head.pod == pod
    if not serve.running or not (on_head or serve.proxy_answers(pod)):
        return web.Response(status=503, text="there is no proxy here")
    path = request.path
    if path == "/-/healthz":
        return web.Response(text="success")
    if path == "/-/routes":
        return web.json_response(
            {app.config["route_prefix"]: name for name, app in serve.applications.items() if app.config["route_prefix"]}
        )
    ingress = serve.applications.get("ingress")
    if ingress is None or not ingress.alive():
        return web.Response(status=404, text=f"Path '{path}' not found. Ping http://.../-/routes for available routes.")
    if path.endswith("/-/routing"):
        return web.json_response({"replicas": [_ack(ack) for ack in serve.acks() or ()]})
    if path.endswith("/-/ready"):
        ready, missing = serve.ready() or (False, ())
        return web.json_response({"ready": ready, "notReady": list(missing)}, status=200 if ready else 503)
    table = ingress.alive()[0].user_config
    if path.endswith("/-/graph"):
        return web.json_response(_graph(table))
    return _call(cluster, table)


def _ack(ack: Any) -> Object:
    return {
        "replica": ack.replica,
        "application": ack.application,
        "table": ack.table,
        "busy": dict(ack.busy),
        "errors": dict(ack.errors),
    }


def _graph(table: Object) -> Object:
    return {key: table.get(key, "") for key in ("pipeline", "graphRevision", "table", "graph")} | {
        "nodes": {
            name: {
                "routes": [{"revision": route["revision"], "weight": route["weight"]} for route in entry["routes"]],
                "placement": "Inline" if any("inline" in route for route in entry["routes"]) else "Dedicated",
                "off": entry["off"],
            }
            for name, entry in table["nodes"].items()
        }
    }


def _call(cluster: RayCluster, table: Object) -> web.Response:
    """A request: the revision of each node that answered it."""
    serve, used = cluster.serve, {}
    for node, entry in table["nodes"].items():
        called = [route for route in entry["routes"] if route["weight"] > 0]
        if entry["off"] or not called:
            continue
        route = max(called, key=lambda one: one["weight"])
        if "inline" not in route and not serve.answers(f"{node}--{route['revision']}"):
            error = {"code": "NodeUnavailable", "node": node, "message": f"{node} does not answer"}
            return web.json_response({"error": error}, status=503)
        used[node] = route["revision"]
    return web.json_response({"graphRevision": table.get("graphRevision", ""), "revisions": used})
