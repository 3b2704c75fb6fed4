"""A small asynchronous client of the API server, made for many small requests and a few long watches."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml

Object = dict[str, Any]

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
WATCH_TIMEOUT_S = 280
CONNECTIONS = 32


class ApiError(Exception):
    """The API server said no."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(message)


class Api:
    """Requests as the user of one kubeconfig (client certificate or token)."""

    def __init__(self, kubeconfig: Path) -> None:
        content = yaml.safe_load(kubeconfig.read_text())
        context = _named(content, "context", content["current-context"])
        cluster, user = _named(content, "cluster", context["cluster"]), _named(content, "user", context["user"])
        with tempfile.TemporaryDirectory() as folder:
            self._ssl = ssl.create_default_context(cafile=_file(cluster, "certificate-authority", folder))
            certificate = _file(user, "client-certificate", folder)
            if certificate is not None:
                self._ssl.load_cert_chain(certificate, _file(user, "client-key", folder))
        self._headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        self._url = cluster["server"]
        self._session: aiohttp.ClientSession | None = None
        self.requests = 0

    async def __aenter__(self) -> Api:
        connector = aiohttp.TCPConnector(ssl=self._ssl, limit=CONNECTIONS + 16)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def disconnect(self) -> None:
        """End all connections at once; whoever uses one gets an error.

        Without TLS's farewell: it would be said after the loop has ended. Those that a cancelled request leaves behind
        would say it, so this comes before anything is cancelled.
        """
        assert self._session is not None
        assert self._session.connector is not None
        await self._session.connector.close(abort_ssl=True)
        await self._session.close()
        for _ in range(3):
            await asyncio.sleep(0)  # what was aborted closes in the loop's next rounds

    async def request(
        self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: str
    ) -> Object:
        """Raises `ApiError`; aiohttp's errors and TimeoutError where there was no answer."""
        assert self._session is not None
        self.requests += 1
        data = None if body is None else json.dumps(body)
        async with self._session.request(
            method,
            self._url + path,
            data=data,
            params=query,
            headers={"Content-Type": kind},
            timeout=aiohttp.ClientTimeout(total=30),
        ) as response:
            text = await response.text()
            if response.status < 400:
                answer: Object = json.loads(text)
                return answer
            raise _error(response.status, text)

    async def get(self, path: str) -> Object:
        return await self.request("GET", path)

    async def create(self, path: str, body: Object) -> Object:
        return await self.request("POST", path, body)

    async def replace(self, path: str, body: Object) -> Object:
        return await self.request("PUT", path, body)

    async def patch(self, path: str, body: Any, kind: str = MERGE_PATCH) -> Object:
        return await self.request("PATCH", path, body, kind)

    async def delete(self, path: str, uid: str | None = None) -> Object:
        options = {"preconditions": {"uid": uid}} if uid else {}
        return await self.request("DELETE", path, options)

    async def watch(self, path: str, resource_version: str, selector: str = "") -> AsyncIterator[Object]:
        """Events as they come; ends when the API server ends it. Raises `ApiError` 410 when the version is too old."""
        assert self._session is not None
        query = {
            "watch": "true",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_TIMEOUT_S),
        }
        if selector:
            query["labelSelector"] = selector
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with self._session.get(self._url + path, params=query, timeout=timeout) as response:
            if response.status >= 400:
                raise _error(response.status, await response.text())
            rest = b""
            # Not by line: a RayCluster can be longer than the reader's limit.
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if not line.strip():
                        continue
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise ApiError(status.get("code", 500), status.get("reason", ""), status.get("message", ""))
                    yield event


def _named(kubeconfig: Object, kind: str, name: str) -> Object:
    found: Object = next(entry for entry in kubeconfig[kind + "s"] if entry["name"] == name)[kind]
    return found


def _file(entry: Object, key: str, folder: str) -> str | None:
    """The path of what a kubeconfig names, or holds itself; then it is written into ``folder``."""
    if f"{key}-data" not in entry:
        path: str | None = entry.get(key)
        return path
    written = Path(folder) / key
    written.write_bytes(base64.b64decode(entry[f"{key}-data"]))
    return str(written)


def _error(code: int, text: str) -> ApiError:
    try:
        status = json.loads(text)
        return ApiError(code, status.get("reason", ""), status.get("message", text))
    except (ValueError, AttributeError):
        return ApiError(code, "", text)


NO_ANSWER = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
