"""Probes and metrics over HTTP."""

from __future__ import annotations

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from servepipe_operator.controller.health import Health, HealthServer
from servepipe_operator.controller.metrics import Metrics


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_what_is_waited_for_makes_unready_and_what_is_broken_dead() -> None:
    health, metrics = Health(notes={"leader": "operator-0"}), Metrics("1.2.3", "servepipe")
    server = HealthServer(health, metrics)
    port = await server.start("127.0.0.1", 0)
    try:
        assert await get(port, "/readyz") == (200, "ok\n(leader: operator-0)\n")
        health.wait_for("rayclusters.ray.io", "KubeRay's CRD is not installed")
        status, text = await get(port, "/readyz")
        assert status == 503
        assert "rayclusters.ray.io: KubeRay's CRD is not installed" in text
        assert await get(port, "/healthz") == (200, "ok\n")
        assert samples((await get(port, "/metrics"))[1])["servepipe_waiting", "rayclusters.ray.io"] == 1
        health.found("rayclusters.ray.io")
        assert (await get(port, "/readyz"))[0] == 200
        assert "rayclusters" not in (await get(port, "/metrics"))[1]
        health.broken["worker"] = "it died"
        assert await get(port, "/healthz") == (503, "worker: it died\n")
        with pytest.raises(OSError):
            await HealthServer(health, metrics).start("127.0.0.1", port)
    finally:
        await server.stop()


def test_metrics_count_what_they_are_told() -> None:
    metrics = Metrics("1.2.3", "mine")
    metrics.reconciled("ok", 0.02)
    metrics.reconciled("ok", 0.02)
    metrics.requested("apply", "services", 200, 0.01)
    metrics.requested("apply", "services", 0, 0.01)
    metrics.watch_queue(lambda: 3, lambda: 1.5)
    metrics.watch_lease(lambda: True)
    metrics.pipelines([{"Ready": ("True", "Ready"), "Stalled": ("True", "Refused")}])
    metrics.pipelines([{"Ready": ("True", "Ready")}, {"Ready": ("False", "Upgrading")}, {"Ready": ("True", "Ready")}])
    got = samples(metrics.text().decode())
    assert got["servepipe_reconciles_total", "ok"] == 2
    assert got["servepipe_reconcile_duration_seconds_count", "ok"] == 2
    assert got["servepipe_kubernetes_requests_total", "200", "services", "apply"] == 1
    assert got["servepipe_kubernetes_requests_total", "0", "services", "apply"] == 1
    assert got[("servepipe_queue_depth",)] == 3
    assert got[("servepipe_queue_age_seconds",)] == 1.5
    assert got[("servepipe_leader",)] == 1
    assert {key: value for key, value in got.items() if key[0] == "servepipe_pipelines"} == {
        ("servepipe_pipelines", "Ready", "Ready", "True"): 2,
        ("servepipe_pipelines", "Ready", "Upgrading", "False"): 1,
    }
    assert any(key[0] == "servepipe_build_info" and "1.2.3" in key and "mine" in key for key in got)
