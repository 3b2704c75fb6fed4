"""Ray's dashboard and the ingress of one pipeline as a small HTTP server.

To be reached through Services it has to listen on an address of this machine: the API server's proxy refuses loopback.
"""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from bed.client import Object
from bed.control_plane import ControlPlane


def own_address() -> str:
    """An IPv4 address of this machine that is not loopback; skips where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            address: str = probe.getsockname()[0]
        except OSError:
            address = "127.0.0.1"
    if address.startswith("127."):
        pytest.skip("the API server's proxy needs an address of this machine other than loopback, and it has none")
    return address


class Head:
    """What it answers, and what it was asked.

    Attributes:
        applications: By name, as `GET /api/serve/applications/` has them.
        files: The content of log files by name, or by `pid:suffix`.
        seen: Method, path and headers of each request.
        release: Set to end streams of logs.
    """

    def __init__(self) -> None:
        self.applications: Object = {}
        self.files: dict[str, str] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.release = threading.Event()
        self.answer: tuple[int, Any] = (200, 8)
        self.port = 0
        self.address = ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    """They wait on connections that are kept."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Told on stderr, which tests of commands read. Who asked may go whenever it wants.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def fake_head(address: str = "127.0.0.1") -> Iterator[Head]:
    head = Head()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None: ...

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            head.seen.append(("GET", self.path, {key.lower(): value for key, value in self.headers.items()}))
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            if url.path == "/api/serve/applications/":
                self.send(200, json.dumps({"applications": head.applications}), "application/json")
            elif url.path in ("/api/v0/logs/file", "/api/v0/logs/stream"):
                name = query.get("filename") or f"{query['pid']}:{query['suffix']}"
                if name not in head.files:
                    self.send(500, "no such file", "text/plain")
                    return
                lines = head.files[name].splitlines(keepends=True)[-int(query["lines"]) :]
                if url.path.endswith("/file"):
                    self.send(200, "".join(lines), "text/plain")
                    return
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                text = "".join(lines).encode()
                if text:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
                head.release.wait(60)
                with suppress(OSError):  # who asked may have gone
                    self.wfile.write(b"0\r\n\r\n")
            else:
                self.send(404, "", "text/plain")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            head.seen.append(("POST", self.path, {"body": body}))
            status, answer = head.answer
            self.send(status, json.dumps(answer), "application/json")

        def send(self, status: int, text: str, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

    head.address = address
    server = _Server((head.address, 0), Handler)
    head.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield head
    finally:
        head.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


def put_behind(plane: ControlPlane, namespace: str, service: str, port: int, head: Head) -> None:
    """A Service that leads to `head`, which the API server takes for a Pod: it proxies to nothing else."""
    core = f"/api/v1/namespaces/{namespace}"
    container = {"name": "ray", "image": "ray"}
    plane.api.create(f"{core}/pods", {"metadata": {"name": service}, "spec": {"containers": [container]}})
    status = {"phase": "Running", "podIP": head.address, "podIPs": [{"ip": head.address}]}
    plane.api.merge(f"{core}/pods/{service}/status", {"status": status})
    ports = [{"name": "http", "port": port, "targetPort": head.port}]
    plane.api.create(f"{core}/services", {"metadata": {"name": service}, "spec": {"ports": ports}})
    target = {"kind": "Pod", "namespace": namespace, "name": service}
    addresses = [{"ip": head.address, "targetRef": target}]
    subset = {"addresses": addresses, "ports": [{"name": "http", "port": head.port}]}
    plane.api.create(f"{core}/endpoints", {"metadata": {"name": service}, "subsets": [subset]})
