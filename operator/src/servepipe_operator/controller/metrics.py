"""What the operator counts, for Prometheus. No label has as many values as there are pipelines."""

from __future__ import annotations

import platform
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """One set, in a registry of its own, so that two operators in one process (a test) do not mix.

    Args:
        version: Of servepipe.
        installation: The operator's name.
    """

    def __init__(self, version: str, installation: str) -> None:
        self.registry = CollectorRegistry()
        self._reconciles = Counter(
            "servepipe_reconciles", "Looks at a pipeline, by result.", ["result"], registry=self.registry
        )
        self._seconds = Histogram(
            "servepipe_reconcile_duration_seconds",
            "How long a look took.",
            ["result"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._requests = Counter(
            "servepipe_kubernetes_requests",
            "Requests to the API server; code 0 is no answer.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "servepipe_kubernetes_request_duration_seconds",
            "How long a request to the API server took.",
            ["verb"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._depth = Gauge("servepipe_queue_depth", "Pipelines that are due.", registry=self.registry)
        self._age = Gauge("servepipe_queue_age_seconds", "How long the oldest of them waits.", registry=self.registry)
        self._pipelines = Gauge(
            "servepipe_pipelines",
            "Pipelines by condition, its status and its reason.",
            ["condition", "status", "reason"],
            registry=self.registry,
        )
        self._leader = Gauge("servepipe_leader", "1 while this process holds the Lease.", registry=self.registry)
        self._waiting = Gauge(
            "servepipe_waiting", "1 while the operator waits for this, such as a CRD.", ["what"], registry=self.registry
        )
        build = Gauge(
            "servepipe_build_info", "Always 1.", ["version", "python", "installation"], registry=self.registry
        )
        build.labels(version, platform.python_version(), installation).set(1)

    def reconciled(self, result: str, seconds: float) -> None:
        """One look ended. ``result``: ok, changing, gone, unreachable, cancelled, or error."""
        self._reconciles.labels(result).inc()
        self._seconds.labels(result).observe(seconds)

    def requested(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """For `Kube`'s ``on_request``."""
        self._requests.labels(verb, resource, str(code)).inc()
        self._request_seconds.labels(verb).observe(seconds)

    def watch_queue(self, depth: Callable[[], float], age_s: Callable[[], float]) -> None:
        """Ask the queue whenever metrics are asked for."""
        self._depth.set_function(depth)
        self._age.set_function(age_s)

    def watch_lease(self, holds: Callable[[], bool]) -> None:
        """Ask the elector whenever metrics are asked for."""
        self._leader.set_function(lambda: float(holds()))

    def pipelines(self, conditions: Iterable[Mapping[str, tuple[str, str]]]) -> None:
        """Count anew: for each pipeline, its conditions as type to status and reason."""
        counts = Counts((kind, *told) for pipeline in conditions for kind, told in pipeline.items())
        self._pipelines.clear()
        for labels, count in counts.items():
            self._pipelines.labels(*labels).set(count)

    def waiting(self, what: Iterable[str]) -> None:
        """All that is waited for now."""
        self._waiting.clear()
        for name in what:
            self._waiting.labels(name).set(1)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
