"""Finding ports that nobody else has.

HAProxy and Ray's proxies bind with SO_REUSEPORT or without noticing each other: two of them on one port share its
requests silently. So each port is tried first with a bind that shares with nobody.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from servepipe.errors import RunError
from servepipe.runtime.flags import serve_environment

__all__ = ["PortNumbers", "choose_ports", "is_free"]

REPLICA_PORTS = 400
TRIES = 200
# Below 32768, where Linux begins to give ports to outgoing connections.
REPLICA_RANGE = range(20_000, 32_700)


@dataclass(frozen=True, slots=True)
class PortNumbers:
    """Every fixed port that Ray, Serve and HAProxy open. ``replica_*`` are the first of `REPLICA_PORTS` each."""

    http: int
    grpc: int
    dashboard: int
    proxy_http: int
    proxy_grpc: int
    haproxy_stats: int
    haproxy_metrics: int
    replica_http: int
    replica_grpc: int

    def environment(self) -> dict[str, str]:
        """The variables by which Serve learns of the ports of its own proxies; the others go through its flags."""
        return {
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(self.proxy_http),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(self.proxy_grpc),
        }

    def flags(self, folder: str, *, callback: bool = True) -> dict[str, str]:
        """Serve's flags on a machine with other programs; see `servepipe.runtime.flags.serve_environment`."""
        return serve_environment(
            folder=folder,
            metrics_port=self.haproxy_metrics,
            stats_port=self.haproxy_stats,
            replica_http_ports=self.replica_ports(self.replica_http),
            replica_grpc_ports=self.replica_ports(self.replica_grpc),
            callback=callback,
        )

    def replica_ports(self, first: int) -> range:
        """The ports from ``replica_http`` or ``replica_grpc`` on that replicas may take."""
        return range(first, first + REPLICA_PORTS)

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def is_free(port: int) -> bool:
    """Whether nobody listens on ``port``, on any address of this machine."""
    for host in ("", "127.0.0.1"):
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            # SO_REUSEADDR only forgives connections that linger after their listener is gone; listeners never share.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen(1)
            except OSError:
                return False
    return True


def choose_ports(
    http: int | None = None, *, taken: Iterable[int] = (), free: Callable[[int], bool] = is_free
) -> PortNumbers:
    """Free ports for one run, near the usual numbers.

    Args:
        http: The port for HTTP that must be used, or None for 8000 or the next free one.
        taken: PortNumbers of other runs that may not be bound yet.
        free: How a port is tried.

    Raises:
        RunError: ``http`` is taken, or no free port was found near a usual number.
    """
    used = set(taken)

    def next_free(first: int, what: str) -> int:
        for port in range(first, first + TRIES):
            if port not in used and free(port):
                used.add(port)
                return port
        raise RunError(f"No free port for {what} between {first} and {first + TRIES - 1}", fix="Stop what uses them.")

    def block(first: int, what: str) -> int:
        for start in range(first, REPLICA_RANGE.stop - REPLICA_PORTS, REPLICA_PORTS):
            ports = range(start, start + REPLICA_PORTS)
            if used.isdisjoint(ports) and all(map(free, ports)):
                used.update(ports)
                return start
        raise RunError(f"No {REPLICA_PORTS} free ports in a row for {what}", fix="Stop what uses them.")

    if http is not None:
        if http in used or not free(http):
            raise RunError(
                f"Port {http} is taken",
                where="--port",
                fix="Give another port, or leave --port out: then the next free one is used.",
            )
        used.add(http)
    return PortNumbers(
        http=http if http is not None else next_free(8000, "HTTP"),
        grpc=next_free(9000, "gRPC"),
        dashboard=next_free(8265, "Ray's dashboard"),
        proxy_http=next_free(8500, "Serve's own HTTP proxy"),
        proxy_grpc=next_free(9500, "Serve's own gRPC proxy"),
        haproxy_stats=next_free(8404, "HAProxy's statistics"),
        haproxy_metrics=next_free(9101, "HAProxy's metrics"),
        replica_http=block(REPLICA_RANGE.start, "the replicas (HTTP)"),
        replica_grpc=block(REPLICA_RANGE.start, "the replicas (gRPC)"),
    )
