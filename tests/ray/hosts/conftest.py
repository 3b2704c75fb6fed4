"""Two hosts on this machine, each with a Ray node: network namespaces, joined by a switch whose cable can be pulled.

    host a (Ray's head, Serve's proxy, these tests) ──veth── switch (a bridge) ──veth── host b (a Ray worker node)

Processes, too, are each host's own. Files are not: a socket of the other host has a path that can be seen, which is no
way to get there. Whatever becomes of the tests, nothing of this goes on: the first process of a host ends with its
standard input, and the kernel ends all others with it, then the namespaces and their interfaces. Needs root on Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from servepipe.channel.endpoints import Endpoint
from servepipe.runtime.flags import serve_environment

CLONE_NEWNET = 0x40000000
OWN = ["unshare", "--net", "--pid", "--fork", "--mount-proc"]
GCS_PORT, DASHBOARD_PORT, METRICS_PORT = 6379, 8265, 8080
REPLICA_PORTS = range(30000, 30100)
START_S = 180
_LIBC = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """Why there can be no hosts here; "" where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    try:
        for command in ("nsenter", "ip", "ss"):
            subprocess.run([command, "-V"], capture_output=True)
        trial = "ip link add name one type bridge && ip link add name two type veth peer name three"
        done = subprocess.run([*OWN, "sh", "-c", trial], capture_output=True, text=True)
    except FileNotFoundError as error:
        return f"there is no command {error.filename}"
    return f"no network namespaces: {done.stderr.strip()}" if done.returncode else ""


class Space:
    """A namespace of the network and of processes. ``pid`` is its first process, as others see it."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen([*OWN, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdin is not None and self._holder.stdout is not None
        self._holder.stdin.write(b"up\n")
        self._holder.stdin.flush()
        assert self._holder.stdout.readline() == b"up\n"
        (first,) = psutil.Process(self._holder.pid).children()
        self.pid = first.pid

    def close(self) -> None:
        """End every process in it."""
        self._holder.communicate()

    def ip(self, *arguments: str) -> None:
        # Without the other namespaces: `netns PID` is a process as this one knows it.
        command = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


class Host(Space):
    """One with an address."""

    def __init__(self, name: str, address: str, folder: Path, environment: dict[str, str]) -> None:
        super().__init__()
        self.name, self.address = name, address
        self._folder = folder / name
        self._environment = environment | {"SERVEPIPE_TEST_HOST": name}

    def run(self, *command: str, timeout: float = 30) -> str:
        """The output of a command in this host."""
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "--net", "--pid", "--mount", *command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"on host {self.name}: {' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def start_ray(self, *options: str) -> None:
        self.run(
            *(sys.executable, "-m", "ray.scripts.scripts", "start", *options),
            f"--node-ip-address={self.address}",
            f"--temp-dir={self._folder}",
            f"--metrics-export-port={METRICS_PORT}",
            f"--resources={json.dumps({self.name: 1})}",
            "--num-cpus=4",
            f"--object-store-memory={128 * 1024 * 1024}",
            timeout=START_S,
        )

    def kill(self, pid: int) -> None:
        self.run("kill", "-9", str(pid))

    def unix_connections(self, path: str) -> int:
        """How many a process of this host has let in at the socket ``path``."""
        lines = Path(f"/proc/{self.pid}/net/unix").read_text(encoding="utf-8").splitlines()
        connected = "03"
        return sum(line.split()[5] == connected and line.endswith(f" {path}") for line in lines)

    def tcp_peers(self, port: int) -> list[str]:
        """From where the connections to one of its ports come."""
        found = self.run("ss", "-Htn", "state", "established", "sport", "=", f":{port}")
        return sorted(line.split()[3].rpartition(":")[0] for line in found.splitlines())

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and those that it starts meanwhile, are in the host's network."""
        with Path(f"/proc/self/task/{threading.get_native_id()}/ns/net").open() as own:
            _enter(Path(f"/proc/{self.pid}/ns/net"))
            try:
                yield
            finally:
                _enter_open(own.fileno())


def _enter(namespace: Path) -> None:
    with namespace.open() as file:
        _enter_open(file.fileno())


def _enter_open(descriptor: int) -> None:
    if _LIBC.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class TwoHosts:
    """Serve over two hosts: `a`, in whose network the tests are, and `b`."""

    code = Path(__file__).parent.parent / "code"

    def __init__(self, serve: Any, switch: Space, a: Host, b: Host) -> None:
        self.serve, self.a, self.b = serve, a, b
        self.both = a, b
        self._switch = switch
        self._urls: dict[Host, str] = {}

    def deploy(self, steps: dict[str, Any], *nodes: Any) -> None:
        """An ingress and the node ``worker``, one replica of each on each host, and other nodes.

        Args:
            steps: What can be asked for, each a step of the graph; those that name no node are the worker's.
        """
        one_each = {"replicas": 2, "max_replicas_per_node": 1}
        check = {"name": "check", "node": "worker", "method": "check", "args": [{"$step": "array"}]}
        cases = [{"when": name, "then": {"$step": name}} for name in (*steps, "check")]
        graph = {
            "steps": [
                *(
                    {"name": name, "node": "worker", "args": [{"$input": ["x"]}], **step}
                    for name, step in steps.items()
                ),
                check,
                {"name": "choice", "switch": {"on": {"$input": ["do"]}, "cases": cases}},
            ],
            "output": {"$step": "choice"},
        }
        names = dict.fromkeys(["worker", *(node["args"]["node"] for node in nodes)], "r1")
        worker = self.serve.node("worker", "host_models:Worker", path=self.code, max_ongoing_requests=20, **one_each)
        self.serve.deploy(worker, *nodes, self.serve.ingress(graph, names, timeout_s=120, **one_each))
        self.warm_up()

    # Requests

    def url(self, host: Host) -> str:
        """The ingress replica on a host, without the proxy."""
        if host not in self._urls:
            ports = REPLICA_PORTS
            port = self.serve.wait_for(
                f"the replica of the ingress on host {host.name}",
                lambda: next((port for port in ports if b'"graph"' in self.serve.peek(port, host.address)), None),
            )
            self._urls[host] = f"http://{host.address}:{port}/"
        return self._urls[host]

    def ask(self, host: Host, do: str, x: Any = None) -> Any:
        """Ask the ingress replica on ``host``."""
        body = json.dumps({"do": do, "x": x}).encode()
        return self.serve.send("POST", self.url(host), body, timeout=130)

    def endpoints(self) -> dict[str, Endpoint]:
        """Where the workers listen, by the addresses of their hosts."""
        found: dict[str, Endpoint] = {}

        def both() -> bool:
            answer = self.ask(self.a, "endpoint")
            endpoint = Endpoint.parse(answer.json)
            assert endpoint is not None, answer
            found[endpoint.host] = endpoint
            return len(found) == 2

        self.serve.wait_for("the endpoints of both workers", both)
        return found

    def check_arrays(self, ingress: Host, size: int) -> None:
        """Have arrays of so many bytes made by one worker and looked at by another, until all pairs of hosts did."""
        pairs = set()

        def all_pairs() -> bool:
            answer = self.ask(ingress, "check", size)
            assert answer.status == 200, answer
            made, looked, whole = answer.json
            assert whole
            pairs.add((made, looked))
            return len(pairs) == 4

        self.serve.wait_for("arrays over all pairs of hosts", all_pairs)

    # Metrics

    def ways(self, host: Host) -> Counter[str]:
        """How many calls of nodes the ingress replica on ``host`` made which way until now."""
        found: Counter[str] = self.serve.metric("servepipe_node_calls_total", by="way", host=host.address)
        return found

    @contextlib.contextmanager
    def counted(self, host: Host, count: int) -> Iterator[dict[str, int]]:
        """For so many calls that the ingress on ``host`` makes meanwhile, all of them or more: how many of them took
        another way than a channel. Known at the end."""
        otherwise: dict[str, int] = {}
        before = self.ways(host)
        yield otherwise
        now = self.serve.wait_for(
            f"{count} more calls to be told on host {host.name}",
            lambda: (found := self.ways(host)).total() >= before.total() + count and found,
        )
        now.subtract(before)
        otherwise.update({way: more for way, more in now.items() if more and way != "channel"})

    def warm_up(self) -> None:
        """Until both ingress replicas call the workers on both hosts over channels, and all before is counted."""

        def answer() -> bool:
            return all({self.ask(host, "who").json[0] for _ in range(8)} == {"a", "b"} for host in self.both)

        def take_channels() -> bool:
            with self.counted(self.a, 1) as from_a, self.counted(self.b, 1) as from_b:
                self.ask(self.a, "who")
                self.ask(self.b, "who")
            return from_a == from_b == {}

        self.serve.wait_for("answers from both hosts to both ingress replicas", answer)
        self.serve.wait_for("calls to take channels only", take_channels)

    # The network

    def cut(self) -> None:
        """Pull the cable of `b`. Whatever is sent gets lost, and nobody is told."""
        self._switch.ip("link", "set", "dev", "b", "down")

    def heal(self) -> None:
        self._switch.ip("link", "set", "dev", "b", "up")

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        self.cut()
        try:
            yield
        finally:
            self.heal()


@contextlib.contextmanager
def two_hosts(serve_class: Any, folder: Path, extra: dict[str, str]) -> Iterator[TwoHosts]:
    """``folder``: a short path. ``extra``: environment of everything on both hosts."""
    flags = serve_environment(folder=folder, replica_http_ports=REPLICA_PORTS, replica_grpc_ports=range(40000, 40100))
    token = secrets.token_hex(16)
    # Neither a proxy of this machine nor a Ray that somebody uses is of any use there.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") and not name.lower().endswith("_proxy")
    }
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_metrics_report_interval_ms": "1000"}
    environment = inherited | flags | own | extra
    with contextlib.ExitStack() as stack:
        switch = Space()
        stack.callback(switch.close)
        hosts = []
        for name, address in ADDRESSES.items():
            hosts.append(Host(name, address, folder, environment))
            stack.callback(hosts[-1].close)
        switch.ip("link", "add", "switch", "type", "bridge")
        switch.ip("link", "set", "switch", "up")
        for host in hosts:
            peer = ("peer", "name", "eth0", "netns", str(host.pid))
            switch.ip("link", "add", "name", host.name, "type", "veth", *peer)
            switch.ip("link", "set", "dev", host.name, "master", "switch", "up")
            host.ip("link", "set", "lo", "up")
            host.ip("addr", "add", f"{host.address}/24", "dev", "eth0")
            host.ip("link", "set", "eth0", "up")
            host.ip("route", "add", "default", "dev", "eth0")  # by it processes find their own address
        a, b = hosts
        dashboard = ("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={DASHBOARD_PORT}")
        a.start_ray("--head", f"--port={GCS_PORT}", *dashboard)
        b.start_ray(f"--address={a.address}:{GCS_PORT}")
        stack.enter_context(a.entered())
        url = f"http://127.0.0.1:{DASHBOARD_PORT}"
        serve = serve_class(url, token, True, REPLICA_PORTS, METRICS_PORT, host="0.0.0.0")
        yield TwoHosts(serve, switch, a, b)


ADDRESSES = {"a": "10.203.0.1", "b": "10.203.0.2"}


@pytest.fixture(scope="module")
def short_folder() -> Iterator[Path]:
    """One whose path leaves room for those of sockets."""
    folder = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def new_hosts(serve_class: Any, short_folder: Path) -> Iterator[Any]:
    """Makes the `TwoHosts` of a module, with these variables in the environment of everything on them."""
    if why := missing():
        pytest.skip(why)
    with contextlib.ExitStack() as stack:
        yield lambda **extra: stack.enter_context(two_hosts(serve_class, short_folder, extra))


@pytest.fixture(scope="session")
def addresses() -> dict[str, str]:
    """Of both hosts, by name."""
    return ADDRESSES
