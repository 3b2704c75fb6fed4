"""``/healthz``, ``/readyz`` and ``/metrics``.

Alive means that the event loop answers and no worker has died: what is only waited for is no reason to be started
again. Ready means that this process does, or could at any time take over, its work; the body says what is waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from servepipe_operator.controller.metrics import Metrics

__all__ = ["Health", "HealthServer"]


@dataclass(slots=True)
class Health:
    """What the shell says about itself.

    Args:
        waiting: What the operator cannot work without and waits for, by name, each with a sentence.
        broken: What can only be cured by a new start, likewise.
        notes: Shown in ``/readyz`` without any effect, such as who leads.
    """

    waiting: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def wait_for(self, what: str, why: str) -> None:
        """``what`` is missing."""
        self.waiting[what] = why

    def found(self, what: str) -> None:
        """``what`` came."""
        self.waiting.pop(what, None)


class HealthServer:
    """The three paths on one port.

    Args:
        metrics: Shown, and told before each answer what is waited for.
        refresh: Called before metrics are shown.
    """

    def __init__(self, health: Health, metrics: Metrics, refresh: Callable[[], None] = lambda: None) -> None:
        self._health, self._metrics, self._refresh = health, metrics, refresh
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port, which is chosen by the system for 0. Raises `OSError` when it is taken."""
        app = web.Application()
        app.router.add_get("/healthz", self._alive)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/metrics", self._show_metrics)
        # Probes would fill the log, and who still asks at the end must not hold it up.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError:
            await self.stop()
            raise
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _alive(self, request: web.Request) -> web.Response:
        return _answer(self._health.broken, {})

    async def _ready(self, request: web.Request) -> web.Response:
        return _answer(self._health.broken | self._health.waiting, self._health.notes)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        self._refresh()
        self._metrics.waiting(self._health.waiting)
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(problems: dict[str, str], notes: dict[str, str]) -> web.Response:
    lines = [f"{what}: {why}" for what, why in sorted(problems.items())] or ["ok"]
    lines += [f"({what}: {text})" for what, text in sorted(notes.items())]
    return web.Response(status=503 if problems else 200, text="\n".join(lines) + "\n")
