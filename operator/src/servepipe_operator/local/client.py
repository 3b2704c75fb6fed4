"""The other end of the control server: what `status`, `scale`, `apply`, `logs` and `down` speak."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from servepipe.errors import RunError, ServePipeError
from servepipe_operator.local.run_folder import Run

__all__ = ["ControlClient", "post_json"]

TIMEOUT_S = 60.0


class ControlClient:
    """One run's control server.

    Every method raises `RunError` when the run cannot be reached, and `ServePipeError` with the run's own words when it
    refuses.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def status(self) -> dict[str, Any]:
        return self._request("GET", "/v1/status")

    def apply(self, document: str, folder: str) -> dict[str, Any]:
        return self._request("PUT", f"/v1/resource?{urlencode({'folder': folder})}", document.encode())

    def scale(self, node: str, replicas: int) -> dict[str, Any]:
        return self._request("POST", "/v1/scale", json.dumps({"node": node, "replicas": replicas}).encode())

    def logs(self, node: str, *, follow: bool, previous: bool = False) -> Iterator[str]:
        path = f"/v1/logs/{quote(node, safe='')}?follow={follow:d}&previous={previous:d}"
        with self._open("GET", path, None, None if follow else TIMEOUT_S) as response:
            _refused(response)
            for line in response:
                yield line.decode(errors="replace").rstrip("\n")

    def down(self) -> None:
        self._request("POST", "/v1/down")

    def _request(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        with self._open(method, path, body, TIMEOUT_S) as response:
            _refused(response)
            answer: dict[str, Any] = json.loads(response.read())
            return answer

    @contextmanager
    def _open(
        self, method: str, path: str, body: bytes | None, timeout: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        address = urlsplit(self._run.control)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {self._run.token}"})
            yield connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RunError(
                f"The run of {self._run.pipeline!r} does not answer at {self._run.control}: {error}",
                fix="It may be ending; look with `servepipe status`.",
            ) from error
        finally:
            connection.close()


def _refused(response: http.client.HTTPResponse) -> None:
    if response.status < 400:
        return
    text = response.read().decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        refusal = ServePipeError(error["what"], where=error["where"], fix=error["fix"])
    except (ValueError, KeyError, TypeError):
        refusal = ServePipeError(f"The run answered HTTP {response.status}: {text.strip()[:500]}")
    raise refusal


def post_json(url: str, body: bytes) -> tuple[int, str, bytes]:
    """POST a JSON body to the pipeline; returns status, content type and body.

    Raises:
        RunError: Nothing answers at ``url``.
    """
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    try:
        connection.request("POST", address.path or "/", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.headers.get_content_type(), response.read()
    except (OSError, http.client.HTTPException) as error:
        raise RunError(f"Nothing answers at {url}: {error}", fix="Look with `servepipe status`.") from error
    finally:
        connection.close()
