"""An HTTP client whose server is a graph in this process."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from servepipe.authoring.loader import EndImport, importing
from servepipe.graph.background import background
from servepipe.graph.calls import RequestContext
from servepipe.graph.inprocess import Runner
from servepipe.graph.wire import dump_graph
from servepipe.runtime.http import HttpApp
from servepipe.runtime.interface import Interface
from servepipe.testing.pipelines import tested_pipeline

__all__ = ["Headers", "Response", "TestClient"]


class Headers(Mapping[str, str]):
    """Response headers; names are found in any case, repeated ones are joined by commas."""

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        self._values: dict[str, str] = {}
        for name, value in raw:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            self._values[key] = f"{self._values[key]}, {text}" if key in self._values else text

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Headers({self._values!r})"


class Response:
    """An answer.

    Args:
        status_code: The HTTP status.
        headers: Its headers.
        content: The body.
    """

    def __init__(self, status_code: int, headers: Headers, content: bytes) -> None:
        self.status_code = status_code
        self.headers = headers
        self.content = content

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.content.decode()

    def json(self) -> Any:
        """The body as JSON. Raises ``ValueError`` where it is none."""
        return json_module.loads(self.content)

    def __repr__(self) -> str:
        return f"<Response {self.status_code}: {self.content[:200]!r}>"


class TestClient:
    """Sends requests to a pipeline that runs in this process, with the ingress's HTTP behaviour.

    Nodes are built when the client is entered and closed when it is left.

    Args:
        pipeline: What `build` returned, the output of a graph, what `load` returned, a ``ServePipeline``, or the path
            of a resource's file.
        fakes: Objects that stand for some nodes, by name (``-`` may be written as ``_``).

    Raises:
        ServePipeError: The pipeline is not valid, or a fake has the name of no node.
    """

    __test__ = False  # pytest: this is no test

    def __init__(self, pipeline: Any, *, fakes: Mapping[str, Any] | None = None) -> None:
        tested = tested_pipeline(pipeline)
        nodes = tested.definitions
        named = {name if name in nodes else name.replace("_", "-"): fake for name, fake in (fakes or {}).items()}
        self._runner = Runner(tested.graph, nodes, named)
        self._tested = tested
        self._http = HttpApp(
            self._run,
            Interface.of(tested.graph),
            preprocessor=tested.preprocessor,
            postprocessor=tested.postprocessor,
            endpoints={"/-/ready": self._ready, "/-/graph": self._graph},
            max_body_bytes=tested.max_body_bytes,
            timeout_s=tested.timeout_s,
        )

    def __enter__(self) -> TestClient:
        if importing():
            raise EndImport
        self._runner.build()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the nodes; a later request builds them anew."""
        self._runner.reset()

    def get(self, path: str, **request: Any) -> Response:
        """``GET path``; see `request`."""
        return self.request("GET", path, **request)

    def post(self, path: str, **request: Any) -> Response:
        """``POST path``; see `request`."""
        return self.request("POST", path, **request)

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a request and wait for the answer.

        Args:
            method: ``"POST"``, ``"GET"``...
            path: The path, with a query if need be; ``"/"`` is the pipeline's route.
            json: What to send as JSON; None sends ``null`` unless ``content`` is given or the method has no body.
            content: The body as it is.
            headers: Further headers.
        """
        if importing():
            raise EndImport
        sent = {name.lower(): value for name, value in (headers or {}).items()}
        if content is not None:
            body = content.encode() if isinstance(content, str) else content
        elif json is None and method in ("GET", "HEAD", "OPTIONS", "DELETE"):
            body = b""
        else:
            body = json_module.dumps(json).encode()
            sent.setdefault("content-type", "application/json")
        sent.setdefault("host", "testserver")
        sent.setdefault("content-length", str(len(body)))
        return background.run(lambda: self._send(method, path, sent, body))

    async def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Response:
        parts = urlsplit(url)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(parts.path) or "/",
            "raw_path": parts.path.encode(),
            "query_string": parts.query.encode(),
            "root_path": "",
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
            "client": ("testclient", 50000),
            "server": ("testserver", 80),
        }
        requests = [{"type": "http.request", "body": body, "more_body": False}]
        status, raw_headers, chunks = 500, [], []

        async def receive() -> dict[str, Any]:
            return requests.pop() if requests else {"type": "http.disconnect"}

        async def send(message: Mapping[str, Any]) -> None:
            nonlocal status, raw_headers
            if message["type"] == "http.response.start":
                status, raw_headers = message["status"], list(message["headers"])
            elif message["type"] == "http.response.body":
                chunks.append(message.get("body", b""))

        await self._http(scope, receive, send)
        return Response(status, Headers(raw_headers), b"".join(chunks))

    async def _run(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, request_id: str, deadline: float | None
    ) -> Any:
        return await self._runner.execute_async(args, kwargs, RequestContext(request_id, deadline))

    async def _ready(self) -> tuple[int, Any]:
        return 200, {"ready": True, "notReady": []}

    async def _graph(self) -> tuple[int, Any]:
        return 200, {"pipeline": self._tested.name, "graph": dump_graph(self._tested.graph)}
