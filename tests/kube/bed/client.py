"""A synchronous client that speaks JSON objects as they are on the wire, and kubeconfig files."""

import json
import ssl
from pathlib import Path
from typing import Any

import httpx

Object = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


class RefusedError(Exception):
    """The API server said no: `code`, `reason` and `message` of its Status object."""

    def __init__(self, code: int, status: Object) -> None:
        self.code, self.status = code, status
        self.reason, self.message = status.get("reason", ""), status.get("message", "")
        super().__init__(f"{code} {self.reason}: {self.message}")


class Api:
    """Requests to one API server as one user. Threads may share it."""

    def __init__(
        self, url: str, authority: Path, certificate: tuple[Path, Path] | None = None, token: str | None = None
    ) -> None:
        context = ssl.create_default_context(cafile=str(authority))
        if certificate is not None:
            context.load_cert_chain(*map(str, certificate))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, verify=context, headers=headers, timeout=30, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def text(self, path: str) -> str:
        """The body of a GET as text, for `/readyz`, `/metrics` and logs. Raises RefusedError."""
        return self._answer("GET", path).text

    def get(self, path: str, **query: str) -> Object:
        return self._json("GET", path, query)

    def find(self, path: str) -> Object | None:
        """The object, or None where there is none."""
        try:
            return self.get(path)
        except RefusedError as refused:
            if refused.code == 404:
                return None
            raise

    def create(self, path: str, obj: Object, *, dry_run: bool = False) -> Object:
        return self._json("POST", path, {"dryRun": "All"} if dry_run else {}, obj)

    def replace(self, path: str, obj: Object, *, dry_run: bool = False) -> Object:
        return self._json("PUT", path, {"dryRun": "All"} if dry_run else {}, obj)

    def merge(self, path: str, patch: Object, *, dry_run: bool = False) -> Object:
        return self._json("PATCH", path, {"dryRun": "All"} if dry_run else {}, patch, MERGE)

    def apply(self, path: str, obj: Object, manager: str = "tests", *, force: bool = False) -> Object:
        """Server-side apply."""
        return self._json("PATCH", path, {"fieldManager": manager, "force": str(force).lower()}, obj, APPLY)

    def delete(self, path: str) -> Object:
        return self._json("DELETE", path, {})

    def _json(
        self, method: str, path: str, query: dict[str, str], body: Object | None = None, kind: str = "application/json"
    ) -> Object:
        content = None if body is None else json.dumps(body)
        answer: Object = self._answer(
            method, path, params=query, content=content, headers={"Content-Type": kind}
        ).json()
        return answer

    def _answer(self, method: str, path: str, **more: Any) -> httpx.Response:
        answer = self._http.request(method, path, **more)
        if answer.is_error:
            try:
                status = answer.json()
            except ValueError:
                status = {"message": answer.text}
            raise RefusedError(answer.status_code, status)
        return answer


def write_kubeconfig(path: Path, url: str, authority: Path, user: Object, namespace: str = "default") -> Path:
    """A kubeconfig (JSON is YAML) with one cluster and one user."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": {"server": url, "certificate-authority": str(authority)}}],
        "users": [{"name": "tests", "user": user}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests", "namespace": namespace}}],
        "current-context": "tests",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(content, indent=1))
    return path
