"""One private Ray with Serve for the whole test session, configured as every shell does it: by PUT.

Starting Ray takes seconds and each application some more, so tests share the Ray and deploy what they need in one PUT.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from servepipe.runtime.flags import serve_environment
from servepipe.runtime.grpc_service import PipelineStub

HTTP_WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def own_ports() -> dict[str, str]:
    """Ports of Serve's own proxies, to which HAProxy turns when no ingress seems to live. Two Serves would share them
    silently, and answer each other's callers."""
    return {f"RAY_SERVE_FALLBACK_PROXY_{protocol}_PORT": str(free_port()) for protocol in ("HTTP", "GRPC")}


class Answer:
    """An HTTP answer: status, headers, body, and the body as JSON."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.body.decode(errors='replace')[-9000:]})"


def send(method: str, url: str, body: bytes | None = None, headers: Any = None, timeout: float = 60) -> Answer:
    request = urllib.request.Request(url, body, headers or {}, method=method)
    try:
        with HTTP_WITHOUT_PROXY.open(request, timeout=timeout) as response:
            return Answer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def wait_for(what: str, check: Any, timeout: float = 60) -> Any:
    """The first true value of ``check()``; a failure that says what was waited for, and what came instead."""
    deadline = time.monotonic() + timeout
    while not (value := check()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout:g} s in vain for {what}; last seen: {value!r}")
        time.sleep(0.1)
    return value


def why(application: dict[str, Any]) -> str:
    """All that Serve says about the state of an application."""
    return "\n".join([application["message"], *(d["message"] for d in application["deployments"].values())])


class ServeSession:
    """Serve's REST API and the pipeline's entrances. ``host`` is where the proxy and replicas listen."""

    def __init__(
        self,
        dashboard: str,
        token: str | None,
        haproxy: bool,
        replica_ports: range,
        metrics_port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.dashboard, self.haproxy, self.replica_ports = dashboard, haproxy, replica_ports
        self.metrics_port, self.host = metrics_port, host
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.port, self.grpc_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def put(self, *applications: dict[str, Any]) -> None:
        """Replace all applications."""
        config = {
            "proxy_location": "HeadOnly",
            # As the engine does it, with Serve's own limits behind those of the ingress.
            "http_options": {"host": self.host, "port": self.port, "request_timeout_s": 310},
            "grpc_options": {
                "request_timeout_s": 310,
                "port": self.grpc_port,
                "grpc_servicer_functions": ["servepipe.runtime.grpc_service:add_servicer"],
            },
            "applications": list(applications),
        }
        headers = {"Content-Type": "application/json", **self.headers}
        answer = send("PUT", f"{self.dashboard}/api/serve/applications/", json.dumps(config).encode(), headers)
        assert answer.status == 200, answer

    def applications(self) -> dict[str, Any]:
        return send("GET", f"{self.dashboard}/api/serve/applications/", headers=self.headers).json["applications"]

    def replicas(self, application: str, what: str = "replica_id") -> list[str]:
        """The ids of its running replicas, or something else that Serve says of each."""
        deployments = self.applications()[application]["deployments"].values()
        return sorted(r[what] for d in deployments for r in d["replicas"] if r["state"] == "RUNNING")

    def wait_running(self, *names: str, patience: float = 120) -> None:
        """Until exactly these applications exist and are RUNNING.

        Args:
            patience: Seconds in which at least one more must begin to run. How long all of them take depends on how
                many there are and on what else the machine does.
        """
        deadline, running = time.monotonic() + patience, -1
        while True:
            found = self.applications()
            for name, application in found.items():
                if application["status"] == "DEPLOY_FAILED":
                    pytest.fail(f"{name} failed: {why(application)}")
            waiting = {name: found.get(name, {"status": "absent", "message": "", "deployments": {}}) for name in names}
            waiting = {name: app for name, app in waiting.items() if app["status"] != "RUNNING"}
            if not waiting and found.keys() == set(names):
                return
            if len(names) - len(waiting) > running:
                deadline, running = time.monotonic() + patience, len(names) - len(waiting)
            if time.monotonic() > deadline:
                states = "\n".join(f"{name}: {app['status']} {why(app)}" for name, app in waiting.items())
                superfluous = sorted(found.keys() - set(names))
                pytest.fail(f"for {patience:g} s no application began to run; superfluous: {superfluous}\n{states}")
            time.sleep(0.1)

    def deploy(self, *applications: dict[str, Any]) -> None:
        """PUT, and wait until all of it runs and the ingress can be reached: the proxy learns of it a little later."""
        self.put(*applications)
        self.wait_running(*(application["name"] for application in applications))
        for application in applications:
            if (route := application["route_prefix"]) is not None:
                path = f"{route.rstrip('/')}/-/ready"
                wait_for("the ingress to answer", lambda path=path: b'"ready"' in self.get(path).body)

    def ask(self, body: Any = None, path: str = "/", *, raw: bytes | None = None, **options: Any) -> Answer:
        content = raw if raw is not None else json.dumps(body).encode()
        return send("POST", self.url + path, content, options.pop("headers", None), **options)

    def get(self, path: str) -> Answer:
        return send("GET", self.url + path)

    def open(self, body: Any, path: str = "/") -> http.client.HTTPConnection:
        """A connection on which a request has been sent, and nobody waits for the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("POST", path, json.dumps(body))
        return connection

    def metric(
        self, name: str, *, by: str, of: Iterable[str] = (), host: str = "127.0.0.1", **where: str
    ) -> Counter[str]:
        """The values of one of Ray's metrics by one of its labels: the sum over all others.

        They are a second old, or more on a busy machine: who compares with a value from before has to know that it was
        told whole. ``of``: only what the replicas told that these applications have now; without it also what replicas
        of earlier tests told, which Ray forgets some time after they have ended. ``where``: only with these labels.
        """
        found: Counter[str] = Counter()
        workers = {worker for application in of for worker in self.replicas(application, "worker_id")}
        text = send("GET", f"http://{host}:{self.metrics_port}/metrics").body.decode()
        for labels, value in re.findall(rf"^ray_{name}{{(.*)}} (\S+)$", text, re.MULTILINE):
            values = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if (not of or values["WorkerId"] in workers) and where.items() <= values.items():
                found[values.get(by, "")] += round(float(value))
        return found

    def send_to(self, port: int, body: Any) -> Answer | None:
        """POST to another port of this machine; None where nobody listens."""
        try:
            return send("POST", f"http://127.0.0.1:{port}/", json.dumps(body).encode())
        except urllib.error.URLError:
            return None

    @property
    def ingress_port(self) -> int:
        """The port of an ingress replica, without the proxy."""
        if not self.haproxy:
            return self.port
        return wait_for(
            "a replica of the ingress to be found",
            lambda: next((port for port in self.replica_ports if b'"graph"' in self.peek(port)), None),
        )

    def peek(self, port: int, host: str = "127.0.0.1") -> bytes:
        """What a replica answers to ``/-/graph``; nothing where there is none."""
        try:
            return send("GET", f"http://{host}:{port}/-/graph").body
        except urllib.error.URLError:
            return b""

    def ask_grpc(self, body: Any, application: str = "ingress") -> Any:
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            answer = PipelineStub(channel).Run(
                BytesValue(value=json.dumps(body).encode()), metadata=[("application", application)], timeout=30
            )
            return json.loads(answer.value)


def node(name: str, target: str, *args: Any, revision: str = "r1", path: Path | str = "", **options: Any) -> Any:
    """The Serve application of one revision of a node, as the engine writes it."""
    user_config = {
        "table": options.pop("table", "t1"),
        "routes": options.pop("routes", {}),
        "userConfig": options.pop("user_config", {}),
        "maxOngoingRequests": options.get("max_ongoing_requests", 5),
    }
    arguments = {
        "pipeline": "test",
        "node": name,
        "revision": revision,
        "import": target,
        "args": list(args),
        "kwargs": options.pop("kwargs", {}),
        "code": options.pop("code", None),
        "path": str(path),
        "blocking": options.pop("blocking", None),
        "attempt": options.pop("attempt", 0),
    }
    return _application(f"{name}--{revision}", "node", None, arguments, user_config, options)


def entries(nodes: Any) -> Any:
    """The nodes of a table in full. ``nodes``: name -> revision, or the routes, or the whole entry."""
    full = {}
    for name, entry in nodes.items():
        entry = [{"revision": entry, "weight": 100}] if isinstance(entry, str) else entry
        full[name] = {"routes": entry, "off": False} if isinstance(entry, list) else entry
    return full


def ingress(graph: Any, nodes: Any, *, path: Path | str = "", route: str = "/", **options: Any) -> Any:
    """The ingress application; ``nodes`` as `entries` takes them."""
    nodes = entries(nodes)
    user_config = {
        "table": options.pop("table", "t1"),
        "pipeline": "test",
        "graphRevision": "g1",
        "graph": graph,
        "nodes": nodes,
        "requestTimeoutSeconds": options.pop("timeout_s", 30),
        "maxBodyBytes": options.pop("max_body_bytes", 104857600),
    }
    arguments = {
        "pipeline": "test",
        "paths": [str(path)] if path else [],
        "code": None,
        "codes": [],
        "preprocessor": options.pop("preprocessor", None),
        "postprocessor": options.pop("postprocessor", None),
        "attempt": options.pop("attempt", 0),
    }
    options.setdefault("max_ongoing_requests", 1000)
    return _application("ingress", "ingress", route, arguments, user_config, options)


def _application(name: str, kind: str, route: Any, args: Any, user_config: Any, options: Any) -> Any:
    replicas = options.pop("replicas", 1)
    deployment = {
        "name": kind,
        "autoscaling_config": {"min_replicas": replicas, "max_replicas": max(replicas, 1)},
        "max_surge_percent": 100,
        "rolling_update_percentage": 1.0,
        "graceful_shutdown_wait_loop_s": 0.2,
        "graceful_shutdown_timeout_s": 20,
        "health_check_period_s": 1,
        "ray_actor_options": {"num_cpus": 0.01},
        "user_config": user_config,
        **options,
    }
    return {
        "name": name,
        "route_prefix": route,
        "import_path": f"servepipe.runtime.app:{kind}",
        "args": args,
        "deployments": [deployment],
    }


ServeSession.node = staticmethod(node)
ServeSession.ingress = staticmethod(ingress)
ServeSession.entries = staticmethod(entries)
ServeSession.send = staticmethod(send)
ServeSession.wait_for = staticmethod(wait_for)
ServeSession.why = staticmethod(why)
ServeSession.free_port = staticmethod(free_port)
ServeSession.own_ports = staticmethod(own_ports)


@pytest.fixture(scope="session")
def serve_class() -> type[ServeSession]:
    """For tests with a Ray of their own."""
    return ServeSession


@pytest.fixture(scope="session")
def serve_session():
    """A `ServeSession` on a Ray of its own, with HAProxy unless SERVEPIPE_TEST_HAPROXY=0."""
    haproxy = os.environ.get("SERVEPIPE_TEST_HAPROXY", "1") == "1"
    folder = tempfile.mkdtemp(prefix="sp-", dir="/tmp")  # short: the paths of Unix sockets are
    # Many: Serve keeps a port that a replica gave back from the next one for a while.
    http_ports, grpc_ports = (
        range(first, first + 400) for first in (31000 + os.getpid() % 500, 41000 + os.getpid() % 500)
    )
    flags = serve_environment(
        haproxy=haproxy,
        folder=folder,
        metrics_port=free_port(),
        stats_port=free_port(),
        replica_http_ports=http_ports,
        replica_grpc_ports=grpc_ports,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        # As often as it may be.
        for name, value in {**flags, **own_ports(), "RAY_metrics_report_interval_ms": "1000"}.items():
            patch.setenv(name, value)
        import ray

        context = ray.init(
            address="local",
            num_cpus=8,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=free_port(),
            _metrics_export_port=(metrics_port := free_port()),
            object_store_memory=200 * 1024 * 1024,
            log_to_driver=False,
            configure_logging=False,
        )
        stack.callback(ray.shutdown)
        token = _token()
        yield ServeSession(f"http://{context.dashboard_url}", token, haproxy, http_ports, metrics_port)


def _token() -> str | None:
    """The bearer token that this Ray asks for, where it asks for one."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    return get_auth_headers_if_auth_enabled({}).get("authorization", "").removeprefix("Bearer ") or None
