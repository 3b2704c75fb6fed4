"""For tests of HTTP requests through Serve's replica: Serve with an app, and what came of a request."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import ray.serve.context as serve_context
from ray.serve._private.http_util import RequestIdMiddleware
from serve_replica import serve_app

from servepipe.runtime.direct_http import DirectHttp
from servepipe.runtime.http_path import HttpWay

HEADERS = ((b"host", b"x"), (b"content-type", b"application/json"))


class Asked:
    """What came of a request."""

    def __init__(self):
        self.sent = []
        self.scope = None
        self.headers = []
        self.raised = None

    @property
    def starts(self):
        return [
            (one["status"], [(name, value) for name, value in one["headers"] if name != b"x-request-id"])
            for one in self.sent
            if one["type"] == "http.response.start"
        ]

    @property
    def body(self):
        return b"".join(one.get("body", b"") for one in self.sent if one["type"] == "http.response.body")

    @property
    def request_ids(self):
        return [value for one in self.sent for name, value in one.get("headers", ()) if name == b"x-request-id"]


class Bed:
    """Serve with an app, behind `DirectHttp`."""

    def __init__(self, app, way, *, unlogged=False, **options):
        self.serve = serve_app(self._app, **options)
        self.app = app
        self.inside = None
        self.asked = []
        short = HttpWay(self.serve, unlogged=lambda: unlogged, traced=lambda: False) if way == "short" else None
        self.took = []
        if short is not None:
            take = short.take
            short.take = lambda *args: self._note(take(*args))
        long = RequestIdMiddleware(self.serve._direct_ingress_asgi)
        self.asgi = DirectHttp(long, self.serve._semaphore.locked, short)

    def _note(self, taken):
        self.took.append(taken is not None)
        return taken

    async def _app(self, scope, receive, send):
        self.inside = SimpleNamespace(
            scope=dict(scope),
            ongoing=self.serve._metrics_manager.ongoing,
            context=serve_context._get_serve_request_context(),
        )
        await self.app(scope, receive, send)

    async def ask(self, *, method="POST", path="/", headers=HEADERS, **more):
        asked = Asked()
        body = [{"type": "http.request", "body": b"1", "more_body": False}]

        async def receive():
            if not body:
                await asyncio.Event().wait()  # the caller stays
            return body.pop()

        async def send(message):
            asked.sent.append(message)

        asked.scope = {"type": "http", "method": method, "path": path, "root_path": "", "client": ("1.2.3.4", 5)}
        asked.headers = [*headers]
        asked.scope |= {"headers": asked.headers, **more}
        self.asked.append(asked)
        try:
            await self.asgi(asked.scope, receive, send)
        except Exception as error:
            asked.raised = error
        return asked

    @property
    def counted(self):
        """What Serve has recorded, without times."""
        manager = self.serve._metrics_manager
        assert manager.ongoing == self.serve._semaphore._value == self.serve._num_queued_requests == 0
        return [
            {name: value for name, value in one.items() if name != "latency_ms"}
            for one in (*manager.recorded, *manager.requests)
        ]


async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def of_deployment(route="/", *, error=None):
    return {"route": route, "is_error": error is not None, "exception_type": error}


def of_request(status, route="/", method="POST"):
    return {
        "protocol": "HTTP",
        "method": method,
        "route": route,
        "app_name": "ingress",
        "deployment_name": "ingress",
        "is_error": status[0] in "45",
        "status_code": status,
    }
